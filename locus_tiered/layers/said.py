"""What a replica says to a write, and where its hints are kept."""

from __future__ import annotations

import hashlib
import os
import re
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import cause_of
from locus_tiered.core.layer import Layer
from locus_tiered.core.operations import Delete, Save
from locus_tiered.layers.names import home_of, stores_of, unique_home_of
from locus_tiered.stores.journal import Journal
from locus_tiered.stores.journal_rows import PendingRow

if TYPE_CHECKING:
    from locus_tiered.layers.replica import Replica

__all__ = ["Said", "hint_row", "hints_path", "open_hints", "spelled"]

_LONGEST = 80  # bytes of a name; a directory entry has room for 255
_BY_HOME, _BY_NAME = ".store", ".replica"  # no dot stands in a name that is spelled out


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
    def is_left_alone(self) -> bool:
        """Whether nobody has even tried: a hint waits for it, because the replica has failed before."""
        return self.hinted and not self.took and self.error is None

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


def spelled(name: str) -> str:
    """A name as one of a file: no two names have the same."""
    safe = _plainly(name)
    # But for two digits, "%2fa" may be one character or two.
    if len(safe.encode()) <= _LONGEST and all(letter.isalnum() or 0x10 <= ord(letter) <= 0xFF for letter in name):
        return safe
    return f"{safe.encode()[:60].decode('utf-8', 'ignore')}-{_hash(name)}"


def _plainly(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else f"%{ord(letter):x}" for letter in name)


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"locus-tiered").hexdigest()


def hints_path(journal: Path, name: str, layer: Layer) -> Path:
    """Where the hints of the replica called ``name`` are kept.

    Below the name of its store, where no other one can have that: its hints are found again whatever the replica is
    called, and no other store's are. Else below the replica's own name.
    """
    place, home = Path(os.fspath(journal)), unique_home_of(layer)
    if home is not None:
        words = re.findall(r"[a-z]+", home[:20].lower())
        return place / f"{words[0] if words else 'store'}-{_hash(home)}{_BY_HOME}"
    return place / (spelled(name) if home_of(layer) is not None else f"{spelled(name)}{_BY_NAME}")


def _former_path(path: Path, name: str) -> Path | None:
    """Where the hints that are now kept in ``path`` were kept when names alone told places apart."""
    safe = _plainly(name)
    if len(safe) >= 100 or len(safe.encode()) > 255:  # cut there, and so perhaps another replica's; or never made
        return None
    return path.parent / safe if path.name != safe else None


async def open_hints(path: Path, replica: Replica, clock: Clock, *, durable: bool) -> Journal:
    """The open journal with the hints for ``replica``; raises :class:`JournalError`."""
    return await Journal.attach(
        path,
        home_of(replica.layer),
        clock,
        replica,
        stores=stores_of(replica.layer),
        former=_former_path(path, replica.name) if durable else None,
    )
