"""The two sides of the comparison: an agent on ``S3Backend`` alone, and on a stack whose last tier it is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from locus.core.state import AgentState
from locus.memory.backends.s3 import S3Backend
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.demo.agents import agent_on, answer, prompt, turn
from locus_tiered.demo.meters import Requests, Traffic, Waited
from locus_tiered.layers.tiered import Tier, TieredCheckpointer
from locus_tiered.stores.directory import DirectoryCheckpointer
from locus_tiered.stores.memory import BoundedMemoryCheckpointer
from locus_tiered.testing.services import SeaweedFS

__all__ = ["NAMES", "Side", "TurnCost", "both_sides", "make_stack", "quick_turns_lost", "take_turn"]

NAMES = ("S3Backend alone", "memory > directory > S3")

Make = Callable[[S3Backend, Path], BaseCheckpointer]


def make_stack(s3: S3Backend, directory: Path) -> TieredCheckpointer:
    """The stack of the demo."""
    return TieredCheckpointer(BoundedMemoryCheckpointer("64MiB"), DirectoryCheckpointer(directory), Tier(s3, name="s3"))


_MAKERS: dict[str, Make] = {NAMES[0]: lambda s3, _: s3, NAMES[1]: make_stack}


@dataclass(frozen=True, slots=True)
class TurnCost:
    """What one turn took: traffic to S3, and the seconds that the agent waited for its checkpointer."""

    traffic: Traffic
    waited: float


@dataclass(slots=True)
class Side:
    """One side: its checkpointer, what it has cost so far, and how somebody else would come to the same data."""

    name: str
    checkpointer: Waited
    requests: Requests
    newcomer: Callable[[Path], BaseCheckpointer]
    turns: list[TurnCost] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)


@contextlib.asynccontextmanager
async def both_sides(server: SeaweedFS, directory: Path) -> AsyncIterator[list[Side]]:
    """Both sides, each on a bucket of its own that already exists."""
    async with contextlib.AsyncExitStack() as closing:
        sides = []
        for number, (name, make) in enumerate(_MAKERS.items()):
            client = closing.enter_context(contextlib.closing(server.client()))
            bucket = server.bucket_name()

            def reach(bucket: str = bucket, client: object = client) -> S3Backend:
                return server.backend(bucket=bucket, _client=client)

            def newcomer(near: Path, make: Make = make, reach: Callable[[], S3Backend] = reach) -> BaseCheckpointer:
                return make(reach(), near)

            s3 = reach()
            await s3.save(AgentState(), "before everything")  # makes the bucket
            checkpointer = Waited(make(s3, directory / f"near-{number}"))
            closing.push_async_callback(checkpointer.close)
            sides.append(Side(name, checkpointer, Requests(client), newcomer))
        yield sides


async def take_turn(side: Side, thread: str, number: int, tool_calls: int) -> TurnCost:
    """Let an agent take one turn on this side."""
    traffic, waited = side.requests.so_far(), side.checkpointer.seconds
    agent = agent_on(side.checkpointer, turn(number, tool_calls))
    result = await agent.arun(prompt(number, tool_calls), thread_id=thread)
    if result.text != answer(number):
        raise RuntimeError(f"{side.name}: the agent answered {result.text!r}")
    return TurnCost(side.requests.so_far() - traffic, side.checkpointer.seconds - waited)


async def quick_turns_lost(side: Side, thread: str, near: Path) -> bool:
    """Take two turns of one call right after each other; whether somebody who comes new misses the second.

    ``near`` is an empty directory for the newcomer's own tiers.
    """
    for number in (1, 2):
        await take_turn(side, thread, number, 1)
    newcomer = side.newcomer(near)
    found = await newcomer.load(thread)
    await newcomer.close()
    return found is None or answer(2) not in [message.content for message in found.messages]
