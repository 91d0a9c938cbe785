"""Writes that were acknowledged without one of the replicas, where they are still under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["Lagging"]


class Lagging:
    """The writes to one replica, by the keys of their threads.

    ``lost(key, thread_id)`` is told of a write that never ends, because its event loop did: nobody knows what the
    replica has then.
    """

    def __init__(self, lost: Callable[[str, str], None]) -> None:
        self._lost = lost
        self._writes: dict[str, list[asyncio.Task[Any]]] = {}

    def add(self, key: str, thread_id: str, write: asyncio.Task[Any]) -> None:
        """A write to the thread was acknowledged while it was under way here."""
        self._writes.setdefault(key, []).append(write)

        def ended(_: asyncio.Task[Any]) -> None:
            if write.cancelled():
                self._lost(key, thread_id)
            writes = self._writes.get(key, [])
            if write in writes:
                writes.remove(write)
            if not writes:
                self._writes.pop(key, None)

        write.add_done_callback(ended)

    def __contains__(self, key: str) -> bool:
        return any(not write.done() for write in self._writes.get(key, ()))

    def __bool__(self) -> bool:
        return any(key in self for key in list(self._writes))
