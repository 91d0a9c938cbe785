"""``python -m locus_tiered.demo``: the comparison, the outage, the crash. Takes about half a minute."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.status import Status

from locus_tiered.demo import crash, outage
from locus_tiered.demo.report import comparison, crash_story, outage_story, verdict
from locus_tiered.demo.sides import Side, all_sides, quick_turns_lost, take_turn
from locus_tiered.testing.services import SeaweedFS, ServiceError, seaweedfs

__all__ = ["main"]

TURNS = 3
TOOL_CALLS = 10
TRIALS = 8


async def _compare(sides: list[Side], directory: Path) -> None:
    for number in range(1, TURNS + 1):
        for side in sides:
            side.turns.append(await take_turn(side, "conversation", number, TOOL_CALLS))
    for trial in range(TRIALS):
        for place, side in enumerate(sides):
            near = directory / f"newcomer-{place}-{trial}"
            side.lost.append(await quick_turns_lost(side, f"quick-{trial}", near))


async def _show(server: SeaweedFS, directory: Path, console: Console, status: Status) -> bool:
    async with all_sides(server, directory) as sides:
        status.update(f"{TURNS} turns on every side, then {TRIALS} times two quick ones")
        await _compare(sides, directory)
        console.print(comparison(sides, TOOL_CALLS))
        console.print()
        console.print(verdict(sides))
        console.print()
        status.update("an outage")
        down = await outage.tell(server, sides, directory / "after the outage")
        console.print(outage_story(down))
        console.print()
    status.update("a crash in the middle of a turn")
    dead = await crash.tell(server, directory / "crash")
    console.print(crash_story(dead))
    return dead.went_on and down.went_on and not any(lost for side in sides[1:] for lost in side.lost)


def main() -> int:
    """Run the demo; answers the exit code: 1 when a stack lost a turn or the conversation did not go on."""
    console = Console(highlight=False)
    logging.getLogger().addHandler(logging.NullHandler())  # an outage is logged; here it is told
    # Ctrl-C, also where a shell has us ignore it; and whoever ends us politely gets the same tidy end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="locus-demo-") as directory,
            Console(stderr=True).status("starting an S3 server") as status,
            seaweedfs() as server,
        ):
            kept = asyncio.run(_show(server, Path(directory), console, status))
    except KeyboardInterrupt:
        console.print("Stopped. The server and all files are gone.")
        return 130
    except ServiceError as error:
        console.print(f"The demo needs an S3 server: {error}", markup=False)
        return 1
    console.print(f"[dim]{time.monotonic() - began:.0f} s. The server and all files are gone.")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
