"""What an agent's turn asks of S3 and how long it waits, on ``S3Backend`` alone and with write-behind.

A real agent of the SDK with a scripted model makes ten tool calls per turn, three turns per thread, on a real S3
server that runs for the measurement only; all its checkpointers take turns. Requests are counted until everything
has reached S3, also what was sent after the turn; the time is that during which the agent waited.

The first turn of a thread needs one listing more, because nobody knows yet what the thread holds.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from locus.core.state import AgentState
from locus.memory.backends.s3 import S3Backend
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.timing import turns
from locus_tiered.demo.agents import agent_on, prompt, turn
from locus_tiered.demo.meters import Requests, Waited
from locus_tiered.layers.tiered import Tier, TieredCheckpointer
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.stores.memory import BoundedMemoryCheckpointer
from locus_tiered.testing.services import seaweedfs

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["ALONE", "STACKS", "Contender", "contenders", "measure"]

ALONE = "S3"
CALLS = 10
TURNS = 3  # of a thread


@dataclass(frozen=True, slots=True)
class Stack:
    """A way to write behind, and what is allowed: requests of a turn, and its waiting beside ``S3Backend``'s."""

    name: str
    ack: Literal["turn", "journal"]
    latest: Literal["validate", "exclusive"]
    requests: float | None
    waiting: float | None

    def over(self, s3: S3Backend, directory: Path) -> TieredCheckpointer:
        """The stack: memory in front of S3, written behind."""
        home = Tier(s3, name="s3", write="behind", ack=self.ack)
        return TieredCheckpointer(BoundedMemoryCheckpointer("64MiB"), home, latest=self.latest, journal=directory)


STACKS = (
    Stack("turn", "turn", "validate", 5, 1 / 8),
    Stack("turn, excl.", "turn", "exclusive", 3, 1 / 8),
    Stack("journal", "journal", "validate", None, None),
    Stack("journal, excl.", "journal", "exclusive", 3, 1 / 25),
)


@dataclass(slots=True)
class Contender:
    """A checkpointer under measurement, and the cost of its turns so far."""

    checkpointer: Waited
    requests: Requests
    taken: int = 0
    waited: list[float] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    first_asked: list[int] = field(default_factory=list)

    async def take_turn(self) -> float:
        """Have an agent take one turn, then wait until all of it is in S3; the seconds that the agent waited."""
        thread, number = divmod(self.taken, TURNS)
        requests, seconds = self.requests.so_far(), self.checkpointer.seconds
        agent = agent_on(self.checkpointer, turn(number, CALLS))
        await agent.arun(prompt(number, CALLS), thread_id=f"thread-{thread}")
        waited = self.checkpointer.seconds - seconds
        stack = self.checkpointer.inner
        if isinstance(stack, TieredCheckpointer) and isinstance(stack.home, WriteBehindCheckpointer):
            await stack.home.flush()
        asked = (self.requests.so_far() - requests).total
        self.taken += 1
        self.waited.append(waited)
        (self.asked if number else self.first_asked).append(asked)
        return waited


@contextlib.asynccontextmanager
async def contenders(
    directory: Path, reach: Callable[[], tuple[S3Backend, Any]], stacks: Sequence[Stack] = STACKS
) -> AsyncIterator[dict[str, Contender]]:
    """``S3Backend`` alone and the stacks over it, each on a bucket that exists; ``reach`` makes one and its client."""
    async with contextlib.AsyncExitStack() as closing:
        found = {}
        for stack in (None, *stacks):
            s3, client = reach()
            closing.callback(client.close)
            await s3.save(AgentState(), "before everything")  # makes the bucket
            name = ALONE if stack is None else stack.name
            one: BaseCheckpointer = s3 if stack is None else stack.over(s3, directory / f"journal-{name}")
            closing.push_async_callback(one.close)
            found[name] = Contender(Waited(one), Requests(client))
        yield found


async def measure(settings: Settings) -> list[Figure]:
    """Requests and waiting of every way to write behind, against ``S3Backend``."""
    with seaweedfs() as server:

        def reach() -> tuple[S3Backend, Any]:
            client = server.client()
            return server.backend(_client=client), client

        async with contenders(settings.directory, reach) as found:
            for contender in found.values():
                await contender.take_turn()  # opens what is opened once
            for contender in found.values():
                contender.waited.clear()
                contender.first_asked.clear()
            for name in turns(list(found), settings.pick(30, 2)):
                await found[name].take_turn()
    alone = found[ALONE]
    figures = [_requests(stack, found[stack.name], alone) for stack in STACKS]
    return figures + [_waiting(stack, found[stack.name], alone) for stack in STACKS]


def _requests(stack: Stack, found: Contender, alone: Contender) -> Figure:
    details = {"most": float(max(found.asked)), "turns": float(len(found.asked))}
    if found.first_asked:
        details["first_turn"] = median(found.first_asked)
    return Figure(
        what=f"requests, {stack.name} : {ALONE}",
        unit="requests",
        against="S3Backend",
        sdk=median(alone.asked),
        stack=median(found.asked),
        ratio=median(found.asked) / median(alone.asked),
        budget=None if stack.requests is None else Budget("value", stack.requests),
        details=details,
    )


def _waiting(stack: Stack, found: Contender, alone: Contender) -> Figure:
    pairs = list(zip(found.waited, alone.waited, strict=True))
    return Figure(
        what=f"waiting, {stack.name} : {ALONE}",
        unit="ms",
        against="S3Backend",
        sdk=median(alone.waited) * 1e3,
        stack=median(found.waited) * 1e3,
        ratio=median(one / other for one, other in pairs),
        difference=median(one - other for one, other in pairs) * 1e3,
        budget=None if stack.waiting is None else Budget("ratio", stack.waiting),
        details={"turns": len(pairs), "least": min(found.waited) * 1e3, "sdk_least": min(alone.waited) * 1e3},
    )
