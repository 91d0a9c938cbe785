"""An exact checkpointer in a few lines: what the fault kit damages and what the state machine is checked on.

It promises what a plain dictionary of threads would do: the newest is the last saved, saving an id again
makes it newest, any string is an id, what is stored is JSON text and therefore nobody else's object. Every
optional operation but full-text search works. :meth:`ReferenceCheckpointer.twin` opens a second handle on the
same data.

It does not last longer than its process, is bounded by nothing and knows nothing of stacks: to one, it is a
foreign backend.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any
from uuid import uuid4

from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.units import DAY

__all__ = ["ReferenceCheckpointer", "StoredText"]


@dataclass(frozen=True, slots=True)
class StoredText:
    """One stored checkpoint: JSON texts, and the wall-clock second at which it arrived."""

    state: str
    metadata: str
    arrived: float


class ReferenceCheckpointer(BaseCheckpointer):
    """A ``BaseCheckpointer`` in memory that answers exactly as the laws say.

    Args:
        clock: The wall clock, in seconds; only ``vacuum`` looks at it. Order comes from arrival alone.

    ``stored`` is the back door for tests: thread -> id -> :class:`StoredText`, oldest first. A thread without
    checkpoints is not in it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.stored: dict[str, dict[str, StoredText]] = {}
        self._arrivals: dict[tuple[str, str], None] = {}

    def twin(self) -> ReferenceCheckpointer:
        """A second handle on the same data, as another process would have."""
        other = type(self)(clock=self._clock)
        other.stored, other._arrivals = self.stored, self._arrivals
        return other

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return CheckpointerCapabilities(
            metadata_query=True,
            vacuum=True,
            branching=True,
            list_threads=True,
            list_with_metadata=True,
            persistent_checkpoint_ids=True,
        )

    def _keep(self, thread: str, checkpoint: str, text: StoredText) -> None:
        # Taken out and put in again: a dictionary's order is then the order of arrival.
        self._drop(thread, checkpoint)
        self.stored.setdefault(thread, {})[checkpoint] = text
        self._arrivals[thread, checkpoint] = None

    def _drop(self, thread: str, checkpoint: str) -> bool:
        kept = self.stored.get(thread, {})
        if kept.pop(checkpoint, None) is None:
            return False
        del self._arrivals[thread, checkpoint]
        if not kept:
            del self.stored[thread]
        return True

    def _find(self, thread: str, checkpoint: str | None) -> tuple[str, StoredText] | None:
        kept = self.stored.get(thread)
        if not kept:
            return None
        name = next(reversed(kept)) if checkpoint is None else checkpoint
        return (name, kept[name]) if name in kept else None

    def _rows(self) -> Iterator[dict[str, Any]]:
        for thread, checkpoint in reversed(self._arrivals):
            yield self._row(thread, checkpoint, self.stored[thread][checkpoint])

    @staticmethod
    def _row(thread: str, checkpoint: str, text: StoredText) -> dict[str, Any]:
        return {
            "thread_id": thread,
            "checkpoint_id": checkpoint,
            "created_at": text.arrived,
            "metadata": json.loads(text.metadata),
        }

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        # Encoded whole before anything is touched: a state without a JSON form changes nothing.
        text = StoredText(json.dumps(state.to_checkpoint()), json.dumps(metadata or {}), self._clock())
        name = uuid4().hex if checkpoint_id is None else checkpoint_id
        self._keep(thread_id, name, text)
        return name

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        found = self._find(thread_id, checkpoint_id)
        return None if found is None else AgentState.from_checkpoint(json.loads(found[1].state))

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return list(reversed(self.stored.get(thread_id, {})))[: max(limit, 0)]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        if checkpoint_id is not None:
            return self._drop(thread_id, checkpoint_id)
        names = list(self.stored.get(thread_id, {}))
        for name in names:
            self._drop(thread_id, name)
        return bool(names)

    @property
    def deletes_single_checkpoints(self) -> bool:
        return True

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return self._find(thread_id, checkpoint_id) is not None

    async def close(self) -> None:
        """Nothing to let go of; usable afterwards."""

    async def query_by_metadata(self, key: str, value: Any, limit: int = 100) -> list[dict[str, Any]]:
        matching = (row for row in self._rows() if key in row["metadata"] and row["metadata"][key] == value)
        return list(islice(matching, max(limit, 0)))

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        found = self._find(thread_id, checkpoint_id)
        return None if found is None else self._row(thread_id, *found)

    async def vacuum(self, older_than_days: int = 30) -> int:
        horizon = self._clock() - older_than_days * DAY
        old = [key for key in self._arrivals if self.stored[key[0]][key[1]].arrived < horizon]
        for thread, checkpoint in old:
            self._drop(thread, checkpoint)
        return len(old)

    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        source = dict(self.stored.get(source_thread_id, {}))
        for checkpoint, text in source.items():
            self._keep(dest_thread_id, checkpoint, text)
        return bool(source)

    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        newest_first = dict.fromkeys(thread for thread, _ in reversed(self._arrivals))
        return list(islice((name for name in newest_first if fnmatchcase(name, pattern)), max(limit, 0)))

    async def list_with_metadata(self, limit: int = 100) -> list[dict[str, Any]]:
        return list(islice(self._rows(), max(limit, 0)))

    def __repr__(self) -> str:
        return "ReferenceCheckpointer()"
