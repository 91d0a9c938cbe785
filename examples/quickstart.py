"""An agent whose conversation outlives the process: memory in front of a directory, and S3 behind both if asked.

    python examples/quickstart.py
    python examples/quickstart.py --bucket agents     # a third tier; credentials are found as boto3 finds them

The second life starts with nothing but what the first one left behind: its own agent, its own stack, and, with a
bucket, an empty directory, as on another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
from uuid import uuid4

from locus.agent import Agent
from locus.memory.checkpointer import BaseCheckpointer
from locus.testing import ScriptedModel

from locus_tiered import BoundedMemoryCheckpointer, DirectoryCheckpointer, TieredCheckpointer


def build(directory: str, bucket: str | None) -> TieredCheckpointer:
    """Nearest first; the last tier is home: it holds everything and its word is the truth."""
    tiers: list[BaseCheckpointer] = [BoundedMemoryCheckpointer(max_bytes="256MiB"), DirectoryCheckpointer(directory)]
    if bucket is not None:
        from locus.memory.backends.s3 import S3Backend

        tiers.append(S3Backend(bucket=bucket))
    return TieredCheckpointer(*tiers)


async def live(checkpointer: TieredCheckpointer, thread_id: str, prompt: str, reply: str) -> None:
    """One process: an agent that knows of earlier turns only what its checkpointer gives it."""
    model = ScriptedModel([reply])  # any model of the SDK; this one needs no key
    agent = Agent(model=model, checkpointer=checkpointer, context_window=8_000)
    print(checkpointer)
    answer = await agent.arun(prompt, thread_id=thread_id)
    seen = [message.content for message in model.received_messages[0] if message.role != "system"]
    print(f"  the model was given {seen}\n  and answered {answer.message!r}")
    await checkpointer.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description="an agent, a restart, and the conversation going on")
    arguments.add_argument("--bucket", help="an S3 bucket as the third tier")
    bucket = arguments.parse_args().bucket
    thread_id = f"ada-{uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as elsewhere:
        asyncio.run(live(build(here, bucket), thread_id, "My name is Ada.", "Hello, Ada."))
        print("-- the process ends; another one begins --")
        again = here if bucket is None else elsewhere
        asyncio.run(live(build(again, bucket), thread_id, "What is my name?", "Your name is Ada."))


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    main()
