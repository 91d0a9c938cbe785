"""Time, randomness and sleep as one value that is handed in, so that tests own all three.

:data:`SYSTEM` is the real one. A layer takes ``clock=`` and uses nothing else; no module of the package calls
``time`` or ``random`` by itself.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

__all__ = ["SYSTEM", "Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """The outside world, as far as a layer sees it."""

    wall: Callable[[], float] = time.time
    """Seconds since the epoch; may jump."""
    monotonic: Callable[[], float] = time.monotonic
    """Seconds that only go forward, for ages and deadlines."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Wait so many seconds."""
    random_bits: Callable[[int], int] = secrets.randbits
    """So many random bits as an integer."""


SYSTEM = Clock()
