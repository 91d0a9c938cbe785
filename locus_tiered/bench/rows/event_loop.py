"""How long an agent's large states keep everything else in the event loop waiting.

A ticker wants to run every millisecond; the longest time that it was kept from it during one call is that
call's stall. Only processor time of this process counts, so that a busy machine is not held against anybody
(the wall-clock times are in the JSON).

The garbage collector is off in the figures that are judged, and on in ``p99_collecting``: a full collection
stops every thread for as long as the whole heap takes, whoever made it, and one line of the table says how long
that is here. A service keeps it short with ``gc.freeze()`` after its imports.

What a foreign home does in the loop itself (the SDK's checkpointers encode and decode there) is part of a
stack's stall; the rows without such a home show what the stack adds.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Sequence
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

__all__ = ["MESSAGES", "Stall", "Ticker", "measure"]

_EVERY = 0.001
MESSAGES = 2250
"""Of the states that are measured: about a megabyte."""
_NOTHING = ("", "")
_KINDS = ("save", "load", "cold load")
_PAIRS = (
    ("M>D", "FileCheckpointer"),
    ("M>D>File", "FileCheckpointer"),
    ("M>D>Memory", "MemoryCheckpointer"),
)


@dataclass(frozen=True, slots=True)
class Stall:
    """The longest time that the loop was kept busy, in milliseconds of this process and of the clock."""

    process: float
    wall: float


class Ticker:
    """A task that notes how long it was kept from running. Use it as an async context manager."""

    def __init__(self) -> None:
        self._process = self._wall = 0.0
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
            due, spent = time.perf_counter() + _EVERY, time.process_time()
            await asyncio.sleep(_EVERY)
            late = max(0.0, time.perf_counter() - due)
            self._wall = max(self._wall, late)
            self._process = max(self._process, min(late, time.process_time() - spent))
            self._ticked.set()

    async def during(self, call: Callable[[], Awaitable[object]]) -> Stall:
        """The longest stall while ``call`` ran."""
        await self._tick()
        self._process = self._wall = 0.0
        await call()
        await self._tick()
        return Stall(self._process * 1e3, self._wall * 1e3)

    async def _tick(self) -> None:
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
        "M>D>File": FileCheckpointer(directory / "home"),
        "M>D>Memory": MemoryCheckpointer(),
    }

    def near(name: str) -> tuple[BoundedMemoryCheckpointer, DirectoryCheckpointer]:
        return BoundedMemoryCheckpointer(), DirectoryCheckpointer(directory / name)

    found = {
        "MemoryCheckpointer": _Contender(memory, lambda: memory),
        "FileCheckpointer": _Contender(file, lambda: file),
        "M>D": _Contender(TieredCheckpointer(*near("shared")), lambda: TieredCheckpointer(*near("shared"))),
    }
    for number, (name, home) in enumerate(homes.items()):

        def cold(number: int = number, home: BaseCheckpointer = home, serial: list[int] = [0]) -> BaseCheckpointer:  # noqa: B006
            serial[0] += 1
            return TieredCheckpointer(*near(f"cold-{number}-{serial[0]}"), home)

        found[name] = _Contender(TieredCheckpointer(*near(f"warm-{number}"), home), cold)
    return found


async def _stalls(ticker: Ticker, contender: _Contender, state: AgentState) -> dict[str, Stall]:
    """The stall of one save, one load by who has just saved, one load by who comes new."""
    warm, cold = contender.warm, contender.cold()
    found = {
        "save": await ticker.during(lambda: warm.save(state, "thread")),
        "load": await ticker.during(lambda: warm.load("thread")),
        "cold load": await ticker.during(lambda: cold.load("thread")),
    }
    await warm.delete("thread")
    return found


_Stalls = dict[tuple[str, str], list[Stall]]


async def _round(contenders: dict[str, _Contender], state: AgentState, rounds: int) -> _Stalls:
    """The stalls of every contender, in turns."""
    found: _Stalls = {(name, kind): [] for name in contenders for kind in _KINDS}
    found[_NOTHING] = []
    async with Ticker() as ticker:
        for name in turns(list(contenders), rounds):
            gc.collect()
            found[_NOTHING].append(await ticker.during(lambda: asyncio.sleep(0.05)))
            for kind, stall in (await _stalls(ticker, contenders[name], state)).items():
                found[name, kind].append(stall)
    return found


def _p99(stalls: Sequence[Stall]) -> float:
    return percentile([stall.process for stall in stalls], 0.99)


def _full_collection() -> float:
    """Milliseconds that the collector takes for all that is alive now."""
    gc.collect()
    spent = time.process_time()
    gc.collect()
    return (time.process_time() - spent) * 1e3


async def measure(settings: Settings) -> list[Figure]:
    """The three stacks against the SDK's checkpointers that they hold or replace."""
    state = conversation(MESSAGES)
    contenders = _contenders(settings.directory)
    gc.disable()
    try:
        stalls = await _round(contenders, state, settings.pick(100, 3))
    finally:
        gc.enable()
    collecting = await _round(contenders, state, settings.pick(20, 1))
    nothing = stalls[_NOTHING]
    figures = [
        Figure(
            what="nothing going on",
            unit="ms",
            stack=_p99(nothing),
            details={"calls": len(nothing), "wall_p99": percentile([stall.wall for stall in nothing], 0.99)},
        ),
        Figure(what="a full garbage collection", unit="ms", stack=_full_collection()),
    ]
    for kind in _KINDS:
        for stack, alone in _PAIRS:
            ours, theirs = stalls[stack, kind], stalls[alone, kind]
            details: dict[str, float] = {"bytes": encoded_size(state), "calls": len(ours)}
            for who, found, late in (
                ("", ours, collecting[stack, kind]),
                ("sdk_", theirs, collecting[alone, kind]),
            ):
                details[f"{who}p50"] = percentile([stall.process for stall in found], 0.5)
                details[f"{who}p99_wall"] = percentile([stall.wall for stall in found], 0.99)
                details[f"{who}p99_collecting"] = _p99(late)
            figures.append(
                Figure(
                    what=f"{kind}, {stack} : {alone.removesuffix('Checkpointer')}",
                    unit="ms",
                    against=alone,
                    sdk=_p99(theirs),
                    stack=_p99(ours),
                    ratio=_p99(ours) / _p99(theirs),
                    budget=Budget("value", 5),
                    details=details,
                )
            )
    return figures
