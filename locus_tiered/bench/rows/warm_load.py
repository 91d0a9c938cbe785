"""What a load costs when everything is in memory: decoding, and what the layers add to it.

``MemoryCheckpointer`` keeps values, not text, and shares them with whoever loads: it does not decode, and it
does not isolate. The bare decoding of the same state is what full isolation costs at least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from locus.core.state import AgentState
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.states import conversation
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
    """Each stack against ``MemoryCheckpointer`` and against the bare decoding."""
    state = conversation(_MESSAGES)
    text = state.model_dump_json().encode()
    alone = MemoryCheckpointer()
    cached = CachedCheckpointer(MemoryCheckpointer(), latest="exclusive")
    tiered = TieredCheckpointer(
        BoundedMemoryCheckpointer(),
        DirectoryCheckpointer(settings.directory, durability="process"),
        MemoryCheckpointer(),
        latest="exclusive",
    )
    for checkpointer in (alone, cached, tiered):
        await checkpointer.save(state, "thread")
        assert await checkpointer.load("thread") == state

    async def decode() -> AgentState:
        return AgentState.model_validate_json(text)

    rounds = await interleave(
        {
            "MemoryCheckpointer": lambda: alone.load("thread"),
            "bare decoding": decode,
            "CachedCheckpointer": lambda: cached.load("thread"),
            "TieredCheckpointer": lambda: tiered.load("thread"),
        },
        rounds=settings.pick(61, 5),
        calls=settings.pick(100, 20),
    )
    for stack in (cached, tiered):
        await stack.close()
    return [
        Figure(
            what=f"{stack.removesuffix('Checkpointer')} : {base}",
            unit="us",
            against=base,
            sdk=rounds.median(base) * 1e6,
            stack=rounds.median(stack) * 1e6,
            ratio=rounds.ratio(stack, base),
            difference=rounds.difference(stack, base) * 1e6,
            budget=Budget("ratio", most),
            details={"messages": _MESSAGES, "bytes": len(text)},
        )
        for base, most in (("MemoryCheckpointer", 1.2), ("bare decoding", 1.5))
        for stack in ("CachedCheckpointer", "TieredCheckpointer")
    ]
