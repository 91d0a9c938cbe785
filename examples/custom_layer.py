"""A layer of one's own: every change that passes through a stack, with how long it took.

    python examples/custom_layer.py

``Audited`` is a whole checkpointer. The thirteen public methods, the checks of arguments, capabilities, ``close()``
and ``async with`` come from ``Layer``; the facts about an operation (its name, its threads, whether it changes
anything) come with the operation.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from time import perf_counter
from typing import TypeVar

from locus.agent import Agent
from locus.testing import ScriptedModel, tool_call
from locus.tools import tool

from locus_tiered import BoundedMemoryCheckpointer, DirectoryCheckpointer, Layer, Operation, Tier, TieredCheckpointer

R = TypeVar("R")


class Audited(Layer):
    async def handle(self, operation: Operation[R]) -> R:
        began = perf_counter()
        try:
            return await self.inner.handle(operation)
        finally:
            if operation.changes:
                took = 1000 * (perf_counter() - began)
                print(f"  {operation.name:<7} {', '.join(operation.threads)}: {took:.1f} ms")


@tool
def look_up(order: str) -> str:
    """Where an order is."""
    return f"order {order} leaves the warehouse today"


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        # Around one tier it sees what reaches that tier; around the whole stack it would see every call.
        home = Tier(Audited(DirectoryCheckpointer(directory)), name="home")
        async with TieredCheckpointer(BoundedMemoryCheckpointer(), home) as stack:
            model = ScriptedModel([tool_call("look_up", order="4821"), "It leaves the warehouse today."])
            agent = Agent(model=model, tools=[look_up], checkpointer=stack, context_window=8_000)
            print("one turn with one tool call, as the home tier sees it:")
            answer = await agent.arun("Where is my order 4821?", thread_id="ada")
            print(answer.message)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(main())
