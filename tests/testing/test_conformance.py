"""The contract kit without pytest: it passes what is right, and every check of it finds what it is there for."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from locus.core.state import AgentState
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered.testing.checks import all_checks, check
from locus_tiered.testing.conformance import ConformanceReport, check_checkpointer_conformance
from tests.testing import kit_faults_async, kit_faults_more
from tests.testing.kit_faults import SPOILED
from tests.testing.kit_stores import BareStore, ReferenceStore, StoreWithoutDelete

NAMES = [one.name for one in all_checks()]


def failed(report: ConformanceReport) -> set[str]:
    return {one.name for one in report.checks if not one.ok}


async def run(store: type[ReferenceStore], *only: str, **options: Any) -> ConformanceReport:
    return await check_checkpointer_conformance(
        store, reopen=lambda one: type(one)(one), only=only or None, raise_on_failure=False, **options
    )


# -- what is right passes -------------------------------------------------------------------------


async def test_a_store_that_keeps_every_promise_passes() -> None:
    report = await run(ReferenceStore)
    assert report.failures == []
    assert report.ok
    # What is skipped is the other direction of the capabilities, and nothing else.
    assert {one.name for one in report.checks if one.skipped} == {
        one.name for one in all_checks() if one.without is not None
    }


@pytest.mark.parametrize("store", [BareStore, StoreWithoutDelete])
async def test_a_store_without_optional_operations_passes(store: type[ReferenceStore]) -> None:
    report = await run(store)
    assert report.failures == []
    ran = {one.name for one in report.checks if not one.skipped}
    assert {one.name for one in all_checks() if one.without not in (None, "deletes_single_checkpoints")} <= ran
    assert not {one.name for one in all_checks() if set(one.needs) - {"delete", "deletes_single_checkpoints"}} & ran
    assert ("delete_thread" in ran) == (store is BareStore)
    assert ("no_single_deletes_by_mistake" in ran) == (store is StoreWithoutDelete)


# -- every check finds something ------------------------------------------------------------------


def test_every_check_has_a_store_that_it_must_find() -> None:
    assert set(SPOILED) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
async def test_the_check_finds_its_fault(name: str) -> None:
    report = await run(SPOILED[name], name)
    assert failed(report) == {name}, f"{SPOILED[name].__name__} was not found: {report.checks}"
    assert "raised NameError" not in report.failures[0]
    assert "raised TypeError" not in report.failures[0] or name == "calls_of_the_graph"


async def test_a_truthy_value_is_not_true_enough_for_an_agent() -> None:
    names = {"deletes_single_is_a_bool", "no_single_deletes_by_mistake"}
    assert failed(await run(kit_faults_more.SaysOne, *names, "delete_one")) == names


async def test_a_swallowed_cancellation_is_found() -> None:
    report = await run(kit_faults_async.SwallowsCancellation, "cancelled_load")
    assert "answered instead of leaving" in report.failures[0]


# -- the SDK's own --------------------------------------------------------------------------------


async def test_memory_checkpointer() -> None:
    report = await check_checkpointer_conformance(MemoryCheckpointer, raise_on_failure=False)
    assert failed(report) == {
        "list_negative_limit",  # sliced
        "list_threads_forgets_the_emptied",
        "loaded_state_is_own",  # nested values are shared with the store
    }
    skipped = {one.name: one.detail for one in report.checks if one.skipped}
    assert "no reopen was given" in skipped["two_handles_lose_nothing"]
    assert skipped["vacuum_keeps_the_young"] == "the checkpointer does not have vacuum"


async def test_file_checkpointer(tmp_path: Path) -> None:
    numbers = count()
    report = await check_checkpointer_conformance(
        lambda: FileCheckpointer(tmp_path / str(next(numbers))),
        reopen=lambda one: FileCheckpointer(one.base_dir),
        raise_on_failure=False,
    )
    found = failed(report)
    mixed_up = {"separators", "blanks", "surrogates"}
    assert {f"thread_ids_with_{what}" for what in mixed_up} <= found
    assert {f"checkpoint_ids_with_{what}" for what in mixed_up} <= found
    assert {
        "empty_thread_id",  # delete("") takes every thread
        "pairs_that_join_alike",
        "thread_ids_that_are_long",  # OSError
        "list_negative_limit",
        "list_threads_limit",  # 0 gives one
        "unserialisable_metadata",  # turned into text
        "second_loop_after_close",  # a lock of another loop
        "second_loop_without_close",
    } <= found
    assert not {one.name for one in report.checks if one.law in (2, 3, 4, 5, 9)} & found
    assert "load of another thread after delete('')" in report.result("empty_thread_id").detail


# -- the report -----------------------------------------------------------------------------------


class Hangs(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        await asyncio.Event().wait()
        return None


class HangsForGood(ReferenceStore):
    """Not even cancelling helps, once."""

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()
        return None


class CancelsItself(ReferenceStore):
    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        raise asyncio.CancelledError


@pytest.mark.parametrize("store", [Hangs, HangsForGood])
async def test_a_hanging_check_is_cut_off_and_reported(store: type[ReferenceStore]) -> None:
    report = await run(store, "round_trip", "list_limit", timeout=0.05)
    assert report.failures == [
        "round_trip: did not end within 0.05 s: a call of the checkpointer hangs",
    ]
    assert report.result("round_trip").seconds >= 0.05


async def test_a_call_that_hangs_in_another_loop_is_cut_off_too() -> None:
    report = await run(Hangs, "second_loop_after_close", timeout=0.2)
    assert "did not end within 0.2 s" in report.failures[0]


async def test_a_cancellation_out_of_nowhere_is_a_failure_and_not_a_cancellation() -> None:
    report = await run(CancelsItself, "round_trip")
    assert "raised CancelledError though nobody cancelled it" in report.failures[0]


async def test_cancelling_the_kit_leaves_at_once() -> None:
    task = asyncio.create_task(run(Hangs, "round_trip"))
    while not asyncio.all_tasks() - {asyncio.current_task(), task}:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0)


async def test_failures_are_raised_together_by_default() -> None:
    with pytest.raises(AssertionError) as caught:
        await check_checkpointer_conformance(MemoryCheckpointer)
    text = str(caught.value)
    assert text.startswith("MemoryCheckpointer failed checkpointer conformance:\n  ")
    assert "\n  loaded_state_is_own: " in text
    assert "\n  list_negative_limit: " in text or ":\n  list_negative_limit: " in text


async def test_an_error_of_the_factory_is_a_line_of_the_report() -> None:
    def broken() -> ReferenceStore:
        raise ConnectionError("nobody answers")

    report = await check_checkpointer_conformance(broken, only=["round_trip", "exists"], raise_on_failure=False)
    assert report.failures == [
        "round_trip: raised ConnectionError: nobody answers",
        "exists: raised ConnectionError: nobody answers",
    ]


async def test_an_async_factory_and_an_async_reopen() -> None:
    async def make() -> ReferenceStore:
        return ReferenceStore()

    async def again(one: ReferenceStore) -> ReferenceStore:
        return ReferenceStore(one)

    report = await check_checkpointer_conformance(make, reopen=again, only=["ids_persist", "round_trip"])
    assert [(one.name, one.skipped) for one in report.checks] == [("round_trip", False), ("ids_persist", False)]


async def test_a_fresh_one_for_each_check_closed_afterwards_with_its_second_handle() -> None:
    made: list[Counted] = []

    class Counted(ReferenceStore):
        closed = 0

        def __init__(self, on: ReferenceStore | None = None) -> None:
            super().__init__(on)
            made.append(self)

        async def close(self) -> None:
            self.closed += 1

    await run(Counted, "round_trip", "exists", "ids_persist")
    assert [one.closed for one in made] == [1, 1, 1, 1]


async def test_what_a_backend_adds_can_be_normalised_away() -> None:
    class Notes(ReferenceStore):
        async def load(self, *arguments: Any) -> AgentState | None:
            state = await super().load(*arguments)
            return state and state.model_copy(update={"metadata": {**state.metadata, "seen": True}})

    def normalise(state: AgentState) -> AgentState:
        return state.model_copy(update={"metadata": {**state.metadata, "seen": None}})

    assert failed(await run(Notes, "round_trip")) == {"round_trip"}
    assert (await run(Notes, "round_trip", normalise=normalise)).ok


async def test_an_unknown_name_is_said_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="no such checks: round_tripp"):
        await run(ReferenceStore, "round_trip", "round_tripp")


async def test_the_report_as_text_and_as_json() -> None:
    report = await run(kit_faults_async.EmptyIsTheRoot, "empty_thread_id", "exists", "search_refuses")
    assert repr(report) == "ConformanceReport(EmptyIsTheRoot: 1/2 passed, 1 skipped)"
    assert report.skipped == ["search_refuses: the checkpointer has search"]
    data = json.loads(report.to_json())
    assert data["ok"] is False
    assert [one["name"] for one in data["checks"]] == ["exists", "search_refuses", "empty_thread_id"]
    assert data["checks"][2]["law"] == 12
    table = report.to_markdown()
    assert table.startswith("# EmptyIsTheRoot: 1/2 passed, 1 skipped\n")
    assert "| `exists` | sdk | passed |" in table
    assert "| `search_refuses` | 11 | skipped |" in table
    assert "| `empty_thread_id` | 12 | **failed** |" in table
    with pytest.raises(KeyError):
        report.result("round_trip")


async def test_details_are_printable_whatever_the_ids() -> None:
    report = await run(kit_faults_async.ReplacesSurrogates, "thread_ids_with_surrogates", "thread_ids_that_are_long")
    report.to_markdown().encode()
    assert max(len(one.detail) for one in report.checks) <= 500


# -- the registry ---------------------------------------------------------------------------------


def test_facts_of_the_checks() -> None:
    for one in all_checks():
        assert one.law == "sdk" or one.law in range(1, 16)
        assert one.description.endswith(".")
        assert len(one.description) < 120
    assert {"sdk", 1, 2, 3, 4, 5, 9, 10, 11, 12} == {one.law for one in all_checks()}


def test_a_check_with_wrong_facts_is_refused() -> None:
    async def check_mine(subject: Any) -> None:
        """Mine."""

    for options in ({"needs": "flying"}, {"without": "flying"}):
        with pytest.raises(ValueError, match="flying"):
            check(law=1, **options)(check_mine)  # type: ignore[arg-type]
    check_mine.__doc__ = None
    with pytest.raises(ValueError, match="docstring"):
        check(law=1)(check_mine)
