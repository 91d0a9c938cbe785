"""The figures of ``bench``: an agent's turn, a save and loads, on home alone and on the whole stack, taking turns.

Everything is done in threads of its own, which are deleted afterwards.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, TypeVar

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.bench.states import conversation
from locus_tiered.cli.answers import BenchRow
from locus_tiered.cli.opening import Opened, Place, journals, store_of
from locus_tiered.cli.session import Bar
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.signals import Observer, Signal, observe, unobserve
from locus_tiered.demo.agents import agent_on, answer, prompt, turn
from locus_tiered.demo.meters import Waited

__all__ = ["alone_of", "measure"]

TOOL_CALLS = 10
T = TypeVar("T")


class _Counter(Observer):
    """Counts what one member is asked for."""

    __slots__ = ("calls", "member_")

    def __init__(self, member: Layer) -> None:
        self.member_, self.calls = member, 0

    async def member(self, layer: Any, operation: Any, call: Callable[[], Awaitable[T]]) -> T:
        self.calls += layer is self.member_
        return await call()

    async def attempt(self, layer: Any, operation: Any, number: int, call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    def joined(self) -> None:
        """Nothing to count."""

    def signal(self, signal: Signal) -> None:
        """Nothing to count."""


class _Counted(Waited):
    """A checkpointer whose calls are counted too."""

    def __init__(self, inner: BaseCheckpointer) -> None:
        super().__init__(inner)
        self.calls = 0

    async def _timed(self, call: Awaitable[T]) -> T:
        self.calls += 1
        return await super()._timed(call)


def alone_of(place: Place) -> BaseCheckpointer:
    """Home as it would be used without a stack."""
    bottom = store_of(place.layer)
    return bottom.backend if isinstance(bottom, Leaf) else bottom


@dataclass
class _Figures:
    """What was measured, by side, round by round."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def note(self, what: str, side: str, value: float) -> None:
        """One round's value."""
        self.seconds.setdefault(what, {}).setdefault(side, []).append(value)

    def row(self, what: str, title: str, unit: str, scale: float, budget: float | None = None) -> BenchRow:
        """The medians, and the median of the rounds' ratios."""
        alone, stack = (self.seconds[what][side] for side in ("alone", "stack"))
        ratios = [two / one for one, two in zip(alone, stack, strict=True) if one > 0]
        ratio = median(ratios) if ratios else None
        kept = None if budget is None or ratio is None else ratio <= budget
        return BenchRow(
            what=title,
            unit=unit,
            alone=round(median(alone) * scale, 4),
            stack=round(median(stack) * scale, 4),
            ratio=None if ratio is None else round(ratio, 4),
            budget=budget,
            kept=kept,
        )


async def measure(opened: Opened, home: Place, *, rounds: int, bar: Bar) -> list[BenchRow]:
    """All rows. ``bar`` counts rounds."""
    sides: Mapping[str, BaseCheckpointer] = {"alone": alone_of(home), "stack": opened.layer}
    figures = _Figures()
    async with _threads(sides) as name:
        for number in range(rounds + 1):  # the first warms up
            order = list(sides.items())
            for side, checkpointer in order if number % 2 else reversed(order):
                kept = figures if number else _Figures()
                await _turn(kept, side, checkpointer, home, f"{name}-turns-{side}", number)
                await _store(kept, side, checkpointer, f"{name}-states-{side}")
            bar.step()
    budget = _turn_budget(opened, home)
    return [
        figures.row("turn", f"an agent waits, turn of {TOOL_CALLS} tool calls", "ms", 1e3, budget),
        figures.row("calls", "home is asked in that turn", "calls", 1.0),
        figures.row("save", "one save, 100 messages", "ms", 1e3),
        figures.row("newest", "load of the newest, 100 messages", "ms", 1e3),
        figures.row("by id", "load by id, 100 messages", "ms", 1e3),
    ]


def _turn_budget(opened: Opened, home: Place) -> float | None:
    """The ratio that the design allows, where it says one: for stacks that write behind an object store."""
    if type(alone_of(home)).__name__ not in ("S3Backend", "OCIBucketBackend"):
        return None
    acks = {getattr(layer, "ack", None) for layer in journals(opened.layer)}
    if "journal" in acks and getattr(opened.layer, "latest", None) == "exclusive":
        return 1 / 25
    return 1 / 8 if acks & {"turn", "journal"} else None


@contextlib.asynccontextmanager
async def _threads(sides: Mapping[str, BaseCheckpointer]) -> AsyncIterator[str]:
    name = f"locus-tiered-bench-{secrets.token_hex(6)}"
    try:
        yield name
    finally:
        for side, checkpointer in sides.items():
            for kind in ("turns", "states"):
                with contextlib.suppress(NotImplementedError):
                    await checkpointer.delete(f"{name}-{kind}-{side}")


async def _turn(
    figures: _Figures, side: str, checkpointer: BaseCheckpointer, home: Place, thread: str, number: int
) -> None:
    meter, counter = _Counted(checkpointer), _Counter(store_of(home.layer))
    agent = agent_on(meter, turn(number, TOOL_CALLS))
    token = observe(counter if side == "stack" else None)
    try:
        result = await agent.arun(prompt(number, TOOL_CALLS), thread_id=thread)
    finally:
        unobserve(token)
    if result.text != answer(number):
        raise RuntimeError("the agent of the benchmark did not finish its turn")
    figures.note("turn", side, meter.seconds)
    figures.note("calls", side, counter.calls if side == "stack" else meter.calls)


async def _store(figures: _Figures, side: str, checkpointer: BaseCheckpointer, thread: str) -> None:
    state = conversation(100)
    began = time.perf_counter()
    saved = await checkpointer.save(state, thread)
    figures.note("save", side, time.perf_counter() - began)
    for what, wanted in (("newest", None), ("by id", saved)):
        began = time.perf_counter()
        for _ in range(3):
            await checkpointer.load(thread, wanted)
        figures.note(what, side, (time.perf_counter() - began) / 3)
