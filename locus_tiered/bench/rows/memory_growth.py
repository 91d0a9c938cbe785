"""How much a process grows that saves for a long time: in a budget of bytes, and without one.

Each contender runs in a fresh process (``growing.py``). The SDK's ``MemoryCheckpointer`` forgets nothing, so it
gets a twentieth of the saves.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.states import encoded_size, text_state

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["measure"]

_MIB = 2**20
_BUDGET_MIB = 64
_STATE_BYTES = 10_000
_ALLOWED = 1.3  # of the budget


async def measure(settings: Settings) -> list[Figure]:
    """A ``BoundedMemoryCheckpointer`` with a budget of 64 MiB, and a ``MemoryCheckpointer``."""
    saves = settings.pick(200_000, 10_000)
    few = saves // 20
    ours, alone = await _grow("bounded", saves), await _grow("sdk", few)
    growth = ours["growth"] / _MIB
    return [
        Figure(
            what=f"{saves:,} saves : {few:,} saves",
            unit="MiB",
            against=f"MemoryCheckpointer after {few} saves",
            sdk=alone["growth"] / _MIB,
            stack=growth,
            budget=Budget("value", round(_ALLOWED * _BUDGET_MIB, 1)),
            details={
                "saves": saves,
                "sdk_saves": few,
                "state_bytes": encoded_size(text_state(_STATE_BYTES, 1)),
                "of_budget": growth / _BUDGET_MIB,
                "kept": ours["kept"],
                "seconds": ours["seconds"],
            },
        )
    ]


async def _grow(kind: str, saves: int) -> dict[str, float]:
    numbers = map(str, (saves, _STATE_BYTES, _BUDGET_MIB * _MIB))
    command = [sys.executable, "-m", "locus_tiered.bench.rows.growing", kind, *numbers]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the process whose memory is measured ended with code {process.returncode}")
    found: dict[str, float] = json.loads(output)
    return found
