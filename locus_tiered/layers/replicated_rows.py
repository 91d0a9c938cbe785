"""The listings over all threads of replication: answered by one replica that can, and that has missed nothing."""

from __future__ import annotations

import fnmatch
from abc import abstractmethod
from typing import TypeVar

from locus_tiered.core.errors import BackendError, LocusTieredError
from locus_tiered.core.layer import MOST
from locus_tiered.core.operations import ListThreads, ListWithMetadata, Operation, QueryByMetadata, Row, Search
from locus_tiered.core.ordering import OrderingLayer
from locus_tiered.layers.replica import Replica

__all__ = ["ReplicatedRows"]

T = TypeVar("T")


class ReplicatedRows(OrderingLayer, base=True):
    """See :class:`~locus_tiered.layers.replicated.ReplicatedCheckpointer`."""

    _replicas: tuple[Replica, ...]

    @abstractmethod
    async def _ready(self) -> None:
        """Before an operation: hints of former processes, and who was away for too long."""

    @abstractmethod
    def _order(self, key: str | None = None) -> list[Replica]:
        """The replicas that are believed."""

    @abstractmethod
    async def _is_in_use(self, replica: Replica) -> bool:
        """Whether a replica shows what every one that is in use holds: one that cannot be reached, or lost all, may
        say that there is nothing.
        """

    async def _in_step(self, op: Operation[T]) -> T:
        """Ask a replica that can and has missed nothing; one that has missed something is mended first."""
        await self._ready()
        able = [replica for replica in self._order() if op.flag is None or replica.layer.explain()[op.flag]]
        failure: BaseException | None = None
        # The same one as before, if it can be, however fast others are: each lists in an order of its own.
        able.sort(key=lambda each: (not each.in_step, each.is_resting, self._replicas.index(each)))
        for replica in able:
            try:
                if not replica.in_step:
                    await replica.deliver_all()
                if replica.in_step:
                    found = await replica.ask(op)
                    if found or await self._is_in_use(replica):
                        return found
            except (LocusTieredError, OSError) as error:
                failure = error
        raise BackendError(
            f"{self.name}: no replica that can {op.name} can be reached and is in step; nothing was changed. Try again "
            "later, or scrub()",
            member=self.name,
            operation=op.name,
            temporary=True,
        ) from failure

    async def on_search(self, op: Search) -> list[Row]:
        return await self._in_step(op)

    async def on_query_by_metadata(self, op: QueryByMetadata) -> list[Row]:
        return await self._in_step(op)

    async def on_list_with_metadata(self, op: ListWithMetadata) -> list[Row]:
        return await self._in_step(op)

    async def on_list_threads(self, op: ListThreads) -> list[str]:
        found = await self._in_step(ListThreads(MOST, op.pattern)) if op.pattern != "*" else await self._in_step(op)
        return [thread for thread in found if fnmatch.fnmatchcase(thread, op.pattern)][: op.limit]
