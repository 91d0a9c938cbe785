"""An asyncio event loop that waits for nothing: when all is quiet, its clock jumps to the next timer.

::

    async def outage() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run_virtual(outage) == 3600.0      # exact, and at once

The clock stands still while code runs. When no callback is ready, the first of these rules that fits decides:

1. **A thread works for the loop**: a call of ``run_in_executor`` (hence ``asyncio.to_thread``, aiofiles, name
   lookups) has not ended, cancelled ones included, or :meth:`VirtualTimeLoop.hold` is in force. The loop waits
   for real, as long as it takes, and the clock stands still: work on threads takes no time at all. A timeout
   never fires because a machine is slow, nor because a thread hangs.
2. **A socket or pipe is watched.** The other end may be about to answer, or it is an idle connection: the loop
   gives it ``grace`` real seconds before it jumps. Without a timer to jump to, it waits for as long as it takes.
3. **There is a timer**: the clock jumps to it, exactly.
4. **There is nothing**: :class:`DeadlockError`, with the list of who waits where, after ``grace`` real seconds
   for a thread that the loop knows nothing of.

Without threads and sockets, a program that takes its chances from a seed runs the same way every time. With
them every moment is the same, and the order within a moment is not: threads end when they end.

What the module does not: know of threads that are not the loop's own (a timer does not wait for their
``call_soon_threadsafe``, unless it is held), make ``time.time`` or ``time.sleep`` virtual, or notice a program
whose timers go on for ever.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from random import Random
from typing import Any, TypeVar, TypeVarTuple

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import LocusTieredError

__all__ = ["EPOCH", "DeadlockError", "VirtualTimeLoop", "run_virtual", "virtual_clock"]

EPOCH = 1_800_000_000.0
"""The wall clock of :func:`virtual_clock` when its loop's time is 0: a day in January 2027."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_Events = list[tuple[selectors.SelectorKey, int]]


class DeadlockError(LocusTieredError):
    """Every task waits, and nothing is left that could wake one. Raised by the loop, not in a task.

    The message names each task and the line on which it waits.
    """


def run_virtual(
    main: Callable[[], Coroutine[Any, Any, _T]] | Coroutine[Any, Any, _T],
    *,
    start: float = 0.0,
    grace: float = 0.1,
) -> _T:
    """As ``asyncio.run``, in a fresh :class:`VirtualTimeLoop`: a coroutine, or a function that returns one.

    The loop's time begins at ``start``. Two runs that are one story to a stack (``Agent.run_sync`` opens a loop
    per call) need a second ``start`` that is not before the end of the first. :class:`DeadlockError` when
    nothing can happen any more; the tasks are then cancelled like after any other error.
    """
    coroutine = main() if callable(main) else main
    if _running_loop() is not None:
        coroutine.close()
        raise RuntimeError("run_virtual() cannot be called from a running event loop")
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(start=start, grace=grace)) as runner:
        return runner.run(coroutine)


def virtual_clock(*, epoch: float = EPOCH, seed: int = 0) -> Clock:
    """A clock for a layer's ``clock=``: the time of the running loop, ``asyncio.sleep``, random bits from ``seed``.

    ``monotonic`` is the loop's time, ``wall`` is ``epoch`` plus the loop's time. On a thread without a loop both
    go by the loop that asked last, or in which the clock was made: also after that loop was closed.
    ``RuntimeError`` when there was none yet. For any loop; exact and repeatable in a :class:`VirtualTimeLoop`.
    """
    now = _LoopTime()
    return Clock(wall=lambda: epoch + now(), monotonic=now, sleep=asyncio.sleep, random_bits=Random(seed).getrandbits)


class _LoopTime:
    def __init__(self) -> None:
        self._last = _running_loop()

    def __call__(self) -> float:
        self._last = _running_loop() or self._last
        if self._last is None:
            raise RuntimeError("a virtual clock has no time before its first running event loop")
        return self._last.time()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop itself, for a runner or fixture of one's own (``loop_factory=VirtualTimeLoop``).

    ``start`` is its time at first; ``grace`` are real seconds, see the rules above.
    """

    # Of the standard library's loop. A timer goes off when it is less than the resolution ahead of the clock.
    _clock_resolution: float
    _default_executor: ThreadPoolExecutor | None
    _scheduled: list[asyncio.TimerHandle]
    _selector: selectors.BaseSelector

    def __init__(self, *, start: float = 0.0, grace: float = 0.1) -> None:
        self._now, self._grace = float(start), grace
        self._busy = 0
        selector = _JumpingSelector(self)
        super().__init__(selector)
        self._own_files = len(selector.get_map())
        self._clock_resolution = math.ulp(self._now)

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._now

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Within, the clock stands still, and waiting is no deadlock: a thread of one's own is at work.

        For the loop's own thread, around what waits for the other one. May be nested.
        """
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    # What may end on another thread

    def run_in_executor(self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """As ever. The call counts as work until ``func`` has ended, however its future ends."""
        if executor is None:
            if self._default_executor is None:
                self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="virtual-time"))
            executor = self._default_executor
        assert executor is not None
        noting = _Noting(executor)
        future = super().run_in_executor(noting, func, *args)
        self._busy += 1
        # After the callback that the line before the last made: the result is on its way when we hear of it.
        noting.submitted.add_done_callback(self._one_has_ended)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """As ever, but for as long as it takes: ``timeout`` would be over at once, or never."""
        with self.hold():
            await super().shutdown_default_executor()

    def _one_has_ended(self, _: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop was closed without waiting for it
            self.call_soon_threadsafe(self._count_down)

    def _count_down(self) -> None:
        self._busy -= 1

    # The rules

    def _wait(self, poll: Callable[[float | None], _Events], timeout: float | None) -> _Events:
        if timeout is not None and timeout <= 0:
            return poll(0)
        if events := poll(0):
            return events
        when = self._scheduled[0].when() if self._scheduled else math.inf
        if self._busy:
            return poll(None)
        if when < math.inf:
            if self._watches_files() and (events := poll(self._grace)):
                return events
            self._now, self._clock_resolution = when, math.ulp(when)
            return []
        if self._watches_files():
            return poll(None)
        if events := poll(self._grace):
            return events
        raise DeadlockError(self._who_waits())

    def _watches_files(self) -> bool:
        return len(self._selector.get_map()) > self._own_files

    def _who_waits(self) -> str:
        tasks = sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())
        lines = [f"  {task.get_name()}: {_place(task)}" for task in tasks]
        what = f"at virtual time {self._now:g} s nothing is ready, no timer is set, no thread is at work"
        return "\n".join([f"deadlock: {what}; still waiting:", *(lines or ["  no task at all"])])


class _JumpingSelector(selectors.DefaultSelector):
    """The place where a loop waits: asks it for how long, or lets it jump."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop: VirtualTimeLoop | None = loop

    def select(self, timeout: float | None = None) -> _Events:
        assert self._loop is not None
        return self._loop._wait(super().select, timeout)

    def close(self) -> None:
        super().close()
        self._loop = None  # a closed loop is not kept alive by the circle of us two


class _Noting(Executor):
    """An executor for one call, which remembers its future."""

    submitted: Future[Any]

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        self.submitted = future = self._inner.submit(fn, *args, **kwargs)
        return future


def _place(task: asyncio.Task[Any], most: int = 3) -> str:
    """Where a task waits: its innermost calls, the last of which is often asyncio's own."""
    awaited: Any = task.get_coro()
    places: list[str] = []
    while awaited is not None:
        # Coroutines, generators and asynchronous generators call the same things by different names.
        for frame, inner in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await")):
            if at := getattr(awaited, frame, None):
                places.append(f"{at.f_code.co_qualname} ({at.f_code.co_filename}:{at.f_lineno})")
                awaited = getattr(awaited, inner)
                break
        else:
            break
    return " > ".join(places[-most:]) or repr(task.get_coro())
