"""One deadline for a whole operation, shared by the layers that it passes through.

The outermost layer that has one sets it; a layer further in may only make it sooner. It travels in a context
variable, so that it also reaches what runs in tasks. :func:`timed` bounds one attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar, Token
from typing import Any, Generic, TypeVar

from locus_tiered.core.clock import Clock

__all__ = ["begin", "end", "forget", "remaining", "timed"]

T = TypeVar("T")

_deadline: ContextVar[float | None] = ContextVar("locus_tiered_deadline", default=None)


def begin(seconds: float, clock: Clock) -> Token[float | None]:
    """Set a deadline of so many seconds from now, unless the outer one is sooner; :func:`end` takes it back."""
    outer, mine = _deadline.get(), clock.monotonic() + seconds
    return _deadline.set(mine if outer is None or mine < outer else outer)


def end(token: Token[float | None]) -> None:
    """Go back to what held before :func:`begin`."""
    try:
        _deadline.reset(token)
    except ValueError:
        pass  # the call was dropped with its loop, and is closed in a context that never had the deadline


def forget() -> None:
    """Have no deadline from here on: what runs in the background must not end with the call that caused it."""
    _deadline.set(None)


def remaining(clock: Clock) -> float | None:
    """Seconds left, never below 0; ``None`` when there is no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - clock.monotonic())


async def timed(call: Coroutine[Any, Any, T], seconds: float) -> T:
    """``asyncio.timeout`` around ``call``, without a timer for a call that never waits.

    Everything runs in the caller's own task. Raises :class:`TimeoutError` when the time is over.
    """
    steps = call.__await__()
    try:
        first = next(steps)
    except StopIteration as done:
        result: T = done.value
        return result
    async with asyncio.timeout(seconds):
        return await _Rest(steps, first)


class _Rest(Generic[T]):
    """What remains of a coroutine whose first step was taken."""

    __slots__ = ("_first", "_steps")

    def __init__(self, steps: Generator[Any, Any, T], first: Any) -> None:
        self._steps, self._first = steps, first

    def __await__(self) -> Generator[Any, Any, T]:
        waiting_on = self._first
        while True:
            problem: BaseException | None = None
            sent = None
            try:
                sent = yield waiting_on
            except GeneratorExit:
                self._steps.close()
                raise
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
                problem = error
            try:
                waiting_on = self._steps.send(sent) if problem is None else self._steps.throw(problem)
            except StopIteration as done:
                result: T = done.value
                return result
