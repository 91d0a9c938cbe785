"""The base of every layer and store that stamps saves: the save is *frozen* once, at the outermost of them.

Freezing encodes the state, settles what the backend's own normaliser would change, issues the stamp and fixes
the id. Everything below handles the same immutable :class:`Checkpoint`.
"""

from __future__ import annotations

from dataclasses import replace
from types import EllipsisType

from cachetools import LRUCache
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.checkpoint import Body, Checkpoint, Entry, plain_metadata
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import BackendError
from locus_tiered.core.flights import Flights
from locus_tiered.core.layer import DispatchingLayer
from locus_tiered.core.operations import Delete, Head, Save
from locus_tiered.core.stamp import StampClock, is_stamp

__all__ = ["OrderingLayer", "scoped_key"]


def scoped_key(thread_id: str, tenant: str | None) -> str:
    """A thread and its tenant (``None``: the usual one) as one key; no two pairs share one."""
    if tenant is not None:
        return f"\x1f{len(tenant)}\x1f{tenant}{thread_id}"
    return f"\x1f0\x1f{thread_id}" if thread_id.startswith("\x1f") else thread_id


class OrderingLayer(DispatchingLayer, base=True):
    """A layer that brings its own order of saves."""

    orders = True

    def __init__(
        self, inner: BaseCheckpointer | EllipsisType = ..., *, name: str | None = None, clock: Clock = SYSTEM
    ) -> None:
        super().__init__(inner, name=name)
        self._clock = clock
        self._stamps = StampClock(clock)
        self._looks: Flights[None] = Flights()
        # Per thread: the last delete that went higher than its call, from where to where.
        self._raised: LRUCache[str, tuple[str, str]] = LRUCache(4096)
        self._partition = self.traits.partition

    def _scoped(self, thread_id: str) -> str:
        """The thread's key in everything that this process keeps: tenants of one backend never meet in it."""
        return scoped_key(thread_id, None if self._partition is None else self._partition(thread_id))

    async def freeze(self, operation: Save) -> Save:
        if operation.checkpoint is not None:
            return operation
        thread_id, state = operation.thread_id, operation.state
        metadata = plain_metadata(operation.metadata)
        normalise = self.traits.normalise
        if normalise is not None and isinstance(state, AgentState):
            state = normalise(state)
        body = await Body.of(state)
        wanted = operation.checkpoint_id
        stamped = wanted is not None and is_stamp(wanted)
        # A stamp from outside: of a stack further out, or of a checkpoint that is saved again; home knows which.
        key = await self._look(thread_id, again=stamped)
        if wanted is not None and stamped and self._stamps.adopt(key, wanted):
            stamp = wanted
        else:
            stamp = self._stamps.issue(key)
        checkpoint = Checkpoint(thread_id, wanted or stamp, stamp, metadata, body)
        return Save(thread_id, None, checkpoint.id, None, checkpoint, operation.iteration)

    def _dated(self, operation: Delete) -> Delete:
        """The delete with the moment of its call, taken before it waits for anything."""
        if operation.stamp is not None:
            return operation
        return replace(operation, stamp=self._stamps.reserve(self._scoped(operation.thread_id)))

    def _raise_delete(self, key: str, asked: str, stamp: str) -> str:
        """Have a delete go to ``stamp``, which may be above that of its call, for what it is to cover lies there."""
        if stamp > asked:
            self._raised[key] = (asked, stamp)
        return stamp

    def _lifted(self, key: str, operation: Save) -> Save:
        """A save whose turn has come: if it was called after a delete that then had to go above it, it goes higher."""
        checkpoint = operation.checkpoint
        asked, raised = self._raised.get(key, ("", ""))
        if checkpoint is None or checkpoint.stamp is None or not asked < checkpoint.stamp <= raised:
            return operation
        return replace(operation, checkpoint=checkpoint.moved(stamp=self._stamps.issue(key)))

    async def _look(self, thread_id: str, *, again: bool = False) -> str:
        """Know the thread's newest stamp before the first one is issued in it; answers the thread's key.

        ``again=True`` looks even if this process has looked before: another one may have saved since.
        """
        key = self._scoped(thread_id)
        if again or not self._stamps.has_seen(key):
            # One look for all who wait for it, and they go on in the order in which they came.
            await self._looks.join((key, again), lambda: self._see(thread_id, key, again))
        return key

    async def _see(self, thread_id: str, key: str, again: bool) -> None:
        try:
            head = await (self._look_below(thread_id) if again else self.handle(Head(thread_id)))
        except BackendError:
            if not self.saves_without_home:
                raise
            return  # the wall clock orders this save, until home can be looked at
        self._stamps.observe(key, None if head is None else head.stamp)

    async def _look_below(self, thread_id: str) -> Entry | None:
        """The head as whoever holds the truth has it now."""
        return await self.handle(Head(thread_id))

    def _restamped(self, checkpoint: Checkpoint, thread_id: str, key: str) -> Checkpoint:
        """The checkpoint as the newest of another thread; keeps its stamp where that already is greater."""
        stamp = checkpoint.stamp
        if stamp is None or not self._stamps.adopt(key, stamp):
            stamp = self._stamps.issue(key)
        return checkpoint.moved(thread_id=thread_id, stamp=stamp)
