"""The listing operations of a leaf: over all threads, answered in rows."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.calls import Calls
from locus_tiered.core.envelope import Envelope
from locus_tiered.core.ids import RESERVED, is_hashed
from locus_tiered.core.layer import DispatchingLayer
from locus_tiered.core.operations import (
    GetMetadata,
    ListThreads,
    ListWithMetadata,
    QueryByMetadata,
    Row,
    Search,
)
from locus_tiered.core.rows import metadata_row, newest_first, uniform_rows
from locus_tiered.core.traits import Traits

__all__ = ["ALL", "LeafRows"]

ALL = 1_000_000
"""What the SDK itself passes as a limit where it means all."""

_OURS = 4
"""Threads of the stack's own that are mostly among those that a backend lists, beside the limit."""


class LeafRows(DispatchingLayer, base=True):
    """See :class:`~locus_tiered.core.leaf.Leaf`, which is this with the operations on one thread."""

    backend: BaseCheckpointer
    _calls: Calls
    _traits: Traits

    async def _list(self, thread_id: str, limit: int) -> list[str]:
        raise NotImplementedError

    async def on_search(self, op: Search) -> list[Row]:
        rows = await self._calls.make("search", None, self.backend.search, op.query, op.limit)
        await self._calls.sure("search", None, empty=not rows)
        return uniform_rows(rows, self._traits)[: op.limit]

    async def on_query_by_metadata(self, op: QueryByMetadata) -> list[Row]:
        rows = await self._calls.make(
            "query_by_metadata",
            None,
            self.backend.query_by_metadata,
            op.key,
            op.value,
            op.limit,
        )
        await self._calls.sure("query_by_metadata", None, empty=not rows)
        return uniform_rows(rows, self._traits)[: op.limit]

    async def on_get_metadata(self, op: GetMetadata) -> Row | None:
        thread = self._traits.thread_ids.encode(op.thread_id)
        name = None if op.checkpoint_id is None else self._traits.checkpoint_ids.encode(op.checkpoint_id)
        found = await self._calls.make("get_metadata", op.thread_id, self.backend.get_metadata, thread, name)
        await self._calls.sure("get_metadata", op.thread_id, empty=not found)
        return metadata_row(found, op.thread_id, op.checkpoint_id, self._traits)

    async def on_list_with_metadata(self, op: ListWithMetadata) -> list[Row]:
        rows = await self._calls.make("list_with_metadata", None, self.backend.list_with_metadata, ALL, empty=[])
        await self._calls.sure("list_with_metadata", None, empty=not rows)
        return newest_first(uniform_rows(rows, self._traits), self._traits)[: op.limit]

    async def on_list_threads(self, op: ListThreads) -> list[str]:
        traits = self._traits
        all_of_them = op.pattern != "*" or traits.keeps_empty_threads or traits.prunes or traits.thread_names
        most = ALL if all_of_them else op.limit + _OURS
        threads, told = await self._threads(op, most)
        if len(threads) < op.limit and most <= told:  # more of our own than that, which hide others
            threads, _ = await self._threads(op, ALL)
        return threads

    async def _threads(self, op: ListThreads, most: int) -> tuple[list[str], int]:
        """The threads of users among the first ``most``, and how many there were with the stack's own."""
        names = await self._thread_names(most)
        await self._calls.sure("list_threads", None, empty=not names)
        threads: list[str] = []
        for name in names:
            thread = await self._thread_of(name)
            if thread is None or thread.startswith(RESERVED) or not fnmatch.fnmatchcase(thread, op.pattern):
                continue
            if not self._traits.keeps_empty_threads or await self._list(thread, 1):
                threads.append(thread)
                if len(threads) == op.limit:
                    break
        return threads, len(names)

    async def _thread_names(self, most: int) -> Sequence[str]:
        """What the backend calls its threads, the stack's own among them."""
        if self._traits.thread_names is not None:
            return await self._calls.make("list_threads", None, self._traits.thread_names)
        return await self._calls.make("list_threads", None, self.backend.list_threads, most, empty=[])

    async def _thread_of(self, name: str) -> str | None:
        """The id of a thread by what the backend calls it."""
        return await self._thread_behind(name) if is_hashed(name) else self._traits.thread_ids.decode(name)

    async def _thread_behind(self, name: str) -> str | None:
        """The id of a thread whose name is a hash, from the envelope of one of its checkpoints."""
        state = await self._calls.make("list_threads", None, self.backend.load, name)
        envelope = None if state is None else Envelope.read(state.metadata)
        return None if envelope is None else envelope.thread
