"""The S3 server is killed; an agent that is acknowledged by the journal goes on, and S3 gets all of it later."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from locus_tiered.core.errors import LocusTieredError
from locus_tiered.demo.sides import Side, behind, knows, settled, speak
from locus_tiered.testing.services import SeaweedFS

__all__ = ["OutageStory", "tell"]

TURNS = 2
TOOL_CALLS = 10
_THREAD = "outage"
_PATIENCE = 30.0  # seconds for the server, once it is back, to take what is pending
_AGAIN = 0.1


@dataclass(frozen=True, slots=True)
class OutageStory:
    """What became of turns that were taken while S3 was down."""

    failed: dict[str, str]
    """The sides whose turn failed, with the class of the error."""
    waited: list[float]
    """Seconds that the agent waited in each turn, with the journal."""
    rows: int
    bytes: int
    """What was pending when the server came back."""
    sent_in: float
    """Seconds until S3 had all of it."""
    complete: bool
    """Whether somebody who comes new finds the last answer in S3."""

    @property
    def went_on(self) -> bool:
        """Whether no turn was lost with the journal."""
        return len(self.waited) == TURNS and self.complete


async def tell(server: SeaweedFS, sides: list[Side], directory: Path) -> OutageStory:
    """Kill the server, take turns on every side, start the server again. The last side goes on by its journal."""
    for side in sides:
        await speak(side, _THREAD, 1, TOOL_CALLS)
        await settled(side)
    server.kill()
    *others, side = sides
    failed: dict[str, str] = {}
    for other in others:
        try:
            await speak(other, _THREAD, 2, TOOL_CALLS)
        except Exception as error:  # noqa: BLE001 - whatever it is, the turn is lost: that is the story
            failed[other.name] = type(error).__name__
    waited = [await speak(side, _THREAD, number, TOOL_CALLS) for number in range(2, 2 + TURNS)]
    layer = behind(side)
    assert layer is not None
    pending = layer.pending()
    await asyncio.to_thread(server.restart)
    sent_in = await _sent(side)
    complete = await knows(side.newcomer(directory), _THREAD, 1 + TURNS)
    return OutageStory(failed, waited, pending.rows, pending.bytes, sent_in, complete)


async def _sent(side: Side) -> float:
    """Wait until S3 has everything; the seconds that it took."""
    began = time.monotonic()
    while True:
        try:
            await settled(side)
        except LocusTieredError:
            if time.monotonic() - began > _PATIENCE:
                raise
            await asyncio.sleep(_AGAIN)
        else:
            return time.monotonic() - began
