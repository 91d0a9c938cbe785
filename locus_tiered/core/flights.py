"""Single flight: one question in the air per key, however many ask it.

It runs in a task of its own, in the context of who asked first. A cancelled caller leaves alone; the load
is cancelled when the last one has left. Keys carry the thread's generation, so nobody joins a flight that began
before his own write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.signals import observer

__all__ = ["Flights"]

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("passengers", "task")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.passengers = 0


class Flights(Generic[T]):
    """The loads of one cache that are in the air, per event loop."""

    def __init__(self) -> None:
        self._flights: PerLoop[dict[Hashable, _Flight[T]]] = PerLoop(dict)

    async def join(self, key: Hashable, load: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the flight for ``key``; takes off with ``load`` when there is none."""
        flights = self._flights.get()
        flight = flights.get(key)
        if flight is None or flight.task.done():
            flight = flights[key] = _Flight(asyncio.get_running_loop().create_task(load()))
            flight.task.add_done_callback(lambda task: self._landed(flights, key, task))
        elif (watching := observer()) is not None:
            watching.joined()
        flight.passengers += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if flight.task.cancelled() and (here is None or not here.cancelling()):
                raise LocusTieredError(
                    "the stack was closed while this was loaded; nothing was changed. Ask again"
                ) from None
            raise
        finally:
            flight.passengers -= 1
            if flight.passengers == 0 and not flight.task.done():
                flight.task.cancel()
                self._landed(flights, key, flight.task)

    async def land(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for the running loop's flights, then cancel those that are left."""
        tasks = {flight.task for flight in self._flights.get().values()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
        self._flights.drop()

    @staticmethod
    def _landed(flights: dict[Hashable, _Flight[T]], key: Hashable, task: asyncio.Task[T]) -> None:
        flight = flights.get(key)
        if flight is not None and flight.task is task:
            del flights[key]
        if task.done() and not task.cancelled():
            task.exception()  # every passenger may have left
