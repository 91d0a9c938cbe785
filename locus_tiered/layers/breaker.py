"""The circuit breaker: a member that keeps failing is left alone for a while (Nygard, "Release It!", 2007).

Tuned for the low call rates of agents: it opens after ``in_a_row`` failures in a row, or when at least ``ratio``
of at least ``minimum`` calls failed, counted from the first failure within the last ``window`` seconds. It stays
open for ``open_for`` seconds, twice as long after every failed probe up to ``longest``, then lets one call through
to probe: success closes it. Calls from before it opened or closed no longer count when they end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import Literal

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import StackConfigError

__all__ = ["Breaker", "BreakerPolicy"]

State = Literal["closed", "open", "half-open"]

_MOST_REMEMBERED = 1000  # calls in the window


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long. Times in seconds."""

    in_a_row: int = 5
    """So many failures in a row open it."""
    ratio: float = 0.5
    """Or this part of the calls since the first failure in the window,"""
    minimum: int = 10
    """if there were at least so many."""
    window: float = 30.0
    """How long a failure counts."""
    open_for: float = 5.0
    """How long it stays open at first."""
    longest: float = 60.0
    """How long at most, after failed probes."""

    def __post_init__(self) -> None:
        if self.in_a_row < 1 or self.minimum < 1 or not 0 < self.ratio <= 1:
            raise StackConfigError(
                f"{self!r}", hint="in_a_row and minimum count from 1, ratio is above 0 and at most 1"
            )
        if not (self.window > 0 and self.open_for > 0 and self.longest >= self.open_for):
            raise StackConfigError(f"{self!r}", hint="window and open_for are above 0, longest is at least open_for")


class Breaker:
    """One breaker. Safe to use from several threads."""

    def __init__(self, policy: BreakerPolicy, clock: Clock) -> None:
        self.policy = policy
        self._clock = clock
        self._lock = Lock()
        self._row = 0
        self._calls: deque[tuple[float, bool]] = deque()
        self._failed = 0  # of those in _calls
        self._open_until: float | None = None
        self._open_for = policy.open_for
        self._probing = False
        self.era = 0
        """Counts its openings and closings. Read after :meth:`admit`, and handed back with the outcome."""

    @property
    def state(self) -> State:
        """``closed``, ``open``, or ``half-open``: the next call, or the one under way, is the probe."""
        if self._open_until is None:
            return "closed"
        return "half-open" if self._clock.monotonic() >= self._open_until else "open"

    def admit(self) -> float | None:
        """Whether a call may be made: ``None``, or the seconds after which to ask again."""
        if self._open_until is None:
            return None
        with self._lock:
            if self._open_until is None:
                return None
            left = self._open_until - self._clock.monotonic()
            if left > 0:
                return left
            if self._probing:
                return self.policy.open_for
            self._probing = True
            return None

    def succeeded(self, era: int) -> bool:
        """Note the success of a call admitted in ``era``; answers whether it closed the breaker."""
        if self._open_until is None and not self._calls:
            self._row = 0
            return False
        with self._lock:
            if era != self.era:
                return False
            self._row = 0
            if self._open_until is not None:
                self._open_until, self._open_for = None, self.policy.open_for
                self._begin_era()
                return True
            self._note(failed=False)
            return False

    def failed(self, era: int) -> bool:
        """Note the failure of a call admitted in ``era``; answers whether it opened the breaker (again)."""
        with self._lock:
            if era != self.era:
                return False
            self._row += 1
            if self._open_until is not None:  # the probe
                self._open_for = min(self._open_for * 2, self.policy.longest)
                return self._open()
            self._note(failed=True)
            enough = len(self._calls) >= self.policy.minimum
            if self._row >= self.policy.in_a_row or (enough and self._failed >= self.policy.ratio * len(self._calls)):
                return self._open()
            return False

    def undecided(self, era: int) -> None:
        """Note that a call ended without telling anything of the member's health; a probe may be made again."""
        with self._lock:
            if era == self.era:
                self._probing = False

    def _open(self) -> bool:
        self._open_until = self._clock.monotonic() + self._open_for
        self._begin_era()
        return True

    def _begin_era(self) -> None:
        self.era += 1
        self._row = self._failed = 0
        self._calls.clear()
        self._probing = False

    def _note(self, *, failed: bool) -> None:
        now = self._clock.monotonic()
        self._calls.append((now, failed))
        self._failed += failed
        # Successes count only after failures: without any there is nothing to remember.
        while self._calls and (not self._calls[0][1] or self._is_old(self._calls[0][0], now)):
            self._failed -= self._calls.popleft()[1]

    def _is_old(self, when: float, now: float) -> bool:
        return when < now - self.policy.window or len(self._calls) > _MOST_REMEMBERED
