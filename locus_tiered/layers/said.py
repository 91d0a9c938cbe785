"""What a replica says to a write, and where its hints are kept."""

from __future__ import annotations

import os
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import cause_of
from locus_tiered.core.operations import Delete, Save
from locus_tiered.stores.journal_rows import PendingRow

if TYPE_CHECKING:
    from locus_tiered.layers.replica import Replica

__all__ = ["Said", "hint_row", "hints_path"]


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a write on one replica."""

    replica: Replica
    took: bool
    result: Any = None
    hinted: bool = False
    error: BaseException | None = None
    newer: str = ""
    """Of a delete: the stamp of what it has left there, because that is newer."""

    @property
    def vote(self) -> bool:
        """Whether it counts for the quorum: a replica that is not believed has no vote."""
        return self.took and not self.replica.fenced

    @property
    def kept(self) -> bool:
        """Whether the write is safe for this replica: it has it, or a hint waits for it."""
        return self.took or self.hinted

    def __str__(self) -> str:
        if self.took:
            return "took it" + (
                ", but has no vote until scrub(): it is new, or was away for too long" if self.replica.fenced else ""
            )
        why = "is being left alone" if self.error is None else f"failed ({cause_of(self.error)})"
        return f"{why}; " + ("a hint waits for it" if self.hinted else "no hint could be kept")


def hint_row(
    op: Save | Delete, stamp: str, clock: Clock, tenant: str | None, *, attempted: bool, kind: str | None
) -> PendingRow:
    """The row of a journal that keeps a write for later; ``kind="scrub"``: that says to compare its thread."""
    now = clock.monotonic()
    checkpoint_id = op.checkpoint.id if isinstance(op, Save) and op.checkpoint is not None else op.checkpoint_id
    return PendingRow(
        0,
        "scrub" if kind == "scrub" else ("save" if isinstance(op, Save) else "delete"),
        op.thread_id,
        None if kind == "scrub" else checkpoint_id,
        stamp,
        iteration=isinstance(op, Save) and op.iteration,
        attempted=attempted,
        tenant=tenant,
        saved_at=clock.wall(),
        since=now,
        due=float("inf") if kind == "scrub" else now,
        context=copy_context(),
    )


def hints_path(journal: Path, name: str) -> Path:
    """Where the hints of the replica called ``name`` are kept."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else f"%{ord(letter):x}" for letter in name)
    return Path(os.fspath(journal)) / safe[:100]
