"""The processes of ``recovery.py``: ``python -m locus_tiered.bench.rows.pending leave|open DIRECTORY ROWS BYTES``.

``leave`` saves while its far store is down, and dies with all of it pending; ``open`` takes it over, and dies too
before any of it is sent. Both print, as JSON, what it took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
from typing import Any

from locus.core.state import AgentState
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered.bench.rows.growing import resident_bytes
from locus_tiered.bench.states import text_state
from locus_tiered.layers.write_behind import WriteBehindCheckpointer

__all__ = ["Down"]

_WRITERS = 64
_LOOK_EVERY = 0.01  # seconds between two looks at the process


class Down(MemoryCheckpointer):
    """A far store that cannot be reached."""

    async def save(self, *_: Any, **__: Any) -> str:
        raise ConnectionError("down")

    async def load(self, *_: Any, **__: Any) -> AgentState | None:
        raise ConnectionError("down")

    async def list_checkpoints(self, *_: Any, **__: Any) -> list[str]:
        raise ConnectionError("down")


class _Most:
    """The most memory that this process has in use, above what it begins with."""

    def __init__(self) -> None:
        self._before = self._most = resident_bytes()

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY)

    def look(self) -> int:
        """Look once; answers the growth so far."""
        self._most = max(self._most, resident_bytes())
        return self._most - self._before


async def _run(part: str, directory: str, rows: int, size: int) -> dict[str, float]:
    layer = WriteBehindCheckpointer(
        Down(), journal=directory, ack="journal", max_lag=86_400, max_pending="4GiB", exclusive=True
    )
    text_state(size, 0).model_dump_json()
    loop = asyncio.get_running_loop()
    most = _Most()
    watch = asyncio.create_task(most.watch())
    began = loop.time()
    if part == "leave":
        numbers = iter(range(rows))

        async def writer(thread: str) -> None:
            for number in numbers:
                await layer.save(text_state(size, number), thread)

        await asyncio.gather(*(writer(f"thread-{number}") for number in range(_WRITERS)))
        pending = layer.pending()
    else:
        pending = await layer.recover()
    seconds = loop.time() - began
    growth = most.look()
    watch.cancel()
    if pending.rows != rows:
        raise SystemExit(f"{pending.rows} rows are pending instead of {rows}")
    return {"growth": growth, "seconds": seconds}


def main() -> None:
    """Measure, print, and die without a word to the journal."""
    parser = argparse.ArgumentParser(description="The processes whose journal is measured.")
    parser.add_argument("part", choices=("leave", "open"))
    parser.add_argument("directory")
    for number in ("rows", "size"):
        parser.add_argument(number, type=int)
    given = parser.parse_args()
    logging.disable()  # the far store is down: that is said again and again
    print(json.dumps(asyncio.run(_and_die(given))), flush=True)


async def _and_die(given: argparse.Namespace) -> dict[str, float]:
    print(json.dumps(await _run(given.part, given.directory, given.rows, given.size)), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
