"""Timing several things side by side on a machine that is never quite idle.

The contenders take turns in small rounds, each round beginning with another one; a figure is the median of its
rounds, a ratio the median of the rounds' ratios. What slows the machine down for a second touches all of them.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Rounds", "interleave", "percentile", "turns"]

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds per call of each contender, round by round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """The contender's seconds per call."""
        return median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """How many times ``base`` it takes."""
        return median(one / other for one, other in self._pairs(name, base))

    def difference(self, name: str, base: str) -> float:
        """How many seconds more than ``base`` it takes."""
        return median(one - other for one, other in self._pairs(name, base))

    def _pairs(self, name: str, base: str) -> list[tuple[float, float]]:
        return list(zip(self.seconds[name], self.seconds[base], strict=True))


def turns(names: Sequence[str], rounds: int) -> list[str]:
    """Each name once per round, each round beginning with the next one."""
    return [names[(start + step) % len(names)] for start in range(rounds) for step in range(len(names))]


async def interleave(
    contenders: Mapping[str, Call],
    *,
    rounds: int,
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
    between: Call | None = None,
) -> Rounds:
    """Time ``rounds`` batches of ``calls`` awaited calls of every contender, in turns.

    ``clock=time.process_time`` counts only what this process computes: for calls that wait for nothing.
    ``between`` is called before every batch, and not timed.
    """
    for call in contenders.values():
        for _ in range(max(1, calls // 10)):
            await call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for name in turns(list(contenders), rounds):
        call = contenders[name]
        if between is not None:
            await between()
        gc.collect()
        began = clock()
        for _ in range(calls):
            await call()
        seconds[name].append((clock() - began) / calls)
    return Rounds(seconds)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the least value that ``share`` of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
