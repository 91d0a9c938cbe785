"""What layers have to say beside their answers, and who watches them work.

A layer calls :func:`emit`: a tier failed, a fill was dropped, an answer is stale. Whoever wants to know (metrics,
tests) adds a listener. A signal never carries a payload, a key or a connection string.

An :class:`Observer` watches one operation. It is set by an outer layer for the time of the operation (see
``traced.py``), travels in a context variable, also into tasks, and sees every call on a member below and every
attempt of a retry, without a wrapper around each. With nobody listening or watching, all this costs one check
per call: :data:`observer`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Observer", "Signal", "emit", "listen", "observe", "observer", "unobserve"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Signal:
    """One thing that happened. ``kind`` is a dotted name such as ``cache.hit``; ``member`` names the layer."""

    kind: str
    member: str
    thread_id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Observer(ABC):
    """Watches the operation under way. Each method is called where the thing happens, and makes the call itself."""

    __slots__ = ()

    @abstractmethod
    async def member(self, layer: Any, operation: Any, call: Callable[[], Awaitable[T]]) -> T:
        """``layer`` (a leaf, a store, a leg's retry) is asked for ``operation``."""

    @abstractmethod
    async def attempt(self, layer: Any, operation: Any, number: int, call: Callable[[], Awaitable[T]]) -> T:
        """A retry layer makes its attempt ``number``, counted from 1."""

    @abstractmethod
    def joined(self) -> None:
        """The operation shares the answer of one that is under way already."""

    @abstractmethod
    def signal(self, signal: Signal) -> None:
        """A layer has something to say. Must not raise and must not block; may come from another thread."""


Listener = Callable[[Signal], None]
_listeners: tuple[Listener, ...] = ()
_observer: ContextVar[Observer | None] = ContextVar("locus_tiered_observer", default=None)

observer = _observer.get
"""Who watches the operation under way, or ``None``."""


def observe(who: Observer | None) -> Token[Observer | None]:
    """Have ``who`` watch what this context does from now on; :func:`unobserve` takes it back."""
    return _observer.set(who)


def unobserve(token: Token[Observer | None]) -> None:
    """Go back to who watched before :func:`observe`."""
    _observer.reset(token)


def emit(kind: str, member: str, thread_id: str | None = None, **facts: Any) -> None:
    """Tell every listener, and who watches. A listener must not raise and must not block."""
    watching = _observer.get()
    if _listeners or watching is not None:
        signal = Signal(kind, member, thread_id, facts)
        for listener in _listeners:
            listener(signal)
        if watching is not None:
            watching.signal(signal)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Hear every signal of this process while the block runs."""
    global _listeners
    _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        _listeners = tuple(each for each in _listeners if each is not listener)
