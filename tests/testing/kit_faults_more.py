"""More stores with one fault each: shared objects, bad input, capabilities, optional operations."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState

from tests.testing.kit_faults import ChangesStates, spoils
from tests.testing.kit_stores import BareStore, ReferenceStore

# -- isolation and bad input ----------------------------------------------------------------------


@spoils("loaded_state_is_own", "metadata_is_own", "listed_metadata_is_own")
class KeepsObjects(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.objects: dict[tuple[str, str], Any] = {}
        self.metadata: dict[tuple[str, str], Any] = {}

    async def save(self, state: AgentState, thread_id: str, checkpoint_id: str | None = None, *rest: Any) -> str:
        name = await super().save(state, thread_id, checkpoint_id, *rest)
        self.objects[thread_id, name] = state.to_checkpoint()
        self.metadata[thread_id, name] = rest[0] if rest else {}
        return name

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        for key in self.newest_first(thread_id):
            if checkpoint_id in (None, key[1]):
                return AgentState.from_checkpoint(self.objects[key])
        return None

    def row(self, key: tuple[str, str]) -> dict[str, Any]:
        return {**super().row(key), "metadata": self.metadata[key]}


@spoils("saved_state_is_own")
class KeepsTheStateItself(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.states: dict[tuple[str, str], AgentState] = {}

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        name = await super().save(state, thread_id, *rest, **named)
        self.states[thread_id, name] = state
        return name

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        for key in self.newest_first(thread_id):
            if checkpoint_id in (None, key[1]):
                return deepcopy(self.states[key])
        return None


@spoils("unserialisable_state")
class SaysItInWords(ChangesStates):
    def change(self, state: AgentState) -> AgentState:
        return state.model_copy(update={"metadata": json.loads(json.dumps(state.metadata, default=str))})


@spoils("unserialisable_metadata")
class WritesBeforeItKnows(ReferenceStore):
    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        name = await super().save(state, thread_id, checkpoint_id)
        return await super().save(state, thread_id, name, metadata)


@spoils("none_is_refused")
class TakesNoneForEmpty(ChangesStates):
    def change(self, state: AgentState) -> AgentState:
        return AgentState() if state is None else state


@spoils("lone_surrogate_in_a_message")
class ReplacesSurrogates(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        state = await super().load(thread_id, checkpoint_id)
        return state and AgentState.model_validate_json(
            json.dumps(state.to_checkpoint(), ensure_ascii=False).encode("utf-8", "replace")
        )


@spoils("nul_in_a_message")
class DropsNuls(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        state = await super().load(thread_id, checkpoint_id)
        text = None if state is None else json.dumps(state.to_checkpoint()).replace("\\u0000", "")
        return None if text is None else AgentState.from_checkpoint(json.loads(text))


# -- capabilities and optional operations ---------------------------------------------------------


@spoils(
    "search_refuses",
    "query_by_metadata_refuses",
    "get_metadata_refuses",
    "vacuum_refuses",
    "copy_thread_refuses",
    "list_threads_refuses",
    "list_with_metadata_refuses",
)
class WorksUndeclared(BareStore):
    def _require_capability(self, capability: str) -> None:
        pass


@spoils("capabilities_are_declared")
class DeclaresNumbers(ReferenceStore):
    declared = CheckpointerCapabilities(list_threads=1)  # type: ignore[arg-type]


@spoils("deletes_single_is_a_bool")
class SaysOne(ReferenceStore):
    @property
    def deletes_single_checkpoints(self) -> bool:
        return 1  # type: ignore[return-value]


@spoils("no_single_deletes_by_mistake")
class SaysFalseByMistake(ReferenceStore):
    @property
    def deletes_single_checkpoints(self) -> bool:
        return False


@spoils("deletes_single_works")
class Chained(ReferenceStore):
    """A checkpoint needs the one before it, as deltas do."""

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        names = [name for _, name in self.newest_first(thread_id)]
        if checkpoint_id in names[1:]:
            await super().delete(thread_id, names[names.index(checkpoint_id) - 1])
        return await super().delete(thread_id, checkpoint_id)


@spoils("get_metadata_by_id", "get_metadata_of_the_latest", "get_metadata_of_unknown")
class MuddlesMetadata(ReferenceStore):
    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        found = await super().get_metadata(thread_id, checkpoint_id)
        return {**found, "checkpoint_id": "row 7"} if found and checkpoint_id else {}


@spoils("query_by_metadata", "query_limit")
class FindsEverything(ReferenceStore):
    async def query_by_metadata(self, key: str, value: Any, limit: int = 100) -> list[dict[str, Any]]:
        return [self.row(each) for each in self.newest_first()]


@spoils("metadata_goes_with_its_checkpoint", "list_threads_forgets_the_deleted", "list_threads_forgets_the_emptied")
class ForgetsNothing(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.seen: dict[tuple[str, str], dict[str, Any]] = {}

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        name = await super().save(state, thread_id, *rest, **named)
        self.seen[thread_id, name] = self.row((thread_id, name))
        return name

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        return self.seen.get((thread_id, checkpoint_id or ""))

    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        return list(dict.fromkeys(thread for thread, _ in self.seen))


@spoils("list_threads", "list_threads_pattern", "list_threads_limit")
class ListsKeys(ReferenceStore):
    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        return [f"{thread}:{name}" for thread, name in self.newest_first()][: limit or None]


@spoils("list_with_metadata", "list_with_metadata_is_newest_first")
class ListsByKey(ReferenceStore):
    async def list_with_metadata(self, limit: int = 100) -> list[dict[str, Any]]:
        return [{**self.row(key), "metadata": {}} for key in sorted(self.rows)][:limit]


@spoils("copy_thread", "copy_of_an_unknown_thread", "copy_keeps_metadata")
class CopiesCarelessly(ReferenceStore):
    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        for _, name in sorted(self.newest_first(source_thread_id)):
            state = await self.load(source_thread_id, name)
            assert state is not None
            await self.save(state, dest_thread_id, name)
        return True


@spoils("copy_is_independent")
class CopiesByReference(ReferenceStore):
    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        self.alias = {dest_thread_id: source_thread_id}
        return bool(self.newest_first(source_thread_id))

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        return await super().save(state, getattr(self, "alias", {}).get(thread_id, thread_id), *rest, **named)


@spoils("copy_is_listed_as_itself")
class NamesTheSource(ReferenceStore):
    async def list_with_metadata(self, limit: int = 100) -> list[dict[str, Any]]:
        return [{**row, "thread_id": "source"} for row in await super().list_with_metadata(limit)]


@spoils("vacuum_keeps_the_young")
class SweepsAll(ReferenceStore):
    async def vacuum(self, older_than_days: int = 30) -> int:
        count = len(self.rows)
        self.rows.clear()
        return count


@spoils("search")
class FindsNothing(ReferenceStore):
    async def search(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        return []
