"""What the object store hears of a turn with a journal in front of it, and what becomes of a turn while it is down.

    python examples/write_behind.py

The same agent, with the same five tool calls, saves to the store alone, then with a journal that acknowledges the steps
of a turn (``ack="turn"``), then with one that acknowledges everything (``ack="journal"``). At the end the store is cut
off, and the agent goes on.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path

from locus.agent import Agent
from locus.memory.checkpointer import BaseCheckpointer
from locus.testing import ScriptedModel, tool_call
from locus.tools import tool

from locus_tiered import BoundedMemoryCheckpointer, Tier, TieredCheckpointer, WriteBehindCheckpointer
from locus_tiered.testing import FaultyCheckpointer

CALLS = 5
THREAD = "ada"


@tool
def look_up(order: str) -> str:
    """Where an order is."""
    return f"order {order} leaves the warehouse today"


async def turn(checkpointer: BaseCheckpointer, question: str) -> str:
    model = ScriptedModel([*(tool_call("look_up", order=str(number)) for number in range(CALLS)), "All leave today."])
    agent = Agent(model=model, tools=[look_up], checkpointer=checkpointer, context_window=8_000)
    return (await agent.arun(question, thread_id=THREAD)).message


def heard(store: FaultyCheckpointer) -> str:
    return f"{store.count('save')} saves and {store.count('delete')} deletes"


async def main() -> None:
    logging.disable(logging.WARNING)  # the outage below is announced in the log
    with tempfile.TemporaryDirectory() as folder:
        bare = FaultyCheckpointer()
        await turn(bare, "Where are my orders?")
        print(f"the store alone hears of {heard(bare)}")

        store = FaultyCheckpointer()
        stack = TieredCheckpointer(
            BoundedMemoryCheckpointer(), Tier(store, name="store", write="behind"), journal=Path(folder, "turn")
        )
        async with stack:
            await turn(stack, "Where are my orders?")
        print(f'with ack="turn" it hears of {heard(store)}')

        store = FaultyCheckpointer()
        home = WriteBehindCheckpointer(store, journal=Path(folder, "journal"), ack="journal", drain_timeout=1.0)
        stack = TieredCheckpointer(BoundedMemoryCheckpointer(), home, latest="exclusive")
        async with stack:
            await turn(stack, "Where are my orders?")
            await home.flush()
            print(f'with ack="journal" it hears of {heard(store)}, later')

            store.partition()
            answer = await turn(stack, "And now, while the store is down?")
            print(f"while it is down: {answer!r}, {home.pending().rows} row pending")
            store.heal()
            await home.flush()
            print(f"when it is back: {home.pending().rows} rows pending, {heard(store)} in all")


if __name__ == "__main__":
    asyncio.run(main())
