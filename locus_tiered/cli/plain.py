"""A checkpointer without a stack, read by the names that its own users gave.

A stack spells out ids that a backend would mangle (``core/ids.py``); the users of a bare backend do not, and
``FileCheckpointer`` keeps their ``server:4711`` under a name of its own. Who looks into a bare store from outside
finds both kinds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar, cast

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.ids import ANY
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.operations import Delete, ListCheckpoints, ListThreads, Load, Operation
from locus_tiered.layers.names import short_name

__all__ = ["Plain"]

R = TypeVar("R")


class Plain(Layer):
    """A bare checkpointer: a thread is looked for under the stack's name for it first, then under its own.

    What is saved to a thread that is not there yet is saved under its own id, as the backend's users would.
    """

    def __init__(self, backend: BaseCheckpointer) -> None:
        leaf = Leaf(backend)
        leaf.name = short_name(leaf)
        super().__init__(leaf, name=leaf.name)
        self._leaf = leaf
        self._own = Leaf(backend, traits=replace(leaf.traits, thread_ids=ANY, checkpoint_ids=ANY), name=leaf.name)
        self._spelled: dict[str, bool] = {}

    async def handle(self, operation: Operation[R]) -> R:
        """The operation under the name that the thread has."""
        if isinstance(operation, ListThreads):
            return cast("R", await self._threads(operation))
        if len(operation.threads) != 1:
            return await self.inner.handle(operation)
        thread = operation.threads[0]
        if self._leaf.traits.thread_ids.encode(thread) != thread and not await self._is_spelled(thread):
            return await self._own.handle(operation)
        found = await self.inner.handle(operation)
        if not found and isinstance(operation, Load | Delete) and operation.checkpoint_id is not None:
            name = operation.checkpoint_id
            if self._leaf.traits.checkpoint_ids.encode(name) != name:
                return cast("R", await self._own.handle(operation))
        return found

    async def _threads(self, operation: ListThreads) -> list[str]:
        # Each leaf leaves out what it finds no checkpoint of under its own names.
        found = [*await self.inner.handle(operation), *await self._own.handle(operation)]
        return list(dict.fromkeys(found))[: operation.limit]

    async def _is_spelled(self, thread: str) -> bool:
        if thread not in self._spelled:
            found = await self.inner.handle(ListCheckpoints(thread, 1))
            if not found:
                return False
            self._spelled[thread] = True
        return True
