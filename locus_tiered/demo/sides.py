"""The sides of the comparison: an agent on ``S3Backend`` alone, and on stacks that write behind to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from locus.core.state import AgentState
from locus.memory.backends.s3 import S3Backend
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.demo.agents import agent_on, answer, prompt, turn
from locus_tiered.demo.meters import Requests, Traffic, Waited
from locus_tiered.layers.tiered import Tier, TieredCheckpointer
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.stores.memory import BoundedMemoryCheckpointer
from locus_tiered.testing.services import SeaweedFS

__all__ = [
    "NAMES",
    "Side",
    "TurnCost",
    "all_sides",
    "behind",
    "knows",
    "make_stack",
    "quick_turns_lost",
    "settled",
    "speak",
    "take_turn",
]

NAMES = ("S3Backend alone", "ack=turn", "ack=journal")

Make = Callable[[S3Backend, Path], BaseCheckpointer]


def make_stack(s3: S3Backend, directory: Path, ack: Literal["turn", "journal"] = "turn") -> TieredCheckpointer:
    """A stack of the demo, with its journal in ``directory``.

    With ``ack="turn"`` other processes may write to its threads; with ``"journal"`` it is their only writer.
    """
    return TieredCheckpointer(
        BoundedMemoryCheckpointer("64MiB"),
        Tier(s3, name="s3", write="behind", ack=ack),
        latest="exclusive" if ack == "journal" else "validate",
        journal=directory / "journal",
    )


_MAKERS: dict[str, Make] = {
    NAMES[0]: lambda s3, _: s3,
    NAMES[1]: make_stack,
    NAMES[2]: lambda s3, directory: make_stack(s3, directory, "journal"),
}


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


def behind(side: Side) -> WriteBehindCheckpointer | None:
    """The layer of a side that writes behind, if it does."""
    stack = side.checkpointer.inner
    home = stack.home if isinstance(stack, TieredCheckpointer) else None
    return home if isinstance(home, WriteBehindCheckpointer) else None


@contextlib.asynccontextmanager
async def all_sides(server: SeaweedFS, directory: Path) -> AsyncIterator[list[Side]]:
    """All sides, each on a bucket of its own that already exists."""
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


async def speak(side: Side, thread: str, number: int, tool_calls: int) -> float:
    """Let an agent take one turn on this side; the seconds that it waited."""
    waited = side.checkpointer.seconds
    agent = agent_on(side.checkpointer, turn(number, tool_calls))
    result = await agent.arun(prompt(number, tool_calls), thread_id=thread)
    if result.text != answer(number):
        raise RuntimeError(f"{side.name}: the agent answered {result.text!r}")
    return side.checkpointer.seconds - waited


async def settled(side: Side) -> None:
    """Wait until nothing is pending any more."""
    layer = behind(side)
    if layer is not None:
        await layer.flush()


async def take_turn(side: Side, thread: str, number: int, tool_calls: int) -> TurnCost:
    """Let an agent take one turn; the traffic is all that it causes, also what is sent after it."""
    traffic = side.requests.so_far()
    waited = await speak(side, thread, number, tool_calls)
    await settled(side)
    return TurnCost(side.requests.so_far() - traffic, waited)


async def knows(newcomer: BaseCheckpointer, thread: str, number: int) -> bool:
    """Whether somebody who comes new finds this turn's answer in the newest state; closes him."""
    found = await newcomer.load(thread)
    await newcomer.close()
    return found is not None and answer(number) in [message.content for message in found.messages]


async def quick_turns_lost(side: Side, thread: str, near: Path) -> bool:
    """Take two turns of one call right after each other; whether somebody who comes new misses the second.

    ``near`` is an empty directory for the newcomer's own files.
    """
    for number in (1, 2):
        await speak(side, thread, number, 1)
    await settled(side)
    return not await knows(side.newcomer(near), thread, 2)
