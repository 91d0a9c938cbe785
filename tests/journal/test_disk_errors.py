"""A disk that fails a commit, or is full: what is told, what stays, and what a write-behind layer makes of it."""

from __future__ import annotations

import asyncio
import json
import sqlite3

import pytest
from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.errors import BackendError, JournalError, JournalFull, JournalLocked, JournalPoisoned
from locus_tiered.testing import FaultyCheckpointer, ReferenceCheckpointer
from locus_tiered.testing.disk import Disk
from tests.journal.parts import append, body, indexed, journal_in, on, quick, row


@pytest.fixture
def disk():
    with Disk() as it:
        yield it


async def three(journal):
    first, second, third = [await append(journal, number) for number in (1, 2, 3)]
    await journal.bury(third, "Refused")
    return first, second, third


OPERATIONS = {
    "append": lambda journal, rows: append(journal, 9, 9_000),
    "append instead of": lambda journal, rows: journal.append(row(9), {}, body(9), instead_of=[rows[0]]),
    "drop": lambda journal, rows: journal.drop([rows[0]]),
    "mark": lambda journal, rows: journal.mark_attempted([rows[0]]),
    "bury": lambda journal, rows: journal.bury(rows[1], "Refused"),
    "revive": lambda journal, rows: journal.revive([rows[2]]),
}


def snapshot(journal):
    return [(each.stamp, each.attempted, each.error) for each in journal.index.all()], journal.pending().rows


@pytest.mark.parametrize("kind", ["write", "sync"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_an_io_error_on_a_commit_poisons_the_journal(tmp_path, disk, name, kind):
    """Whichever write or sync of the commit it is. What was acknowledged can be read; nothing is tried again."""
    nth = 0
    while True:
        nth += 1
        path = tmp_path / f"{nth}"
        async with journal_in(path, connecting=on(disk)) as journal:
            rows = await three(journal)
            before = snapshot(journal)
            disk.fail(kind, nth, on="-wal")
            (error,) = await asyncio.gather(OPERATIONS[name](journal, rows), return_exceptions=True)
            if not isinstance(error, Exception):
                disk.heal()
                break
            assert type(error) is JournalPoisoned
            assert f"SQLITE_IOERR_{'WRITE' if kind == 'write' else 'FSYNC'}" in str(error)
            assert "what was acknowledged before is kept, nothing more is taken" in str(error)
            assert snapshot(journal) == before
            assert journal.poisoned == journal.pending().poisoned
            assert journal.poisoned is not None
            for each in rows:
                assert (await journal.checkpoint(each)).body.encoded == body(int(each.stamp, 16))
            notes = len(disk.notes)
            for again in OPERATIONS.values():
                with pytest.raises(JournalPoisoned):
                    await again(journal, rows)
            assert len(disk.notes) == notes, "something was written or synced after the failure"
            assert snapshot(journal) == before
        disk.heal()
        async with journal_in(path, connecting=on(disk)) as journal:
            assert snapshot(journal) == before
            await append(journal, 10)
    assert nth > 1


async def test_all_who_waited_for_a_commit_that_failed_are_told_and_none_other(tmp_path, disk):
    async with journal_in(tmp_path, connecting=on(disk)) as journal:
        await append(journal, 1)
        disk.fail("sync", on="-wal", forever=True)
        told = await asyncio.gather(*(append(journal, number) for number in range(2, 40)), return_exceptions=True)
        assert {type(each) for each in told} == {JournalPoisoned}
        assert len({id(each) for each in told}) == 38, "one error each"
        assert indexed(journal) == [1]
        disk.heal()


async def test_a_full_disk_undoes_the_commit_and_works_again_once_there_is_room(tmp_path, disk):
    """At every point of a commit of several pages."""
    refused = 0
    async with journal_in(tmp_path, connecting=on(disk)) as journal:
        rows = [await append(journal, number, 9_000) for number in range(1, 5)]
        await journal.drop([rows.pop(0)])
        used = sum(file.stat().st_size for file in tmp_path.glob("*/journal.db*") if not file.name.endswith("shm"))
        number = 10
        for room in range(0, 260_000, 17_000):
            disk.room = used + room
            number += 1
            (told,) = await asyncio.gather(append(journal, number, 200_000), return_exceptions=True)
            if not isinstance(told, Exception):
                rows.append(told)
                continue
            refused += 1
            assert type(told) is JournalFull
            assert "this save was not kept there, what was acknowledged before is. Make room" in str(told)
            assert indexed(journal) == [int(each.stamp, 16) for each in rows]
            for each in rows:
                assert (await journal.checkpoint(each)).metadata["number"] == int(each.stamp, 16)
        assert refused >= 5
        disk.room = None
        rows.append(await append(journal, 90, 200_000))
        assert journal.poisoned is None
    async with journal_in(tmp_path, connecting=on(disk)) as journal:
        assert indexed(journal) == [int(each.stamp, 16) for each in rows]
        assert [(await journal.checkpoint(each)).metadata["number"] for each in journal.index.all()] == indexed(journal)


async def test_a_checkpoint_of_the_log_that_fails_costs_nothing(tmp_path, disk):
    """The rows are in the log already; it is folded into the file another time."""
    async with journal_in(tmp_path, connecting=on(disk, log_pages=4)) as journal:
        disk.fail("sync", on="journal.db", forever=True)
        for number in range(1, 12):
            await append(journal, number, 40_000)
        assert journal.poisoned is None
        disk.heal()
    async with journal_in(tmp_path, connecting=on(disk)) as journal:
        assert indexed(journal) == list(range(1, 12))
        assert journal.pending().damaged == 0


async def test_a_row_that_cannot_be_written_fails_alone(tmp_path):
    """Neither those who share its commit, nor the journal."""

    def small(path):
        connection = quick(path)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        return connection

    async with journal_in(tmp_path, connecting=small) as journal:
        told = await asyncio.gather(
            *(append(journal, number, 200_000 if number == 5 else 500) for number in range(1, 10)),
            return_exceptions=True,
        )
        assert [type(each) for each in told if isinstance(each, Exception)] == [JournalError]
        assert "nothing of it was kept" in str(told[4])
        assert indexed(journal) == [1, 2, 3, 4, 6, 7, 8, 9]
        assert journal.poisoned is None
        with pytest.raises(TypeError):
            await journal.append(row(20), {"no": object()}, body(20))
        assert journal.poisoned is None
    async with journal_in(tmp_path) as journal:
        assert indexed(journal) == [1, 2, 3, 4, 6, 7, 8, 9]


async def test_a_program_that_holds_the_file_for_writing_is_told_apart_from_a_broken_disk(tmp_path):
    def impatient(path):
        connection = quick(path)
        connection.execute("PRAGMA busy_timeout=1")
        return connection

    async with journal_in(tmp_path, connecting=impatient) as journal:
        await append(journal, 1)
        (file,) = tmp_path.glob("*/journal.db")
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalLocked, match="another program holds the journal's file for writing"):
            await append(journal, 2)
        other.execute("ROLLBACK")
        other.close()
        await append(journal, 3)
        assert indexed(journal) == [1, 3]


# -- the layer above ---------------------------------------------------------------------------------


def state(number: int) -> AgentState:
    return AgentState(messages=(Message.user(f"message {number}"),), iteration=number)


def layer(far, path, **options):
    return WriteBehindCheckpointer(far, journal=path, ack="journal", linger=0.0, **options)


def kept_far(far, thread: str = "t") -> list[int]:
    return [json.loads(each.state)["iteration"] for each in far.stored.get(thread, {}).values()]


async def test_over_a_poisoned_journal_the_layer_writes_through(tmp_path, disk, caplog):
    far = ReferenceCheckpointer()
    stack = layer(far, tmp_path)
    async with journal_in(tmp_path, home=None, connecting=on(disk)) as journal:
        await stack.save(state(1), "t")
        disk.fail("sync", on="-wal", forever=True)
        await stack.save(state(2), "t")
        assert journal.poisoned == "SQLITE_IOERR_FSYNC"
        assert 2 in kept_far(far), "acknowledged, so it must be somewhere"
        notes = len(disk.notes)
        await stack.save(state(3), "t")
        assert 3 in kept_far(far)
        assert (await stack.load("t")).iteration == 3
        assert len(disk.notes) == notes
        assert stack.pending().poisoned == "SQLITE_IOERR_FSYNC"
        assert "is written through: the journal's disk failed a commit" in caplog.text
        await stack.close()
    assert sorted(kept_far(far)) == [1, 2, 3]


async def test_over_a_full_disk_the_layer_writes_through_until_there_is_room(tmp_path, disk):
    far = ReferenceCheckpointer()
    stack = layer(far, tmp_path)
    async with journal_in(tmp_path, home=None, connecting=on(disk)) as journal:
        disk.room = 0
        await stack.save(state(1), "t")
        assert kept_far(far) == [1]
        assert journal.pending().rows == 0
        disk.room = None
        await stack.save(state(2), "t")
        assert kept_far(far) == [1]
        assert journal.pending().rows == 1
        await stack.close()
    assert kept_far(far) == [1, 2]


@pytest.mark.parametrize("trouble", ["poisoned", "full"])
async def test_what_neither_the_journal_nor_the_far_store_keeps_is_not_acknowledged(tmp_path, disk, trouble):
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far)
    stack = layer(faulty, tmp_path, drain_timeout=0.1)
    async with journal_in(tmp_path, home=None, connecting=on(disk)):
        await stack.save(state(1), "t")
        await stack.flush()
        faulty.partition()
        if trouble == "full":
            disk.room = 0
        else:
            disk.fail("sync", on="-wal", forever=True)
        with pytest.raises(JournalFull if trouble == "full" else JournalPoisoned) as caught:
            await stack.save(state(2), "t")
        assert isinstance(caught.value.__cause__, BackendError)
        faulty.heal()
        assert (await stack.load("t")).iteration == 1
        disk.heal()
        await stack.close()
    assert kept_far(far) == [1]


async def test_a_journal_that_cannot_be_opened_acknowledges_nothing(tmp_path):
    (tmp_path / "file").write_text("in the way")
    far = ReferenceCheckpointer()
    stack = layer(far, tmp_path / "file")
    with pytest.raises(JournalError, match=r"cannot be made .*nothing was saved\. Give it a directory"):
        await stack.save(state(1), "t")
    (tmp_path / "file").unlink()
    await stack.save(state(2), "t")
    assert (await stack.load("t")).iteration == 2
    await stack.close()
    assert kept_far(far) == [2]
