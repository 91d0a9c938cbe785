"""How long an agent's large states keep everything else in the event loop waiting.

A ticker wants to run every millisecond; the longest time that it was kept from it during one call is that
call's stall. What a foreign home does in the loop itself (the SDK's checkpointers encode and decode there) is
part of a stack's stall: the rows without such a home show what the stack adds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from locus.core.state import AgentState
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.states import conversation, encoded_size
from locus_tiered.bench.timing import percentile, turns
from locus_tiered.layers.tiered import TieredCheckpointer
from locus_tiered.stores.directory import DirectoryCheckpointer
from locus_tiered.stores.memory import BoundedMemoryCheckpointer

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["Ticker", "measure"]

_EVERY = 0.001
_MESSAGES = 1800  # about a megabyte
_KINDS = ("save", "load", "cold load")
_PAIRS = (
    ("Mem > Dir", "FileCheckpointer"),
    ("Mem > Dir > File", "FileCheckpointer"),
    ("Mem > Dir > Memory", "MemoryCheckpointer"),
)


class Ticker:
    """A task that notes how long it was kept from running. Use it as an async context manager."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._ticked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            due = time.perf_counter() + _EVERY
            await asyncio.sleep(_EVERY)
            self.worst = max(self.worst, time.perf_counter() - due)
            self._ticked.set()

    async def during(self, call: Callable[[], Awaitable[object]]) -> float:
        """Seconds of the longest stall while ``call`` ran."""
        await self._beat()
        self.worst = 0.0
        await call()
        await self._beat()
        return self.worst

    async def _beat(self) -> None:
        """Wait until the ticker has run: what was going on before is over, and noted."""
        self._ticked.clear()
        await self._ticked.wait()


@dataclass(frozen=True, slots=True)
class _Contender:
    """A checkpointer that is warm, and how one looks that has just been started on the same home."""

    warm: BaseCheckpointer
    cold: Callable[[], BaseCheckpointer]


def _contenders(directory: Path) -> dict[str, _Contender]:
    memory, file = MemoryCheckpointer(), FileCheckpointer(directory / "file")
    homes = {
        "Mem > Dir > File": FileCheckpointer(directory / "home"),
        "Mem > Dir > Memory": MemoryCheckpointer(),
    }

    def near(name: str) -> tuple[BoundedMemoryCheckpointer, DirectoryCheckpointer]:
        return BoundedMemoryCheckpointer(), DirectoryCheckpointer(directory / name)

    found = {
        "MemoryCheckpointer": _Contender(memory, lambda: memory),
        "FileCheckpointer": _Contender(file, lambda: file),
        "Mem > Dir": _Contender(TieredCheckpointer(*near("shared")), lambda: TieredCheckpointer(*near("shared"))),
    }
    for number, (name, home) in enumerate(homes.items()):

        def cold(number: int = number, home: BaseCheckpointer = home, serial: list[int] = [0]) -> BaseCheckpointer:  # noqa: B006
            serial[0] += 1
            return TieredCheckpointer(*near(f"cold-{number}-{serial[0]}"), home)

        found[name] = _Contender(TieredCheckpointer(*near(f"warm-{number}"), home), cold)
    return found


async def _stalls(ticker: Ticker, contender: _Contender, state: AgentState) -> dict[str, float]:
    """The stall of one save, one load by who has just saved, one load by who comes new."""
    warm, cold, name = contender.warm, contender.cold(), "checkpoint"
    found = {
        "save": await ticker.during(lambda: warm.save(state, "thread", name)),
        "load": await ticker.during(lambda: warm.load("thread")),
        "cold load": await ticker.during(lambda: cold.load("thread")),
    }
    await warm.delete("thread", name)
    return found


async def measure(settings: Settings) -> list[Figure]:
    """The three stacks against the SDK's checkpointers that they hold or replace."""
    state = conversation(_MESSAGES)
    contenders = _contenders(settings.directory)
    stalls: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in _KINDS} for name in contenders}
    idle: list[float] = []
    async with Ticker() as ticker:
        for name in turns(list(contenders), settings.pick(60, 3)):
            idle.append(await ticker.during(lambda: asyncio.sleep(0.05)))
            for kind, stall in (await _stalls(ticker, contenders[name], state)).items():
                stalls[name][kind].append(stall * 1e3)
    figures = [
        Figure(
            what="nothing going on (noise)",
            unit="ms",
            stack=percentile(idle, 0.99) * 1e3,
            details={"calls": len(idle), "max": max(idle) * 1e3},
        )
    ]
    for kind in _KINDS:
        for stack, alone in _PAIRS:
            ours, theirs = stalls[stack][kind], stalls[alone][kind]
            p99, base = percentile(ours, 0.99), percentile(theirs, 0.99)
            figures.append(
                Figure(
                    what=f"{kind}, {stack} : {alone.removesuffix('Checkpointer')}",
                    unit="ms",
                    against=alone,
                    sdk=base,
                    stack=p99,
                    ratio=p99 / base,
                    budget=Budget("value", 5),
                    details={
                        "bytes": encoded_size(state),
                        "calls": len(ours),
                        "p50": percentile(ours, 0.5),
                        "sdk_p50": percentile(theirs, 0.5),
                        "max": max(ours),
                        "sdk_max": max(theirs),
                    },
                )
            )
    return figures
