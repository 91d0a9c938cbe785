"""Small parts for the tests of retry and guard: virtual tests, states, stacks over a faulty member."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import GuardedCheckpointer, Layer, Operation, RetryingCheckpointer
from locus_tiered.core.clock import Clock
from locus_tiered.core.deadline import remaining
from locus_tiered.testing.virtual_time import run_virtual, virtual_clock

R = TypeVar("R")


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in virtual time; a task that it leaves behind is a failure."""

    async def alone(*arguments: Any, **options: Any) -> None:
        await test(*arguments, **options)
        await a_moment()
        left = others()
        assert not left, f"left behind: {left}"

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        run_virtual(lambda: alone(*arguments, **options))

    return run


def others() -> set[asyncio.Task[Any]]:
    """The tasks of this loop besides the one that asks."""
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def a_moment(turns: int = 10) -> None:
    """Let whatever is ready go on; no time passes."""
    for _ in range(turns):
        await asyncio.sleep(0)


def now() -> float:
    """The time of the running loop, to a millisecond: a state of a few words gives a save 20 us more."""
    return round(asyncio.get_running_loop().time(), 3)


def state(number: int, **metadata: Any) -> AgentState:
    """A state that is told from others by its ``iteration``."""
    return AgentState(messages=(Message.user(f"message {number}"),), iteration=number, metadata=metadata)


async def latest(checkpointer: BaseCheckpointer, thread: str = "t") -> int | None:
    """The ``iteration`` of the newest state."""
    found = await checkpointer.load(thread)
    return None if found is None else found.iteration


def retrying(inner: BaseCheckpointer, **options: Any) -> RetryingCheckpointer:
    return RetryingCheckpointer(inner, **({"clock": virtual_clock()} | options))


def guarded(inner: BaseCheckpointer, **options: Any) -> GuardedCheckpointer:
    return GuardedCheckpointer(inner, **({"clock": virtual_clock()} | options))


def leg(inner: BaseCheckpointer, *, retry: dict[str, Any] | None = None, **guard: Any) -> RetryingCheckpointer:
    """Retry around guard around ``inner``, as the docs tell everybody to build it."""
    return retrying(guarded(inner, **guard), **(retry or {}))


def fixed_chance(fraction: float) -> Clock:
    """A virtual clock whose random bits are all the same part of their range."""
    clock = virtual_clock()
    return Clock(
        clock.wall, clock.monotonic, clock.sleep, lambda bits: min(int(fraction * (1 << bits)), (1 << bits) - 1)
    )


class Between(Layer):
    """A layer that does what it is told around every call, and notes how much time was left for it."""

    def __init__(
        self,
        inner: BaseCheckpointer,
        before: Callable[[Operation[Any]], Awaitable[None]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(inner)
        self._before, self._clock = before, clock or virtual_clock()
        self.calls: list[Operation[Any]] = []
        self.left: list[float | None] = []

    async def handle(self, operation: Operation[R]) -> R:
        self.calls.append(operation)
        self.left.append(remaining(self._clock))
        if self._before is not None:
            await self._before(operation)
        return await self.inner.handle(operation)


async def outcome(work: Awaitable[Any]) -> Any:
    """What it answered, or what it raised."""
    try:
        return await work
    except (Exception, asyncio.CancelledError) as error:
        return error
