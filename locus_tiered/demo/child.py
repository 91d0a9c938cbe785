"""A process with an agent on the stack: ``python -m locus_tiered.demo.child``, told what to do by ``crash.py``.

It reads its configuration as one line of JSON, and writes one JSON object per event. It ends when its standard
input does, so it never outlives the demo.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from locus import tool
from locus.core.messages import Role
from locus.core.state import AgentState
from locus.memory.backends.s3 import S3Backend
from locus.testing import text

from locus_tiered.demo.agents import agent_on, calls
from locus_tiered.demo.crash import THREAD
from locus_tiered.demo.sides import make_stack

_TURNS = (
    ("I am Ada, and I wait for ten parcels.", "Noted, Ada."),
    ("Where are they?", "All ten of them arrive on Thursday, Ada."),
)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


async def _outlive_nobody() -> None:
    await asyncio.to_thread(sys.stdin.read)
    os._exit(1)


def _tool(stop_at: int | None) -> Any:
    """The demo's tool, which says that it was called; in the call ``stop_at`` it works until the process dies."""

    @tool
    async def look_up(order: str) -> str:
        """Look up where an order is."""
        number = int(order.removeprefix("ord-"))
        _say(call=number)
        if number == stop_at:
            await _outlive_nobody()
        return f"{order}: expected on Thursday."

    return look_up


def _remembered(state: AgentState, seconds: float) -> dict[str, Any]:
    """What a loaded state knows of the conversation, and which results it has of the turn that was cut off."""
    spoken = [m.content for m in state.messages if m.role in (Role.USER, Role.ASSISTANT) and m.content]
    results = [
        int(message.tool_call_id.rpartition("call")[2])
        for message in state.messages
        if message.role == Role.TOOL and message.tool_call_id is not None and message.tool_call_id.startswith("turn2")
    ]
    return {"conversation": spoken, "results": results, "seconds": seconds}


async def main() -> None:
    """Begin two turns, or go on with the second."""
    config: dict[str, Any] = json.loads(sys.stdin.readline())
    part, tool_calls, stop_at = config.pop("part"), config.pop("tool_calls"), config.pop("stop_at")
    directory = Path(config.pop("directory"))
    stack = make_stack(S3Backend(region_name="us-east-1", **config), directory)
    (hello, noted), (question, answer) = _TURNS
    if part == "begin":
        await agent_on(stack, [text(noted)]).arun(hello, thread_id=THREAD)
        script = [*calls(2, range(1, tool_calls + 1)), text(answer)]
        await agent_on(stack, script, _tool(stop_at)).arun(question, thread_id=THREAD)
        return
    began = time.perf_counter()
    state = await stack.load(THREAD)
    if state is None:
        raise SystemExit("the thread is empty")
    known = _remembered(state, time.perf_counter() - began)
    _say(**known)
    left = range(len(known["results"]) + 1, tool_calls + 1)
    agent = agent_on(stack, [*calls(2, left), text(answer)], _tool(None))
    async for _ in agent.continue_turn(THREAD):
        pass
    finished = await stack.load(THREAD)
    _say(answer=finished.messages[-1].content if finished is not None else "")
    await stack.close()


if __name__ == "__main__":
    asyncio.run(main())
