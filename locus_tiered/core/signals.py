"""What layers have to say beside their answers: a tier failed, a fill was dropped, an answer is stale.

A layer calls :func:`emit`; whoever wants to know (tracing, metrics, tests) adds a listener. With no listener a
signal costs one check. A signal never carries a payload, a key or a connection string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Signal", "emit", "listen"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that happened. ``kind`` is a dotted name such as ``cache.hit``; ``member`` names the layer."""

    kind: str
    member: str
    thread_id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Signal], None]
_listeners: tuple[Listener, ...] = ()


def emit(kind: str, member: str, thread_id: str | None = None, **facts: Any) -> None:
    """Tell every listener. A listener must not raise and must not block."""
    if _listeners:
        signal = Signal(kind, member, thread_id, facts)
        for listener in _listeners:
            listener(signal)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Hear every signal of this process while the block runs."""
    global _listeners
    _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        _listeners = tuple(each for each in _listeners if each is not listener)
