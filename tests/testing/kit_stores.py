"""Stores for the tests of the contract kit: one that keeps every promise, and ways to spoil it."""

from __future__ import annotations

import fnmatch
import itertools
import json
from typing import Any

from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer


class ReferenceStore(BaseCheckpointer):
    """JSON text by thread and id, ordered by a counter. ``on`` shares the rows of another one."""

    #: What a subclass says of itself.
    declared = CheckpointerCapabilities(
        search=True,
        metadata_query=True,
        vacuum=True,
        branching=True,
        list_threads=True,
        list_with_metadata=True,
        persistent_checkpoint_ids=True,
    )

    def __init__(self, on: ReferenceStore | None = None) -> None:
        self.rows: dict[tuple[str, str], tuple[int, str, str]] = {} if on is None else on.rows
        self.counter = itertools.count() if on is None else on.counter

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return self.declared

    def newest_first(self, thread_id: str | None = None) -> list[tuple[str, str]]:
        keys = [key for key in self.rows if thread_id is None or key[0] == thread_id]
        return sorted(keys, key=lambda key: self.rows[key][0], reverse=True)

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        text, beside = json.dumps(state.to_checkpoint()), json.dumps(metadata or {})
        number = next(self.counter)
        name = f"made-up-{number}" if checkpoint_id is None else checkpoint_id
        self.rows[thread_id, name] = number, text, beside
        return name

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        keys = self.newest_first(thread_id)[:1] if checkpoint_id is None else [(thread_id, checkpoint_id)]
        for key in keys:
            if key in self.rows:
                return AgentState.from_checkpoint(json.loads(self.rows[key][1]))
        return None

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return [name for _, name in self.newest_first(thread_id)][: max(limit, 0)]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        keys = self.newest_first(thread_id) if checkpoint_id is None else [(thread_id, checkpoint_id)]
        gone = [key for key in keys if self.rows.pop(key, None) is not None]
        return bool(gone)

    def row(self, key: tuple[str, str]) -> dict[str, Any]:
        return {"thread_id": key[0], "checkpoint_id": key[1], "metadata": json.loads(self.rows[key][2])}

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        self._require_capability("metadata_query")
        keys = self.newest_first(thread_id)[:1] if checkpoint_id is None else [(thread_id, checkpoint_id)]
        return self.row(keys[0]) if keys and keys[0] in self.rows else None

    async def query_by_metadata(self, key: str, value: Any, limit: int = 100) -> list[dict[str, Any]]:
        self._require_capability("metadata_query")
        rows = [self.row(each) for each in self.newest_first()]
        return [row for row in rows if key in row["metadata"] and row["metadata"][key] == value][:limit]

    async def list_with_metadata(self, limit: int = 100) -> list[dict[str, Any]]:
        self._require_capability("list_with_metadata")
        return [self.row(key) for key in self.newest_first()][:limit]

    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        self._require_capability("list_threads")
        threads = dict.fromkeys(thread for thread, _ in self.newest_first())
        return [thread for thread in threads if fnmatch.fnmatchcase(thread, pattern)][:limit]

    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        self._require_capability("branching")
        keys = self.newest_first(source_thread_id)
        for key in reversed(keys):
            self.rows[dest_thread_id, key[1]] = next(self.counter), *self.rows[key][1:]
        return bool(keys)

    async def vacuum(self, older_than_days: int = 30) -> int:
        self._require_capability("vacuum")
        return 0

    async def search(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        self._require_capability("search")
        found = [key for key in self.newest_first() if query in self.rows[key][1]]
        return [{"thread_id": thread, "checkpoint_id": name, "score": 1.0} for thread, name in found][:limit]


class BareStore(ReferenceStore):
    """The same with nothing optional: every operation that is not declared refuses."""

    declared = CheckpointerCapabilities()


class StoreWithoutDelete(BareStore):
    """A store that cannot delete, and says so."""

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        raise NotImplementedError("this store keeps everything")

    @property
    def deletes_single_checkpoints(self) -> bool:
        return False
