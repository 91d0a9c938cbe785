"""What ``tests/golden/journal-v1`` holds, and how it was made: ``python -m tests.journal.golden <new directory>``.

A journal that a version of this library has written stays readable. The files are kept as they are; a later version
of the format gets a directory of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from locus_tiered.stores.journal_file import NewRow
from locus_tiered.stores.journal_folder import FILE
from locus_tiered.stores.journal_rows import PendingRow
from tests.journal.parts import HOME, Former, stamp

GOLDEN = Path(__file__).parents[1] / "golden" / "journal-v1"
FILES = (FILE, f"{FILE}-wal")
SAVED_AT = 1_767_225_600.25


def rows() -> list[tuple[dict, dict | None, str | None]]:
    """Heads with metadata and body; ``attempted`` and ``error`` as they end up."""

    def head(number, thread, checkpoint_id, kind="save", **more):
        return {
            "seq": number,
            "kind": kind,
            "thread": thread,
            "id": checkpoint_id,
            "stamp": stamp(number),
            "iteration": False,
            "attempted": False,
            "tenant": None,
            "saved_at": SAVED_AT + number,
            "size": 512 + number,
            "error": None,
        } | more

    def text(number):
        return json.dumps({"iteration": number, "text": "grüße \ud83d\ude00 \u0000 end"})

    return [
        (head(1, "plain", stamp(1)), {}, text(1)),
        (head(2, "plain", "of-an-iteration", iteration=True), {"step": 2, "nested": {"a": [1, None, "ü"]}}, text(2)),
        (head(3, "of a tenant", "kept", tenant="tenant/ü"), {"tags": ["x"]}, text(3)),
        (head(4, "odd \ud800 thread", "lone \udfff surrogate"), {}, text(4)),
        (head(5, "nul \0 thread", "nul \0 id"), {"\0": "\0"}, text(5)),
        (head(6, "k" * 4096, "i" * 4096), {}, text(6)),
        (head(7, "", ""), {}, text(7)),
        (head(8, "plain", "of-an-iteration", kind="delete"), None, None),
        (head(9, "gone", None, kind="delete"), None, None),
        (head(10, "plain", "sent before", attempted=True), {}, text(10)),
        (head(11, "plain", "refused", error="CheckpointTooLarge"), {"large": True}, text(11)),
        (head(12, "long", "longer than a page"), {}, json.dumps({"iteration": 12, "fill": "x" * 40_000})),
        (head(13, "gone", "refused delete", kind="delete", error="TooOld"), None, None),
    ]


def make(target: Path) -> None:
    """Write the journal, some of it in the file and some in the log, as a process leaves it that is killed."""
    with tempfile.TemporaryDirectory() as temporary:
        former = Former(Path(temporary), HOME)
        for place, (head, metadata, body) in enumerate(rows()):
            if place == 11:
                former.file.tidy()
            known = {name: value for name, value in head.items() if name not in ("attempted", "error")}
            encoded = None if body is None else body.encode()
            former.commit(NewRow.of(PendingRow(**known), metadata, encoded))
            if head["attempted"]:
                former.commit(attempt=[head["seq"]])
            if head["error"]:
                former.commit(bury=[(head["seq"], head["error"], SAVED_AT)])
        seat = former.die()
        target.mkdir(parents=True)
        for name in FILES:
            shutil.copyfile(seat / name, target / name)
    described = {
        "about": "A journal of format 1: what is pending in it, in order; dead letters have an error.",
        "home": HOME,
        "rows": [head | {"metadata": metadata, "body": body} for head, metadata, body in rows()],
    }
    (target / "description.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
