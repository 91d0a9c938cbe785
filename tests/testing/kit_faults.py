"""A store with one fault for each check of the contract kit, so that no check passes whatever it is given.

Here is what the SDK's documentation asks, and the order of checkpoints. ``kit_faults_more`` has isolation, bad
input, capabilities and optional operations; ``kit_faults_async`` has ids, concurrency, cancellation and loops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from locus.core.state import AgentState

from tests.testing.kit_stores import ReferenceStore

SPOILED: dict[str, type[ReferenceStore]] = {}
"""By the name of the check that must find the fault."""


def spoils(*checks: str) -> Callable[[type[ReferenceStore]], type[ReferenceStore]]:
    def register(store: type[ReferenceStore]) -> type[ReferenceStore]:
        for check in checks:
            assert check not in SPOILED, check
            SPOILED[check] = store
        return store

    return register


# -- what the SDK's documentation asks ------------------------------------------------------------


@spoils("empty_checkpointer")
class EmptyIsAnError(ReferenceStore):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        if not self.rows:
            raise KeyError("no such bucket")
        return await super().list_checkpoints(thread_id, limit)


class ChangesStates(ReferenceStore):
    """Something happens to a state on its way in."""

    def change(self, state: AgentState) -> AgentState:
        return state

    async def save(self, state: AgentState, *rest: Any, **named: Any) -> str:
        return await super().save(self.change(state), *rest, **named)


@spoils("round_trip")
class DropsProviderState(ChangesStates):
    def change(self, state: AgentState) -> AgentState:
        return state.model_copy(update={"provider_state": None})


@spoils("round_trip_of_a_large_state")
class CutsLongThreads(ChangesStates):
    def change(self, state: AgentState) -> AgentState:
        return state.model_copy(update={"messages": state.messages[-100:]})


@spoils("round_trip_of_an_empty_state")
class TakesEmptyForNone(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        state = await super().load(thread_id, checkpoint_id)
        return state if state and state.messages else None


@spoils("every_checkpoint_is_kept")
class KeepsOne(ReferenceStore):
    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        await self.delete(thread_id)
        return await super().save(state, thread_id, *rest, **named)


@spoils("threads_are_separate")
class OneNamespaceOfIds(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if checkpoint_id is not None:
            thread_id = next((key[0] for key in self.newest_first() if key[1] == checkpoint_id), thread_id)
        return await super().load(thread_id, checkpoint_id)


@spoils("unknown_is_none")
class UnknownIsTheLatest(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return await super().load(thread_id, checkpoint_id) or await super().load(thread_id)


@spoils("ids_are_made_up")
class OneIdForAll(ReferenceStore):
    async def save(self, state: AgentState, thread_id: str, checkpoint_id: str | None = None, *rest: Any) -> str:
        return await super().save(state, thread_id, checkpoint_id or "latest", *rest)


@spoils("given_id_is_kept")
class LowersIds(ReferenceStore):
    async def save(self, state: AgentState, thread_id: str, checkpoint_id: str | None = None, *rest: Any) -> str:
        return await super().save(state, thread_id, checkpoint_id and checkpoint_id.lower(), *rest)


@spoils("list_limit")
class IgnoresLimits(ReferenceStore):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return await super().list_checkpoints(thread_id, 100)


@spoils("list_limit_zero")
class TakesZeroForTen(ReferenceStore):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return await super().list_checkpoints(thread_id, limit or 10)


@spoils("list_negative_limit")
class SlicesNegativeLimits(ReferenceStore):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return (await super().list_checkpoints(thread_id, 1000))[:limit]


@spoils("list_of_an_unknown_thread")
class ListsEverything(ReferenceStore):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        own = await super().list_checkpoints(thread_id, limit)
        return own or [name for _, name in self.newest_first()]


@spoils("delete_one")
class DeletesWithoutAWord(ReferenceStore):
    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        await super().delete(thread_id, checkpoint_id)
        return None  # type: ignore[return-value]


@spoils("delete_thread")
class DeletesTenAtMost(ReferenceStore):
    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        if checkpoint_id is not None:
            return await super().delete(thread_id, checkpoint_id)
        return any([await super(DeletesTenAtMost, self).delete(*key) for key in self.newest_first(thread_id)[:10]])


@spoils("delete_unknown_thread", "delete_unknown_checkpoint")
class DeletesAnything(ReferenceStore):
    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        await super().delete(thread_id, checkpoint_id)
        return True


@spoils("exists")
class EverythingExists(ReferenceStore):
    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return True


@spoils("calls_of_the_agent")
class WantsAnId(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = "latest") -> AgentState | None:
        return await super().load(thread_id, None if checkpoint_id == "latest" else str(checkpoint_id))


@spoils("calls_of_the_graph")
class TakesNoKeywords(ReferenceStore):
    async def save(self, state: AgentState, thread_id: str, /, *rest: Any, **named: Any) -> str:
        return await super().save(state, thread_id, *rest, **named)


@spoils("metadata_argument")
class MixesMetadataIn(ReferenceStore):
    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        state = state.model_copy(update={"metadata": {**state.metadata, **(metadata or {})}})
        return await super().save(state, thread_id, checkpoint_id, metadata)


@spoils("object_is_truthy")
class HasALength(ReferenceStore):
    def __len__(self) -> int:
        return len(self.rows)


# -- order and deletes ----------------------------------------------------------------------------


@spoils("list_is_newest_first", "newest_is_the_last_saved", "latest_agrees_with_the_list")
class OrdersByName(ReferenceStore):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return sorted(await super().list_checkpoints(thread_id, 1000))[: max(limit, 0)]


@spoils("saving_again_makes_newest")
class KeepsItsPlace(ReferenceStore):
    async def save(self, state: AgentState, thread_id: str, checkpoint_id: str | None = None, *rest: Any) -> str:
        before = self.rows.get((thread_id, checkpoint_id or ""))
        name = await super().save(state, thread_id, checkpoint_id, *rest)
        if before is not None:
            self.rows[thread_id, name] = before[0], *self.rows[thread_id, name][1:]
        return name


@spoils("deleting_the_newest_falls_back", "thread_emptied_one_by_one")
class KeepsACopyOfTheLatest(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.latest: dict[str, AgentState] = {}

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        self.latest[thread_id] = state
        return await super().save(state, thread_id, *rest, **named)

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return self.latest.get(thread_id) if checkpoint_id is None else await super().load(thread_id, checkpoint_id)


@spoils("deleting_an_older_one_keeps_the_newest", "quick_turns_of_an_agent")
class MovesTheHeadOnDelete(ReferenceStore):
    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        done = await super().delete(thread_id, checkpoint_id)
        for key in sorted(self.newest_first(thread_id))[:1]:
            self.rows[key] = next(self.counter), *self.rows[key][1:]
        return done


@spoils("reading_changes_nothing")
class MovesWhatIsRead(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if row := self.rows.get((thread_id, checkpoint_id or "")):
            self.rows[thread_id, checkpoint_id or ""] = next(self.counter), *row[1:]
        return await super().load(thread_id, checkpoint_id)


@spoils("deleted_checkpoint_is_gone", "deleted_thread_starts_anew")
class HidesTheDeleted(ReferenceStore):
    """Only the list forgets, and only until the thread is saved again."""

    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.hidden: set[tuple[str, str]] = set()

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **named: Any) -> str:
        self.hidden = {key for key in self.hidden if key[0] != thread_id}
        return await super().save(state, thread_id, *rest, **named)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        names = await super().list_checkpoints(thread_id, 1000)
        return [name for name in names if (thread_id, name) not in self.hidden][:limit]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        gone = {key for key in self.newest_first(thread_id) if checkpoint_id in (None, key[1])} - self.hidden
        self.hidden |= gone
        return bool(gone)


@spoils("deleted_id_can_be_saved_again")
class BuriesForever(ReferenceStore):
    def __init__(self, on: ReferenceStore | None = None) -> None:
        super().__init__(on)
        self.buried: set[tuple[str, str | None]] = set()

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return None if (thread_id, checkpoint_id) in self.buried else await super().load(thread_id, checkpoint_id)

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        self.buried.add((thread_id, checkpoint_id))
        return await super().delete(thread_id, checkpoint_id)
