"""Tombstones: that a thread, or a checkpoint, was deleted, told to whoever replays old writes.

A process that crashed left writes in its journal. Before they are sent, possibly days later, somebody must know
what was deleted meanwhile by others (law 4). So a delete leaves a tombstone in the far store itself, in a thread that
belongs to the stack (``core/ids.py``: ``RESERVED``) and is hidden from every listing: one small checkpoint, whose
stamp is the moment of the delete. A write that is older than that stays buried.

Tombstones are kept for ``KEPT_DAYS``; older writes of a former process are not replayed at all, but put among the
dead letters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

from locus.core.state import AgentState

from locus_tiered.core.capabilities import SINGLE_DELETES
from locus_tiered.core.checkpoint import Body, Checkpoint, Entry
from locus_tiered.core.clock import Clock
from locus_tiered.core.ids import KEPT_DAYS, RESERVED
from locus_tiered.core.layer import MOST, Layer
from locus_tiered.core.operations import Delete, Exists, ListCheckpoints, Load, Save
from locus_tiered.core.stamp import stamp_seconds
from locus_tiered.core.units import DAY

__all__ = ["TOMBSTONES", "Names", "Tombstones", "buries", "graves_of", "may_bury"]

TOMBSTONES = f"{RESERVED}tombstones"
"""The thread in which they are."""

Names = frozenset[str]
"""The names of tombstones, which tell only of threads and checkpoints that are asked for."""

_FEW = 2  # names that are asked for one by one rather than looked for in the list of all


def _name(thread_id: str, checkpoint_id: str | None) -> str:
    digest = hashlib.blake2b(digest_size=20, person=b"locus-tiered")
    for part in (thread_id, checkpoint_id):
        raw = b"" if part is None else part.encode("utf-8", "surrogatepass")
        digest.update((b"-" if part is None else b"%d:" % len(raw)) + raw)
    return f"gone-{digest.hexdigest()}"


class Tombstones:
    """The tombstones in one far store. With ``tidies``, those that nobody needs are removed once a day.

    ``heard`` is told of each that is found: the thread, the checkpoint (``None``: all of them), and the stamp.
    """

    def __init__(
        self,
        inner: Layer,
        clock: Clock,
        *,
        tidies: bool = True,
        heard: Callable[[str, str | None, str], None] = lambda *_: None,
    ) -> None:
        self._inner, self._clock, self._heard = inner, clock, heard
        # A backend that prunes would keep only the last few of one thread.
        self._apart = inner.traits.prunes
        self._lists_few = inner.traits.lists_at_most is not None
        self._tidies = tidies
        self._tidied_at: float | None = None

    def _place(self, name: str) -> str:
        return f"{TOMBSTONES}.{name}" if self._apart else TOMBSTONES

    async def lay(self, thread_id: str, checkpoint_id: str | None, stamp: str, *, late: bool = False) -> None:
        """Note that the thread (or one checkpoint of it) was deleted at ``stamp``.

        ``late``: that was some time ago, so another process may have left a newer tombstone, which then stays.
        """
        if late and (await self.among([(thread_id, checkpoint_id)])).get((thread_id, checkpoint_id), "") >= stamp:
            return
        name = _name(thread_id, checkpoint_id)
        body = await Body.of(AgentState(metadata={"tombstone": stamp}))
        checkpoint = Checkpoint(self._place(name), name, stamp, {}, body)
        await self._inner.handle(Save(checkpoint.thread_id, None, name, None, checkpoint))
        now = self._clock.monotonic()
        if self._tidies and (self._tidied_at is None or now - self._tidied_at >= DAY):
            self._tidied_at = now
            await self.tidy()

    async def among(self, asked: Iterable[tuple[str, str | None]]) -> dict[tuple[str, str | None], str]:
        """The stamps of the tombstones that there are for these threads and checkpoints."""
        wanted = {_name(*each): each for each in asked}
        if self._apart or self._lists_few or len(wanted) <= _FEW:
            there = [name for name in wanted if await self._inner.handle(Exists(self._place(name), name))]
        else:
            listed = await self._inner.handle(ListCheckpoints(TOMBSTONES, MOST))
            there = [entry.id for entry in listed if entry.id in wanted]
        found = {}
        for name in there:
            tombstone = await self._inner.handle(Load(self._place(name), name))
            if tombstone is not None and tombstone.stamp is not None:
                found[wanted[name]] = tombstone.stamp
                self._heard(*wanted[name], tombstone.stamp)
        return found

    async def names(self) -> Names:
        """What :func:`may_bury` looks in: the names of all that there are, from one list."""
        if self._apart:
            return frozenset()
        return frozenset(entry.id for entry in await self._inner.handle(ListCheckpoints(TOMBSTONES, MOST)))

    async def tidy(self) -> None:
        """Remove those that nobody needs any more, where the store can delete one by one."""
        if self._apart or not self._inner.explain()[SINGLE_DELETES]:
            return
        before = self._clock.wall() - KEPT_DAYS * DAY
        for entry in await self._inner.handle(ListCheckpoints(TOMBSTONES, MOST, ordered=True)):
            if entry.stamp is not None and stamp_seconds(entry.stamp) < before:
                await self._inner.handle(Delete(TOMBSTONES, entry.id))


def graves_of(thread_id: str, entries: Iterable[Entry]) -> list[tuple[str, str | None]]:
    """Where tombstones for these checkpoints would be: one may be for the whole thread."""
    return [(thread_id, None), *((thread_id, entry.id) for entry in entries)]


def may_bury(names: Names, thread_id: str, checkpoint_id: str | None) -> bool:
    """Whether one of these tombstones is for the checkpoint (``None``: the thread); it may have been saved since."""
    return bool(names) and _name(thread_id, checkpoint_id) in names


def buries(gone: Mapping[tuple[str, str | None], str], thread_id: str, entry: Entry) -> bool:
    """Whether a tombstone buries a checkpoint. One without a stamp is older than any tombstone that there is."""
    deleted = max(gone.get((thread_id, None), ""), gone.get((thread_id, entry.id), ""))
    return bool(deleted) and (entry.stamp or "") <= deleted
