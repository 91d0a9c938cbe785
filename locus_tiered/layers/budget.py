"""The retry budget: a token bucket per backend, so that retries cannot make an outage worse (law 15).

Every call puts a fraction of a token in, every retry takes a whole one out. In a long outage retries are thus
at most that fraction of the calls, plus a small burst (the idea of Finagle's ``RetryBudget``).
"""

from __future__ import annotations

from threading import Lock
from weakref import WeakKeyDictionary

from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf

__all__ = ["RetryBudget", "shared_budget"]


class RetryBudget:
    """How many retries may still be made. Safe to use from several threads.

    Args:
        ratio: Retries allowed per call, in the long run.
        burst: Retries allowed at once, after quiet times.
    """

    def __init__(self, ratio: float = 0.09, burst: int = 10) -> None:
        if not 0 <= ratio <= 1 or burst < 0:
            raise StackConfigError(f"RetryBudget(ratio={ratio!r}, burst={burst!r})", hint="0 <= ratio <= 1, burst >= 0")
        self.ratio, self.burst = ratio, burst
        self._tokens = float(burst)
        self._lock = Lock()

    @property
    def tokens(self) -> float:
        """What is left."""
        return self._tokens

    def note_call(self) -> None:
        """A first attempt was made."""
        if self._tokens < self.burst:
            with self._lock:
                self._tokens = min(float(self.burst), self._tokens + self.ratio)

    def take(self) -> bool:
        """Whether one more retry may be made; if so, it is paid for."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio}, burst={self.burst})"


_budgets: WeakKeyDictionary[object, RetryBudget] = WeakKeyDictionary()


def shared_budget(layer: Layer) -> RetryBudget:
    """The budget of the backend below ``layer``: one per backend object, whatever stacks it is in."""
    leaves = [each for each in layer.walk() if isinstance(each, Leaf)]
    if len(leaves) != 1:
        return RetryBudget()
    try:
        return _budgets.setdefault(leaves[0].backend, RetryBudget())
    except TypeError:  # neither hashable nor weakly referable
        return RetryBudget()
