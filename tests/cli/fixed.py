"""A stack whose checkpoints have fixed ids and times, so that what is printed can be compared to the letter."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from locus.core.messages import Message, ToolCall, ToolResult
from locus.core.state import AgentState

from locus_tiered import DirectoryCheckpointer
from locus_tiered.core.checkpoint import Body, Checkpoint
from locus_tiered.core.clock import SYSTEM
from locus_tiered.core.operations import Save
from locus_tiered.core.stamp import StampClock
from tests.cli.kit import do

SNAPSHOTS = Path(__file__).parent / "snapshots"
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _state(number: int, *, waits: bool = False) -> AgentState:
    told = [Message.user("Where is my parcel?")]
    for turn in range(number):
        call = ToolCall(id=f"call_{turn}", name="look_up", arguments={"order": f"ord-{turn}"})
        told.append(Message.assistant(None, [call]))
        result = ToolResult(tool_call_id=call.id, name="look_up", content=f"ord-{turn}: in Lisbon\x1b[2J since Monday")
        told.append(Message.tool(result))
    if waits:
        ask = ToolCall(id="ask", name="ask_user", arguments={"question": "Refund it?"})
        told.append(Message.assistant(None, [ask]))
    else:
        told.append(Message.assistant("It arrives on Thursday."))
    return AgentState(
        run_id=f"run-{number}",
        agent_id="support",
        iteration=number,
        messages=tuple(told),
        metadata={"customer": "Ada"},
        started_at=MOMENT,
        updated_at=MOMENT,
    )


def fixed_stack(directory: Path) -> Path:
    """``ada`` with three checkpoints, ``bob:x`` with one, ``carol`` with a paused turn; two of them not in ``near``."""
    now = MOMENT.timestamp()
    clock = StampClock(replace(SYSTEM, wall=lambda: now, random_bits=lambda bits: 0))
    stores = {name: DirectoryCheckpointer(directory / name) for name in ("near", "home")}

    async def save() -> None:
        nonlocal now
        for thread, states in {
            "ada": [_state(1), _state(2), _state(3)],
            "bob:x": [_state(1)],
            "carol": [_state(1), _state(2, waits=True)],
        }.items():
            for number, state in enumerate(states):
                now += 3600
                stamp = clock.issue(thread)
                checkpoint = Checkpoint(thread, stamp, stamp, {"channel": "mail"}, await Body.of(state))
                for name, store in stores.items():
                    if name == "home" or (thread == "ada" and number):
                        await store.handle(Save(thread, None, stamp, None, checkpoint))
        for store in stores.values():
            await store.close()

    do(save())
    file = directory / "stack.yaml"
    file.write_text(
        "version: 1\nname: support\ntiers:\n  - memory: {max_bytes: 8MiB}\n"
        "  - directory: {path: ./near}\n    name: near\n  - directory: {path: ./home}\n    name: home\n"
    )
    return file


def settled(printed: str) -> str:
    """What is printed, without what depends on the day: ages, and durations."""
    printed = re.sub(r"\d+ d\b", lambda found: re.sub(r"\d", "9", found[0]), printed)
    return "\n".join(line.rstrip() for line in printed.splitlines()) + "\n"


def compare(name: str, printed: str) -> None:
    """The output is the one that is kept; ``LOCUS_TIERED_SNAPSHOTS=write`` keeps a new one."""
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("LOCUS_TIERED_SNAPSHOTS") == "write":
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(settled(printed), encoding="utf-8")
    assert settled(printed) == file.read_text(encoding="utf-8")
    assert max(map(len, printed.splitlines())) <= 80
