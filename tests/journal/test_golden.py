"""A journal that was written by the first version of the format stays readable, whatever comes later."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256

import pytest

from locus_tiered.stores.journal_open import leave
from tests.journal.golden import FILES, GOLDEN, make
from tests.journal.parts import Former, aside, journal_in, new, reopen

KEPT = {"journal.db": "8c4a0a5e9ccfe32c", "journal.db-wal": "a796afdc25c637d4", "description.json": "f2f9c65c0cea0c02"}
HEAD = ("seq", "kind", "thread", "id", "stamp", "iteration", "attempted", "tenant", "saved_at", "size", "error")


def placed(golden, path):
    seat = path / "4711-0123456789ab"
    seat.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(golden / name, seat / name)
    return json.loads((golden / "description.json").read_text())


def described(opened) -> list[dict]:
    found = []
    for row in sorted((*opened.found.rows, *opened.found.dead), key=lambda row: row.stamp):
        metadata = body = None
        if row.kind == "save":
            metadata, raw = opened.file.state(row.seq)
            body = raw.decode()
        found.append({name: getattr(row, name) for name in HEAD} | {"metadata": metadata, "body": body})
    return found


@pytest.mark.parametrize("which", ["kept", "made now"])
def test_a_journal_of_version_1_reads_as_described(tmp_path, which):
    golden = GOLDEN
    if which == "made now":
        golden = tmp_path / "now"
        make(golden)
    description = placed(golden, tmp_path / "j")
    opened = reopen(tmp_path / "j", description["home"])
    assert (opened.found.damaged, opened.left, opened.passed_over) == (0, 0, 0)
    assert opened.seat.path.name == "4711-0123456789ab"
    assert described(opened) == description["rows"]
    assert len(description["rows"]) == 13
    leave(tmp_path / "j", opened)


def test_a_journal_of_version_1_is_adopted_by_another(tmp_path):
    """Copied row by row, it reads the same, but for the places."""
    description = placed(GOLDEN, tmp_path)
    Former(tmp_path).commit(*[new(number, 90_000, thread="other") for number in range(100, 110)]).die()
    opened = reopen(tmp_path)
    found = [row | {"seq": 0} for row in described(opened) if row["thread"] != "other"]
    assert found == [row | {"seq": 0} for row in description["rows"]]
    assert aside(tmp_path) == []
    leave(tmp_path, opened)


async def test_a_journal_of_version_1_answers_through_the_journal(tmp_path):
    description = placed(GOLDEN, tmp_path)
    async with journal_in(tmp_path) as journal:
        pending = journal.pending()
        assert (pending.rows, pending.dead_letters, pending.damaged) == (11, 2, 0)
        assert pending.bytes == sum(row["size"] for row in description["rows"] if row["error"] is None)
        by_seq = {row["seq"]: row for row in description["rows"]}
        for row in journal.index.all():
            if row.kind == "save":
                found = await journal.checkpoint(row)
                assert found.body.encoded.decode() == by_seq[row.seq]["body"]
                assert (found.thread_id, found.id, found.stamp) == (row.thread, row.id, row.stamp)


def test_the_kept_files_are_those_that_were_kept():
    """Nobody writes them anew: a change of the format gets a directory of its own."""
    digests = {name: sha256((GOLDEN / name).read_bytes()).hexdigest()[:16] for name in (*FILES, "description.json")}
    assert digests == KEPT
