"""The state machine passes what is right, and finds what is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from locus.core.messages import Message, ToolCall
from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.faults import FaultyCheckpointer
from locus_tiered.testing.machine import (
    HOSTILE_IDS,
    PLAIN_IDS,
    DictionaryModel,
    Pair,
    checkpointer_machine,
    run_machine,
)
from locus_tiered.testing.model import difference, scribble
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.strategies import agent_states, metadata_dicts, metadata_of_seed, state_of_seed


class TooLarge(ValueError):
    """A store declines a save."""


# -- what is right passes ------------------------------------------------------------------------------


def test_the_reference_store_passes() -> None:
    run_machine(checkpointer_machine(ReferenceCheckpointer), max_examples=40)


def test_two_handles_on_the_reference_store_pass_in_loops_that_were_abandoned() -> None:
    cleaned: list[str] = []

    async def cleanup() -> None:
        cleaned.append("async")

    async def pair() -> Pair:
        first = ReferenceCheckpointer()
        return Pair(first, first.twin(), cleanup)

    run_machine(checkpointer_machine(pair, loops="abandoned"), max_examples=25)
    assert len(cleaned) >= 25


def test_a_faultless_faulty_checkpointer_passes() -> None:
    run_machine(checkpointer_machine(FaultyCheckpointer), max_examples=15)


def test_full_states_pass() -> None:
    machine = checkpointer_machine(ReferenceCheckpointer, states=agent_states(), loops="kept")
    run_machine(machine, max_examples=8)


def test_a_store_with_the_required_methods_only_passes() -> None:
    class Required(BaseCheckpointer):
        """Three methods, as the SDK asks for at least; ``delete`` stays the base class's."""

        def __init__(self) -> None:
            self._store = ReferenceCheckpointer()

        async def save(
            self,
            state: AgentState,
            thread_id: str,
            checkpoint_id: str | None = None,
            metadata: dict[str, Any] | None = None,
        ) -> str:
            return await self._store.save(state, thread_id, checkpoint_id, metadata)

        async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
            return await self._store.load(thread_id, checkpoint_id)

        async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
            return await self._store.list_checkpoints(thread_id, limit)

    run_machine(checkpointer_machine(Required), max_examples=15)


class KeepsThree(ReferenceCheckpointer):
    """Keeps the last three saves, whatever thread they are of."""

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        if len(json.dumps(state.to_checkpoint())) > 2_500:
            raise TooLarge
        saved = await super().save(state, thread_id, checkpoint_id, metadata)
        for key in list(self._arrivals)[:-3]:
            self._drop(*key)
        return saved


def test_a_bounded_store_passes_where_bounds_are_allowed() -> None:
    run_machine(checkpointer_machine(KeepsThree, bounded=True, refusals=(TooLarge,)), max_examples=40)


def test_a_bounded_store_with_two_handles_is_not_a_thing() -> None:
    def pair() -> Pair:
        first = KeepsThree()
        return Pair(first, first.twin())

    with pytest.raises(ValueError, match="bounded=True"):
        run_machine(checkpointer_machine(pair, bounded=True), max_examples=1)


# -- what is wrong is found ----------------------------------------------------------------------------


class SharesValues(ReferenceCheckpointer):
    """Hands out the object it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self._objects: dict[tuple[str, str], AgentState] = {}

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        saved = await super().save(state, thread_id, checkpoint_id, metadata)
        self._objects[thread_id, saved] = await ReferenceCheckpointer.load(self, thread_id, saved) or state
        return saved

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        found = self._find(thread_id, checkpoint_id)
        return None if found is None else self._objects.get((thread_id, found[0]))


class KeepsWhatWasPassed(SharesValues):
    """Keeps the caller's own object, and copies it only on the way out."""

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        saved = await ReferenceCheckpointer.save(self, state, thread_id, checkpoint_id, metadata)
        self._objects[thread_id, saved] = state
        return saved

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        kept = await super().load(thread_id, checkpoint_id)
        return None if kept is None else AgentState.from_checkpoint(json.loads(json.dumps(kept.to_checkpoint())))


class OrdersById(ReferenceCheckpointer):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return sorted(self.stored.get(thread_id, {}), reverse=True)[:limit]


class OldestFirst(ReferenceCheckpointer):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return list(self.stored.get(thread_id, {}))[:limit]


class ResaveStaysOld(ReferenceCheckpointer):
    def _keep(self, thread: str, checkpoint: str, text: Any) -> None:
        if checkpoint in self.stored.get(thread, {}):
            self.stored[thread][checkpoint] = text
        else:
            super()._keep(thread, checkpoint, text)


class Sanitises(ReferenceCheckpointer):
    """What is not a letter, a digit, ``-`` or ``_`` becomes ``_``, as in the SDK's file backend."""

    def _clean(self, name: str) -> str:
        return re.sub(r"[^\w-]", "_", name)

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        return await super().save(state, self._clean(thread_id), checkpoint_id, metadata)

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return await super().load(self._clean(thread_id), checkpoint_id)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return await super().list_checkpoints(self._clean(thread_id), limit)

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await super().delete(self._clean(thread_id), checkpoint_id)

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await super().exists(self._clean(thread_id), checkpoint_id)

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return CheckpointerCapabilities(persistent_checkpoint_ids=True)


class CutsIds(Sanitises):
    def _clean(self, name: str) -> str:
        return name[:255]


class NormalisesIds(Sanitises):
    def _clean(self, name: str) -> str:
        return unicodedata.normalize("NFC", name)


class FoldsCase(Sanitises):
    def _clean(self, name: str) -> str:
        return name.lower()


class ForgetsOnClose(ReferenceCheckpointer):
    async def close(self) -> None:
        self.stored.clear()
        self._arrivals.clear()


class NaiveCache(ReferenceCheckpointer):
    """Caches the latest per handle; nobody tells it of deletions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._latest: dict[str, str] = {}

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if checkpoint_id is None and thread_id in self._latest:
            return AgentState.from_checkpoint(json.loads(self._latest[thread_id]))
        state = await super().load(thread_id, checkpoint_id)
        if checkpoint_id is None and state is not None:
            self._latest[thread_id] = json.dumps(state.to_checkpoint())
        return state

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        self._latest.pop(thread_id, None)
        return await super().save(state, thread_id, checkpoint_id, metadata)


class CacheOfOneHandle(NaiveCache):
    """Drops its cache at every change that goes through itself, which is not every change."""

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        self._latest.pop(thread_id, None)
        return await super().delete(thread_id, checkpoint_id)

    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        self._latest.pop(dest_thread_id, None)
        return await super().copy_thread(source_thread_id, dest_thread_id)


class RacyFill(ReferenceCheckpointer):
    """A cache by id whose fill lands after a delete that overtook the read."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: dict[tuple[str, str], AgentState] = {}

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if checkpoint_id is None:
            return await super().load(thread_id)
        if (thread_id, checkpoint_id) not in self._cache:
            state = await super().load(thread_id, checkpoint_id)
            await asyncio.sleep(0)
            if state is None:
                return None
            self._cache[thread_id, checkpoint_id] = state
        return self._cache[thread_id, checkpoint_id].model_copy(deep=True)

    def _keep(self, thread: str, checkpoint: str, text: Any) -> None:
        self._cache.pop((thread, checkpoint), None)
        super()._keep(thread, checkpoint, text)

    def _drop(self, thread: str, checkpoint: str) -> bool:
        self._cache.pop((thread, checkpoint), None)
        return super()._drop(thread, checkpoint)


class LatestIsACopy(ReferenceCheckpointer):
    """Keeps the latest apart, and leaves it there when its checkpoint is deleted: the SDK's adapter."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[str, str] = {}

    def _keep(self, thread: str, checkpoint: str, text: Any) -> None:
        super()._keep(thread, checkpoint, text)
        self._copies[thread] = text.state

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if checkpoint_id is not None or thread_id not in self._copies:
            return await super().load(thread_id, checkpoint_id)
        return AgentState.from_checkpoint(json.loads(self._copies[thread_id]))


class ReadingMoves(ReferenceCheckpointer):
    """Loading a checkpoint makes it the newest."""

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        state = await super().load(thread_id, checkpoint_id)
        if state is not None and checkpoint_id is not None:
            self._keep(thread_id, checkpoint_id, self.stored[thread_id][checkpoint_id])
        return state


class BoundToItsFirstLoop(ReferenceCheckpointer):
    def __init__(self) -> None:
        super().__init__()
        self._gate: asyncio.Future[None] | None = None

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if self._gate is None:
            self._gate = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(self._gate.set_result, None)
            await self._gate
        elif self._gate.get_loop() is not asyncio.get_running_loop():
            raise RuntimeError("this gate is bound to a different event loop")
        return await super().load(thread_id, checkpoint_id)


class ClaimsSearch(ReferenceCheckpointer):
    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return CheckpointerCapabilities(branching=True, vacuum=False)


class CopiesBackwards(ReferenceCheckpointer):
    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        for name in await self.list_checkpoints(source_thread_id, 1_000):
            self._keep(dest_thread_id, name, self.stored[source_thread_id][name])
        return source_thread_id in self.stored


class SharesMetadata(ReferenceCheckpointer):
    def __init__(self) -> None:
        super().__init__()
        self._shared: dict[tuple[str, str], dict[str, Any]] = {}

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        row = await super().get_metadata(thread_id, checkpoint_id)
        return None if row is None else self._shared.setdefault((thread_id, row["checkpoint_id"]), row)


class VacuumsAll(ReferenceCheckpointer):
    async def vacuum(self, older_than_days: int = 30) -> int:
        return await super().vacuum(-1)


class IgnoresLimits(ReferenceCheckpointer):
    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return await super().list_checkpoints(thread_id, 1_000)


class AnswersTrue(ReferenceCheckpointer):
    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        await super().delete(thread_id, checkpoint_id)
        return True


class LosesATask(ReferenceCheckpointer):
    """Does part of its work in a task that fails with nobody to see it."""

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        async def background() -> None:
            raise RuntimeError("nobody saw this")

        task = asyncio.create_task(background())
        await asyncio.sleep(0)
        del task
        return await super().save(state, thread_id, checkpoint_id, metadata)


class Hangs(ReferenceCheckpointer):
    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        await asyncio.Event().wait()
        return False


BROKEN: dict[type[BaseCheckpointer], str] = {
    MemoryCheckpointer: "metadata|messages|provider_state",
    SharesValues: "metadata|messages",
    KeepsWhatWasPassed: "metadata|messages",
    OrdersById: "the list",
    OldestFirst: "the list",
    ResaveStaysOld: "the latest|the list|load",
    Sanitises: "the latest|the list|load|delete",
    CutsIds: "the latest|the list|load|delete",
    NormalisesIds: "the latest|the list|load|delete",
    FoldsCase: "the latest|the list|load|delete",
    ForgetsOnClose: "the latest|load|list|delete",
    NaiveCache: "the latest|load",
    RacyFill: "deleted|while it was|load|the latest",
    LatestIsACopy: "the latest|load",
    ReadingMoves: "the list|latest|order",
    CopiesBackwards: "latest|list|load",
    SharesMetadata: "metadata",
    VacuumsAll: "vacuum",
    IgnoresLimits: "the list of one",
    AnswersTrue: "delete",
    LosesATask: "nobody saw this",
    ClaimsSearch: "not declared, and yet works",
}


FORGIVEN: dict[type[BaseCheckpointer], set[Any]] = {
    # What else is wrong with these, so that what is asked about here is what is found.
    MemoryCheckpointer: {"emptied threads", "delete answers"},
    **{kind: {"undeclared operations"} for kind in (Sanitises, CutsIds, NormalisesIds, FoldsCase)},
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_store_is_found(broken: type[BaseCheckpointer]) -> None:
    with pytest.raises(AssertionError, match=BROKEN[broken]):
        # Found much sooner; the number leaves room for other versions of Hypothesis.
        run_machine(checkpointer_machine(broken, forgives=FORGIVEN.get(broken, set())), max_examples=500, shrink=False)


def test_a_store_bound_to_its_first_loop_is_found_only_where_loops_change() -> None:
    run_machine(checkpointer_machine(BoundToItsFirstLoop, loops="kept"), max_examples=5)
    with pytest.raises(RuntimeError, match="different event loop"):
        run_machine(checkpointer_machine(BoundToItsFirstLoop), max_examples=100, shrink=False)


def test_a_cache_that_believes_it_is_alone_is_found_by_the_second_handle() -> None:
    def pair() -> Pair:
        first = CacheOfOneHandle()
        return Pair(first, first.twin())

    run_machine(checkpointer_machine(CacheOfOneHandle), max_examples=15)
    with pytest.raises(AssertionError, match=r"latest|load"):
        run_machine(checkpointer_machine(pair), max_examples=100, shrink=False)


def test_a_step_that_never_ends_is_a_failure() -> None:
    with pytest.raises(AssertionError, match="no answer within"):
        run_machine(checkpointer_machine(Hangs, time_limit=0.05), max_examples=50, shrink=False)


def test_a_bounded_store_is_found_where_bounds_are_not_allowed() -> None:
    machine = checkpointer_machine(KeepsThree, refusals=(TooLarge,))
    with pytest.raises(AssertionError):
        run_machine(machine, max_examples=100, shrink=False)


def test_a_bounded_store_that_forgets_the_newest_is_found() -> None:
    class KeepsTheFirst(KeepsThree):
        async def save(
            self,
            state: AgentState,
            thread_id: str,
            checkpoint_id: str | None = None,
            metadata: dict[str, Any] | None = None,
        ) -> str:
            saved = await ReferenceCheckpointer.save(self, state, thread_id, checkpoint_id, metadata)
            for key in list(self._arrivals)[3:]:
                self._drop(*key)
            return saved

    with pytest.raises(AssertionError, match="the newest of"):
        run_machine(checkpointer_machine(KeepsTheFirst, bounded=True), max_examples=100, shrink=False)


def test_a_handle_that_is_stale_by_id_only_is_forgiven_where_asked() -> None:
    class CachesById(ReferenceCheckpointer):
        """A near tier for which a hit by id is final."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._near: dict[tuple[str, str], str] = {}

        async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
            if checkpoint_id is None:
                return await super().load(thread_id)
            if (thread_id, checkpoint_id) not in self._near:
                found = self._find(thread_id, checkpoint_id)
                if found is None:
                    return None
                self._near[thread_id, checkpoint_id] = found[1].state
            return AgentState.from_checkpoint(json.loads(self._near[thread_id, checkpoint_id]))

        async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
            return (thread_id, checkpoint_id) in self._near or await super().exists(thread_id, checkpoint_id)

        def _keep(self, thread: str, checkpoint: str, text: Any) -> None:
            self._near.pop((thread, checkpoint), None)
            super()._keep(thread, checkpoint, text)

        def _drop(self, thread: str, checkpoint: str) -> bool:
            self._near.pop((thread, checkpoint), None)
            return super()._drop(thread, checkpoint)

        async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
            for key in [key for key in self._near if key[0] == thread_id and checkpoint_id in (None, key[1])]:
                del self._near[key]
            return await super().delete(thread_id, checkpoint_id)

    def pair() -> Pair:
        first = CachesById()
        return Pair(first, first.twin())

    run_machine(checkpointer_machine(pair, forgives={"ids elsewhere"}), max_examples=25)
    with pytest.raises(AssertionError, match=r"deleted|checkpoint|load|exists"):
        run_machine(checkpointer_machine(pair), max_examples=500, shrink=False)


def test_what_is_forgiven_is_not_found() -> None:
    run_machine(checkpointer_machine(AnswersTrue, forgives={"delete answers"}), max_examples=25)


def test_plain_ids_spare_a_store_that_mixes_up_hostile_ones() -> None:
    machine = checkpointer_machine(
        Sanitises, thread_ids=PLAIN_IDS, checkpoint_ids=PLAIN_IDS, forgives={"undeclared operations"}
    )
    run_machine(machine, max_examples=15)


def test_the_shortest_program_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError) as failure:
        machine = checkpointer_machine(OldestFirst, thread_ids=["t"], checkpoint_ids=["a"], loops="kept")
        run_machine(machine, max_examples=30, steps=8)
    notes = "\n".join(getattr(failure.value, "__notes__", [])) + capsys.readouterr().out
    assert "state = CheckpointerMachine()" in notes
    assert notes.count("state.") < 12
    assert "got  ['" in str(failure.value)


# -- the parts -----------------------------------------------------------------------------------------


def test_the_model() -> None:
    model = DictionaryModel()
    for name in ("a", "b", "c", "a"):
        model.save("t", name, AgentState(agent_id=name), None)
    assert model.ids("t") == ["a", "c", "b"]
    assert model.copy("t", "u") and not model.copy("none", "u")
    assert model.delete("t", "c") and not model.delete("t", "c")
    assert model.delete("t") and not model.delete("t")
    assert list(model.deleted["t"]) == ["c", "b", "a"]
    assert model.rows() == [("u", "a"), ("u", "c"), ("u", "b")]
    model.retain("u", ["c"])
    assert (model.ids("u"), model.state("t"), model.find("u", "a")) == (["c"], None, None)
    model.save("t", "c", AgentState(), {"k": [1]})
    assert list(model.deleted["t"]) == ["b", "a"], "saved again is not deleted"


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(state=agent_states(), metadata=metadata_dicts())
def test_states_survive_json_text(state: AgentState, metadata: dict[str, Any]) -> None:
    assert AgentState.from_checkpoint(json.loads(json.dumps(state.to_checkpoint()))) == state
    assert json.loads(json.dumps(metadata)) == metadata


def test_quick_states_survive_json_text_and_differ() -> None:
    states = [state_of_seed(seed) for seed in range(50)]
    assert all(AgentState.from_checkpoint(json.loads(json.dumps(s.to_checkpoint()))) == s for s in states)
    assert len({state.run_id for state in states}) == 50
    assert state_of_seed(7) == state_of_seed(7)
    assert metadata_of_seed(0) == {} != metadata_of_seed(1)
    assert "\\ud800" not in json.dumps([state_of_seed(seed, hostile=False).to_checkpoint() for seed in range(50)])


@settings(
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(state=agent_states(hostile=False))
def test_states_that_are_not_hostile_are_what_jsonb_takes(state: AgentState) -> None:
    text = json.dumps(state.to_checkpoint(), ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode()


def test_hostile_ids_are_distinct_and_hostile() -> None:
    assert len(set(HOSTILE_IDS)) == len(HOSTILE_IDS)
    named = {"a/b", "a_b", "a:b", "..", ".", "_latest", "latest", "_checkpoints", "x.meta", ":", "a#1", "a_1"}
    assert named < set(HOSTILE_IDS)
    assert max(map(len, HOSTILE_IDS)) == 4096


def test_scribbling_reaches_everything_and_a_difference_names_the_fields() -> None:
    def make() -> AgentState:
        call = ToolCall(id="1", name="tool", arguments={"deep": [{"er": []}]})
        message = Message(role="assistant", content="x", tool_calls=[call], metadata={"m": 1})
        return AgentState(run_id="r", messages=(message,), metadata={"a": [1]}, provider_state={})

    def fields(lines: str) -> Iterator[str]:
        return (line.strip(" :") for line in lines.splitlines() if line.startswith("  ") and line[2] != " ")

    clean = make()
    state = clean.model_copy(deep=True)
    scribble(state)
    assert list(fields(difference(state, clean))) == ["messages", "provider_state", "metadata"]
    call = state.messages[0].tool_calls[0]
    assert call.name == "scribbled"
    assert call.arguments["deep"][0]["er"] == ["scribbled"]
    assert difference(["a"], None) == "  got  ['a']\n  want None"
