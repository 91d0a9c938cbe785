"""How long a replica takes, and when a second one is worth asking (hedged requests: Dean and Barroso, The Tail at
Scale, CACM 2013).
"""

from __future__ import annotations

from collections import deque

__all__ = ["HedgeBudget", "Latency"]

_WINDOW = 128
_ASSUMED = 0.05  # seconds, while too little is known
_LEAST = 0.002


class Latency:
    """The last answers of one replica, in seconds, per operation."""

    def __init__(self) -> None:
        self._times: dict[str, deque[float]] = {}
        self._p95: dict[str, float] = {}
        self._mean: float | None = None

    def took(self, operation: str, seconds: float) -> None:
        """Note an answer."""
        times = self._times.setdefault(operation, deque(maxlen=_WINDOW))
        times.append(seconds)
        self._p95.pop(operation, None)
        self._mean = seconds if self._mean is None else 0.8 * self._mean + 0.2 * seconds

    def overtaken(self, seconds: float) -> None:
        """Another one was asked meanwhile and has answered after so long: this one is not asked first any more.

        Without that, each read of one that hangs would spend a hedge, until none is left.
        """
        self._mean = max(seconds, self.usual)

    @property
    def usual(self) -> float:
        """What it usually takes; unknown replicas come first, so that they become known."""
        return 0.0 if self._mean is None else self._mean

    def p95(self, operation: str) -> float:
        """The time within which 95 of 100 answers came."""
        found = self._p95.get(operation)
        if found is None:
            times = sorted(self._times.get(operation, ()))
            found = max(times[int(0.95 * (len(times) - 1))], _LEAST) if len(times) >= 10 else _ASSUMED
            self._p95[operation] = found
        return found


class HedgeBudget:
    """At most ``share`` more requests than there are operations, with a small burst."""

    def __init__(self, share: float = 0.05, burst: float = 10.0) -> None:
        self._share, self._burst = share, burst
        self._tokens = burst

    def earn(self) -> None:
        """One operation was begun."""
        self._tokens = min(self._tokens + self._share, self._burst)

    def spend(self) -> bool:
        """Whether one more request may be sent for it."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
