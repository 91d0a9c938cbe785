"""What a layer that does nothing adds to a call, over a backend that does nothing either.

The first layer over a backend brings its ``Leaf`` along; a second one shows what a layer costs by itself.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.timing import interleave
from locus_tiered.core.layer import Layer
from locus_tiered.core.operations import Operation

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["Constant", "PassThrough", "measure"]

R = TypeVar("R")

_STATE = AgentState(agent_id="bench")
_ID = "one"


class Constant(BaseCheckpointer):
    """A backend that answers at once, and always the same."""

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        return _ID

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return _STATE

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return [_ID]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return True

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return True


class PassThrough(Layer):
    """The least that a layer can be."""

    async def handle(self, operation: Operation[R]) -> R:
        return await self.inner.handle(operation)


_CALLS: dict[str, Callable[[BaseCheckpointer], Callable[[], Awaitable[object]]]] = {
    "save": lambda checkpointer: lambda: checkpointer.save(_STATE, "thread", _ID),
    "load": lambda checkpointer: lambda: checkpointer.load("thread"),
    "exists": lambda checkpointer: lambda: checkpointer.exists("thread"),
    "list": lambda checkpointer: lambda: checkpointer.list_checkpoints("thread"),
}


async def measure(settings: Settings) -> list[Figure]:
    """One layer against the bare backend, and two layers against one, for every call."""
    members: dict[str, BaseCheckpointer] = {
        "backend": Constant(),
        "layer": PassThrough(Constant()),
        "two layers": PassThrough(PassThrough(Constant())),
    }
    first, second = [], []
    for name, bind in _CALLS.items():
        rounds = await interleave(
            {member: bind(checkpointer) for member, checkpointer in members.items()},
            rounds=settings.pick(61, 5),
            calls=settings.pick(2000, 200),
            clock=time.process_time,
        )

        def figure(what: str, more: str, base: str, rounds: Any = rounds) -> Figure:
            return Figure(
                what=what,
                unit="us",
                against=base,
                sdk=rounds.median(base) * 1e6,
                stack=rounds.median(more) * 1e6,
                ratio=rounds.ratio(more, base),
                difference=rounds.difference(more, base) * 1e6,
                budget=Budget("difference", 3),
            )

        first.append(figure(f"{name}, layer : bare backend", "layer", "backend"))
        second.append(figure(f"{name}, two layers : one", "two layers", "layer"))
    return first + second
