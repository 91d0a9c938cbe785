"""The process whose memory is measured: ``python -m locus_tiered.bench.rows.growing KIND SAVES STATE_BYTES BUDGET``.

It saves in many threads and prints, as JSON, the most memory that it had above what it began with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
from pathlib import Path

from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.bench.states import text_state
from locus_tiered.stores.memory import BoundedMemoryCheckpointer

__all__ = ["resident_bytes"]

_THREADS = 1000
_EVERY = 500  # saves between two looks at the process
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """The memory that this process has in use now."""
    if _STATM.exists():
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    output = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(output.stdout) * 1024


async def _save_many(kind: str, saves: int, size: int, budget: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    text_state(size, 0).model_dump_json()
    before = most = resident_bytes()
    began = loop.time()
    bounded = BoundedMemoryCheckpointer(max_bytes=budget)
    checkpointer: BaseCheckpointer = bounded if kind == "bounded" else MemoryCheckpointer()
    for number in range(saves):
        await checkpointer.save(text_state(size, number), f"thread-{number % _THREADS}")
        if number % _EVERY == 0:
            most = max(most, resident_bytes())
    most = max(most, resident_bytes())
    kept = bounded.stats.checkpoints if kind == "bounded" else saves
    return {"growth": most - before, "seconds": loop.time() - began, "kept": kept}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The process whose memory is measured.")
    parser.add_argument("kind", choices=("bounded", "sdk"))
    for number in ("saves", "size", "budget"):
        parser.add_argument(number, type=int)
    given = parser.parse_args()
    print(json.dumps(asyncio.run(_save_many(given.kind, given.saves, given.size, given.budget))))
