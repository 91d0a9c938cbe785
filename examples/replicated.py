"""Three stores as one: one of them is lost in the middle of a conversation, and comes back empty.

python examples/replicated.py
"""

from __future__ import annotations

import asyncio
import logging

from locus.agent import Agent
from locus.memory.checkpointer import BaseCheckpointer
from locus.testing import ScriptedModel

from locus_tiered import BoundedMemoryCheckpointer, ReplicatedCheckpointer, TieredCheckpointer
from locus_tiered.testing import FaultyCheckpointer

THREAD = "ada"


async def say(checkpointer: BaseCheckpointer, message: str, answer: str) -> str:
    agent = Agent(model=ScriptedModel([answer]), checkpointer=checkpointer, context_window=8_000)
    return (await agent.arun(message, thread_id=THREAD)).message


async def main() -> None:
    logging.disable(logging.WARNING)
    paris, tokyo, lima = (FaultyCheckpointer() for _ in range(3))
    replicas = ReplicatedCheckpointer(paris, tokyo, lima, names=["paris", "tokyo", "lima"], read="quorum")
    async with TieredCheckpointer(BoundedMemoryCheckpointer(), replicas) as stack:
        print(await say(stack, "My name is Ada.", "Hello, Ada."))
        tokyo.partition()
        print(await say(stack, "Do you still hear me?", "Yes, without Tokyo."))
        tokyo.heal()
        await replicas.deliver()
        same = await tokyo.list_checkpoints(THREAD) == await paris.list_checkpoints(THREAD)
        print(f"Tokyo is back and has {'what Paris has' if same else 'something else'}")

        await lima.delete(THREAD)  # a disk that was replaced
        print(await say(stack, "Do you remember me?", "Of course, Ada."))
        report = await replicas.scrub()
        print(f"scrub: {report.copied} checkpoints copied, in step: {report.in_step}")


if __name__ == "__main__":
    asyncio.run(main())
