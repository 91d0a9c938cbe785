"""One row of the journal: an operation that was acknowledged here and that the far store has not heard of yet.

A row is two parts on the disk, each with a check of its own (blake2b): the *head* (what, whose, when) and the
*body* (the state). Heads are verified when a journal is opened, bodies whenever one is read: opening thousands of
rows reads no state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextvars import Context
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from locus_tiered.core.checkpoint import Body, Checkpoint, Entry

__all__ = [
    "ATTEMPTED",
    "HEAD_OVERHEAD",
    "SUPERSEDED",
    "PendingRow",
    "RowDamaged",
    "check_of",
    "decode_head",
    "encode_head",
    "home_mark",
]

ATTEMPTED, SUPERSEDED = 0x5A5A5A, 0x3C3C3C
"""What stands in a row's column ``attempted``, which is zero at first: far apart, so that damage makes neither of the
other. Versions that do not know the second one take it for the first."""

_CHECK = hashlib.blake2b(digest_size=16, person=b"locus-tiered")
_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

Kind = Literal["save", "delete", "scrub"]

HEAD_OVERHEAD = 512
"""Bytes counted for a row beside its state: its head, its indexes, its share of a page."""


class RowDamaged(Exception):
    """A row is not what was written; the message says which part."""


@dataclass(slots=True, eq=False)
class PendingRow:
    """A save, or a delete of one checkpoint (``id``) or of a thread (``id=None``), on its way to the far store.

    ``scrub`` stands for more writes to a thread than were worth keeping: it is to be compared with the other replicas.
    """

    seq: int
    """Its place among all rows of this journal: rows of a thread are sent in this order."""
    kind: Kind
    thread: str
    id: str | None
    stamp: str
    iteration: bool = False
    """A save that its agent deletes when the turn ends."""
    attempted: bool = False
    """The far store may have heard of it: it never cancels out."""
    superseded: bool = False
    """A step of a turn whose end the far store has acknowledged: it has served, and whoever adopts it drops it."""
    tenant: str | None = None
    """Which tenant of the far store it belongs to; ``None``: the usual one."""
    saved_at: float = 0.0
    """Wall-clock time at which it was acknowledged."""
    size: int = HEAD_OVERHEAD
    """Bytes that it counts for."""

    # What only this process knows of it.
    since: float = 0.0
    """The same in monotonic seconds."""
    due: float = 0.0
    """When it is to be sent, in monotonic seconds."""
    context: Context | None = field(default=None, repr=False)
    """The caller's context variables; ``None`` for a row that a former process left."""
    adopted: bool = False
    """A former process acknowledged it: what happened since is asked before it is sent."""
    in_flight: bool = False
    doomed: bool = False
    """It is being cancelled: no longer to be sent."""
    error: str | None = None
    """Why it can never be applied (a dead letter): the class of the error."""

    @property
    def entry(self) -> Entry:
        """The checkpoint's place in its thread."""
        assert self.id is not None
        return Entry(self.id, self.stamp)

    def checkpoint(self, metadata: Mapping[str, Any], body: bytes) -> Checkpoint:
        """The checkpoint that a save row stands for."""
        assert self.id is not None
        return Checkpoint(self.thread, self.id, self.stamp, metadata, Body(body))


def check_of(*parts: bytes) -> bytes:
    """The check over one part of a row."""
    digest = _CHECK.copy()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


@lru_cache(64)
def home_mark(home: str) -> str:
    """A far store's name as every row carries it: a row is never sent to another one, whatever its file says."""
    return check_of(home.encode("utf-8", "surrogatepass")).hex()[:16]


def encode_head(row: PendingRow, home: str | None = None) -> bytes:
    """The head as JSON; ASCII, so that any id (lone surrogates, NUL) survives."""
    head = {
        "n": row.seq,
        "kind": row.kind,
        "thread": row.thread,
        "id": row.id,
        "stamp": row.stamp,
        "iteration": row.iteration,
        "tenant": row.tenant,
        "saved_at": row.saved_at,
        "size": row.size,
    }
    if home is not None:
        head["home"] = home_mark(home)
    return _json(head).encode()


def decode_head(seq: int, head: object, check: object, mark: object, home: str | None = None) -> PendingRow:
    """The row behind a head that was read; raises :class:`RowDamaged`, also for a row of another ``home``."""
    if not isinstance(head, bytes) or check != check_of(head):
        raise RowDamaged("its head is not what was written (checksum)")
    found = json.loads(head)
    if found["n"] != seq:
        raise RowDamaged("it stands in another row's place")
    if home is not None and found.get("home", home_mark(home)) != home_mark(home):
        raise RowDamaged("it belongs to another far store")
    return PendingRow(
        seq,
        found["kind"],
        found["thread"],
        found["id"],
        found["stamp"],
        iteration=found["iteration"],
        # Any doubt means that the far store may have heard of it: then nothing cancels out.
        attempted=mark not in (0, SUPERSEDED),
        superseded=mark == SUPERSEDED,
        tenant=found["tenant"],
        saved_at=found["saved_at"],
        size=found["size"],
    )
