"""What a load costs when everything is in memory: decoding, and what the layers add to it.

``MemoryCheckpointer`` keeps values, not text, and shares them with whoever loads: it does not decode, and it
does not isolate. The bare decoding of the same state is what full isolation costs at least.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from locus.core.state import AgentState
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.states import conversation, texts
from locus_tiered.bench.timing import interleave
from locus_tiered.layers.cached import CachedCheckpointer
from locus_tiered.layers.tiered import TieredCheckpointer
from locus_tiered.stores.directory import DirectoryCheckpointer
from locus_tiered.stores.memory import BoundedMemoryCheckpointer

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["measure"]

_MESSAGES = 100


async def measure(settings: Settings) -> list[Figure]:
    """Each stack against ``MemoryCheckpointer`` and against the bare decoding, for two kinds of conversation."""
    figures = []
    for kind, state in (("texts", texts(_MESSAGES)), ("tools", conversation(_MESSAGES))):
        figures += await _measure(settings, kind, state)
    return figures


async def _measure(settings: Settings, kind: str, state: AgentState) -> list[Figure]:
    encoded = state.model_dump_json().encode()
    alone = MemoryCheckpointer()
    cached = CachedCheckpointer(MemoryCheckpointer(), latest="exclusive")
    tiered = TieredCheckpointer(
        BoundedMemoryCheckpointer(),
        DirectoryCheckpointer(settings.directory / kind, durability="process"),
        MemoryCheckpointer(),
        latest="exclusive",
    )
    for checkpointer in (alone, cached, tiered):
        await checkpointer.save(state, "thread")
        assert await checkpointer.load("thread") == state

    async def decode() -> AgentState:
        return AgentState.model_validate_json(encoded)

    rounds = await interleave(
        {
            "Memory": lambda: alone.load("thread"),
            "decoding": decode,
            "Cached": lambda: cached.load("thread"),
            "Tiered": lambda: tiered.load("thread"),
        },
        rounds=settings.pick(61, 5),
        calls=settings.pick(50, 20),
        clock=time.process_time,
    )
    for stack in (cached, tiered):
        await stack.close()
    return [
        Figure(
            what=f"{kind}, {stack} : {base}",
            unit="us",
            against=against,
            sdk=rounds.median(base) * 1e6,
            stack=rounds.median(stack) * 1e6,
            ratio=rounds.ratio(stack, base),
            difference=rounds.difference(stack, base) * 1e6,
            budget=Budget("ratio", most),
            details={"messages": _MESSAGES, "bytes": len(encoded)},
        )
        for base, against, most in (
            ("Memory", "MemoryCheckpointer", 1.2),
            ("decoding", "AgentState.model_validate_json", 1.5),
        )
        for stack in ("Cached", "Tiered")
    ]
