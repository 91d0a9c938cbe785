"""What many pending saves cost: memory while they wait, and time and memory of whoever takes them over.

One process (``pending.py``) saves while its far store is down, and dies. Another one opens the journal that it left.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from locus_tiered.bench.figures import Budget, Figure

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["measure"]

_MIB = 2**20
_STATE_BYTES = 60_000


async def measure(settings: Settings) -> list[Figure]:
    """10,000 saves of 60 KB that the far store has not heard of."""
    rows = settings.pick(10_000, 400)
    details = {"rows": float(rows), "state_bytes": float(_STATE_BYTES)}
    directory = str(settings.directory / "journal")
    left = await _process("leave", directory, rows)
    runs = [await _process("open", directory, rows) for _ in range(settings.pick(3, 1))]
    seconds = sorted(run["seconds"] for run in runs)[len(runs) // 2]
    growth = max(run["growth"] for run in runs)
    return [
        Figure(what="taken over", unit="ms", stack=seconds * 1e3, budget=Budget("value", 2000), details=details),
        Figure(
            what="growth while pending",
            unit="MiB",
            stack=left["growth"] / _MIB,
            budget=Budget("value", 64),
            details=details | {"seconds": left["seconds"]},
        ),
        Figure(
            what="growth when taken over", unit="MiB", stack=growth / _MIB, budget=Budget("value", 64), details=details
        ),
    ]


async def _process(part: str, directory: str, rows: int) -> dict[str, float]:
    command = [sys.executable, "-m", "locus_tiered.bench.rows.pending", part, directory, str(rows), str(_STATE_BYTES)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the process whose journal is measured ended with code {process.returncode}")
    found: dict[str, float] = json.loads(output)
    return found
