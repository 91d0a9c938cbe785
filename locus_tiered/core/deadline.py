"""One deadline for a whole operation, shared by the layers that it passes through.

The outermost layer that has one sets it; a layer further in may only make it sooner. It travels in a context
variable, so that it also reaches what runs in tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from locus_tiered.core.clock import Clock

__all__ = ["remaining", "within"]

_deadline: ContextVar[float | None] = ContextVar("locus_tiered_deadline", default=None)


@contextmanager
def within(seconds: float, clock: Clock) -> Iterator[float]:
    """Run the block under a deadline of so many seconds from now, or the outer one when that is sooner."""
    outer, mine = _deadline.get(), clock.monotonic() + seconds
    token = _deadline.set(mine if outer is None else min(outer, mine))
    try:
        yield mine if outer is None else min(outer, mine)
    finally:
        _deadline.reset(token)


def remaining(clock: Clock) -> float | None:
    """Seconds left, never below 0; ``None`` when there is no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - clock.monotonic())
