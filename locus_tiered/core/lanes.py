"""One call in flight per thread and backend, first in first out (law 14), and calls that outlive their caller.

A call that changes something runs in a task of its own. When its caller is cancelled, the caller leaves at
once and the call is *abandoned*: it goes on to its end, and its lane stays closed to further changes until
then, so that a late write never lands on top of a newer one (law 9). Reads do not wait for an abandoned call:
what it writes was never acknowledged.

:class:`PerLoop` keeps one value per running event loop, made on first use (law 10).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from locus_tiered.core.logs import logger_for

__all__ = ["Lanes", "PerLoop"]

logger = logger_for(__name__)

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value per event loop, made by ``factory`` on first use in it, dropped with the loop."""

    def __init__(self, factory: Callable[[], T]) -> None:
        self._factory = factory
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()
        self._last: tuple[Callable[[], asyncio.AbstractEventLoop | None], T] | None = None

    def get(self) -> T:
        """The running loop's value."""
        loop = asyncio.get_running_loop()
        last = self._last
        if last is not None and last[0]() is loop:
            return last[1]
        value = self._values.get(loop)
        if value is None:
            value = self._values[loop] = self._factory()
        self._last = (ref(loop), value)
        return value

    def drop(self) -> None:
        """Forget the running loop's value."""
        self._last = None
        self._values.pop(asyncio.get_running_loop(), None)


class _Lane:
    __slots__ = ("abandoned", "busy", "waiting")

    def __init__(self) -> None:
        self.busy = False
        self.abandoned = 0
        self.waiting: deque[tuple[asyncio.Future[None], bool]] = deque()

    @property
    def idle(self) -> bool:
        return not self.busy and not self.abandoned and not self.waiting

    def wake(self) -> None:
        """Let the first one in that may go."""
        place = 0
        while not self.busy and place < len(self.waiting):
            future, changes = self.waiting[place]
            if self.abandoned and changes:
                place += 1
                continue
            del self.waiting[place]
            if not future.done():
                self.busy = True
                future.set_result(None)


class Lanes:
    """The lanes of one backend, in any number of event loops."""

    def __init__(self) -> None:
        self._lanes: PerLoop[dict[Hashable, _Lane]] = PerLoop(dict)
        self._tasks: PerLoop[set[asyncio.Task[Any]]] = PerLoop(set)

    async def read(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> T:
        """Run ``call`` in the lane, in the caller's own task."""
        lanes = self._lanes.get()
        lane = await self._enter(lanes, key, changes=False)
        try:
            return await call()
        finally:
            self._leave(lanes, key, lane)

    async def change(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``call`` in the lane, in a task of its own that survives the caller's cancellation."""
        lanes, tasks = self._lanes.get(), self._tasks.get()
        lane = await self._enter(lanes, key, changes=True)
        task = asyncio.get_running_loop().create_task(call())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            result = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.done():
                if not task.cancelled():
                    task.exception()  # seen; the caller is leaving and hears of its own cancellation
                self._leave(lanes, key, lane)
            else:
                self._abandon(lanes, key, lane, task)
            raise
        except BaseException:
            self._leave(lanes, key, lane)
            raise
        self._leave(lanes, key, lane)
        return result

    @property
    def running(self) -> int:
        """Calls of this loop that change something and have not ended, abandoned ones included."""
        return len(self._tasks.get())

    async def settle(self, timeout: float) -> int:
        """Wait up to ``timeout`` seconds for this loop's calls to end, those that wait in a lane included.

        Answers how many have not.
        """
        tasks, lanes, loop = self._tasks.get(), self._lanes.get(), asyncio.get_running_loop()
        deadline = loop.time() + timeout

        def waiting() -> int:
            return sum(len(lane.waiting) for lane in lanes.values())

        while (tasks or waiting()) and loop.time() < deadline:
            if tasks:
                await asyncio.wait(set(tasks), timeout=deadline - loop.time())
            # Who waited in the lane begins now; where nobody does, it is a read that they wait for.
            await asyncio.sleep(0 if tasks else 0.01)
        return len(tasks) + waiting()

    @staticmethod
    async def _enter(lanes: dict[Hashable, _Lane], key: Hashable, *, changes: bool) -> _Lane:
        lane = lanes.get(key)
        if lane is None:
            lane = lanes[key] = _Lane()
        if not lane.busy and not lane.waiting and not (changes and lane.abandoned):
            lane.busy = True
            return lane
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lane.waiting.append((future, changes))
        if not lane.busy:
            lane.wake()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                Lanes._leave(lanes, key, lane)  # the turn had come: pass it on
            else:
                lane.waiting = deque(entry for entry in lane.waiting if entry[0] is not future)
                Lanes._tidy(lanes, key, lane)
            raise
        return lane

    @staticmethod
    def _leave(lanes: dict[Hashable, _Lane], key: Hashable, lane: _Lane) -> None:
        lane.busy = False
        lane.wake()
        Lanes._tidy(lanes, key, lane)

    @staticmethod
    def _tidy(lanes: dict[Hashable, _Lane], key: Hashable, lane: _Lane) -> None:
        if lane.idle and lanes.get(key) is lane:
            del lanes[key]

    @staticmethod
    def _abandon(lanes: dict[Hashable, _Lane], key: Hashable, lane: _Lane, task: asyncio.Task[Any]) -> None:
        lane.busy = False
        lane.abandoned += 1
        lane.wake()

        def ended(done: asyncio.Task[Any]) -> None:
            lane.abandoned -= 1
            lane.wake()
            Lanes._tidy(lanes, key, lane)
            if not done.cancelled() and (error := done.exception()) is not None:
                logger.warning("a call whose caller had left failed afterwards: %s", type(error).__name__)

        task.add_done_callback(ended)
