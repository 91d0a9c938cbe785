"""What our own stores share: they order by stamp themselves, and answer every optional operation but search."""

from __future__ import annotations

import fnmatch
from abc import abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from locus_tiered.core.capabilities import SINGLE_DELETES, Explanation, Verdict
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.operations import (
    CopyThread,
    Exists,
    GetMetadata,
    Head,
    ListCheckpoints,
    Load,
    Row,
    Save,
)
from locus_tiered.core.ordering import OrderingLayer
from locus_tiered.core.stamp import stamp_seconds

__all__ = ["Store", "matching", "row_of"]


def row_of(checkpoint: Checkpoint, saved_at: float) -> Row:
    """A checkpoint without its state, as the listing operations answer it."""
    row: Row = {
        "thread_id": checkpoint.thread_id,
        "checkpoint_id": checkpoint.id,
        "created_at": datetime.fromtimestamp(saved_at, UTC).isoformat(),
        "metadata": deepcopy(dict(checkpoint.metadata)),
    }
    if checkpoint.stamp is not None:
        row["stamp"] = checkpoint.stamp
    return row


def matching(threads: Iterable[str], pattern: str, limit: int) -> list[str]:
    """The first ``limit`` of ``threads`` that a shell-style pattern matches."""
    found = []
    for thread in threads:
        if not thread.startswith(RESERVED) and (pattern == "*" or fnmatch.fnmatchcase(thread, pattern)):
            found.append(thread)
            if len(found) == limit:
                break
    return found


def same_value(found: Any, wanted: Any) -> bool:
    """Equality as JSON means it: ``True`` is not ``1``."""
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


class Store(OrderingLayer, base=True):
    """A leaf of a stack that is ours.

    A subclass keeps checkpoints by ``(thread, id)`` with their stamps; filling in an old one never moves a
    thread's head.
    """

    @property
    @abstractmethod
    def expires(self) -> bool:
        """Whether checkpoints go by themselves after a time."""

    def explain(self) -> Explanation:
        def verdict(granted: bool, reason: str) -> Verdict:
            return Verdict(granted, self.name, reason)

        verdicts = {
            flag: verdict(True, "a store of this library")
            for flag in (
                "metadata_query",
                "vacuum",
                "branching",
                "list_threads",
                "list_with_metadata",
                "persistent_checkpoint_ids",
                SINGLE_DELETES,
            )
        }
        verdicts["search"] = verdict(False, "it keeps no full-text index")
        verdicts["ttl"] = verdict(self.expires, "ttl= is set" if self.expires else "no ttl= is set")
        return Explanation(verdicts)

    async def on_exists(self, op: Exists) -> bool:
        if op.checkpoint_id is None:
            return await self.handle(Head(op.thread_id)) is not None
        return await self.handle(Load(op.thread_id, op.checkpoint_id)) is not None

    async def on_get_metadata(self, op: GetMetadata) -> Row | None:
        found = await self.handle(Load(op.thread_id, op.checkpoint_id))
        if found is None:
            return None
        return row_of(found, 0.0 if found.stamp is None else stamp_seconds(found.stamp))

    async def on_copy_thread(self, op: CopyThread) -> bool:
        entries: list[Entry] = await self.handle(ListCheckpoints(op.source_thread_id, limit=10**9, ordered=True))
        key = await self._look(op.dest_thread_id, again=True)
        copied = False
        for entry in reversed(entries):
            found = await self.handle(Load(op.source_thread_id, entry.id, entry.stamp))
            if found is not None:
                checkpoint = self._restamped(found, op.dest_thread_id, key)
                await self.handle(Save(op.dest_thread_id, None, checkpoint.id, None, checkpoint))
                copied = True
        return copied
