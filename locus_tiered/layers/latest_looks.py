"""What readers without this library see as a thread's newest is looked at soon after the thread was deleted from.

Backends repoint their own newest when something is deleted, and some get it wrong (``S3Backend`` loses a turn that
way). A second after the last delete of a thread the right one is saved again where it is wrong; in a replica that
cannot be asked, later.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from locus_tiered.core import deadline
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.lanes import PerLoop
from locus_tiered.layers.replica import Replica

if TYPE_CHECKING:
    from locus_tiered.layers.replicated import ReplicatedCheckpointer

__all__ = ["LatestLooks"]

_AFTER = 1.0
"""Seconds after the last delete of a thread."""
_AGAIN = 5.0
"""Seconds before a replica is asked again that could not be asked."""
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Look:
    """What is to be looked at, from ``due`` (monotonic seconds) on."""

    thread_id: str
    due: float
    replicas: tuple[Replica, ...]
    compare: bool
    context: Context = field(default_factory=copy_context)
    """Of who deleted: a backend may keep his tenant in it."""


@dataclass(slots=True, eq=False)
class _Here:
    """An event loop's looks, by thread's key, and whether its task runs."""

    waiting: dict[str, _Look] = field(default_factory=dict)
    running: bool = False


class LatestLooks:
    """The looks of one ``ReplicatedCheckpointer``: one task per event loop, however many threads wait."""

    def __init__(self, owner: ReplicatedCheckpointer) -> None:
        self._owner = owner
        self._here: PerLoop[_Here] = PerLoop(_Here)

    def soon(self, thread_id: str, key: str, *, compare: bool) -> None:
        """A thread was deleted from. ``compare``: its replicas are compared then."""
        owner, here = self._owner, self._here.get()
        known = here.waiting.get(key)
        compare = compare or (known is not None and known.compare)
        here.waiting[key] = _Look(thread_id, owner._clock.monotonic() + _AFTER, owner._replicas, compare)
        if not here.running and owner._is_open:  # else what is being cancelled there would begin anew
            here.running = True
            owner._in_background(self._run(here))

    async def _run(self, here: _Here) -> None:
        owner = self._owner
        try:
            while here.waiting:
                now = owner._clock.monotonic()
                due = [key for key, look in here.waiting.items() if look.due <= now]
                if due:
                    await asyncio.gather(*(self._look(here, key) for key in due[:_AT_ONCE]))
                else:
                    first = min(look.due for look in here.waiting.values())
                    await owner._pause(min(first - now, _AFTER))  # what comes meanwhile may be due before it
        finally:
            here.running = False

    async def now(self) -> None:
        """Look at everything that waits in this event loop, once; what cannot be asked is left as it is."""
        here = self._here.get()
        while here.waiting:
            await asyncio.gather(*(self._look(here, key, again=False) for key in list(here.waiting)[:_AT_ONCE]))

    async def _look(self, here: _Here, key: str, *, again: bool = True) -> None:
        look = here.waiting.pop(key, None)
        if look is not None:
            work = self._look_now(here, key, look, again=again)
            await asyncio.get_running_loop().create_task(work, context=look.context.copy())

    async def _look_now(self, here: _Here, key: str, look: _Look, *, again: bool) -> None:
        deadline.forget()
        if look.compare:
            with suppress(LocusTieredError, OSError):
                await self._owner._scrubber.one(look.thread_id)
        later: list[Replica] = []
        for replica in look.replicas:
            if replica.is_resting or replica.is_doubtful(key):
                later.append(replica)
            elif not replica.is_behind(key):  # where it missed something, what is sent or copied is looked at
                try:
                    await replica.flusher.lanes.change(key, partial(replica.check_latest, look.thread_id))
                except (LocusTieredError, OSError) as error:
                    replica.flusher.failed(error)
                    later.append(replica)
        if later and again:
            due = self._owner._clock.monotonic() + _AGAIN
            here.waiting.setdefault(key, _Look(look.thread_id, due, tuple(later), compare=False))
