"""The checker of histories: it finds what is wrong in histories written by hand, and nothing in good ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered import BoundedMemoryCheckpointer, ReplicatedCheckpointer, RetryingCheckpointer
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.core.errors import InvalidArgument, QuorumError
from locus_tiered.testing import FaultyCheckpointer, ReferenceCheckpointer, on
from locus_tiered.testing.history import NOTHING, Event, RecordingCheckpointer, Seen, holdings, read_history, threads_of
from locus_tiered.testing.history_check import check_history, main

T = "t"


class Told:
    """Writes a history: every operation takes the moment at which it is told, and the next."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.now = 0.0

    def add(self, process: str, kind: Any, thread: str = T, **facts: Any) -> Event:
        begin = facts.pop("begin", self.now + 1)
        end = facts.pop("end", begin + 0.5)
        self.now = max(self.now, begin, end or 0.0)
        outcome = facts.pop("outcome", "ok")
        event = Event(
            process=process, number=len(self.events), kind=kind, thread=thread,
            begin=begin, end=end, outcome=outcome, **facts,
        )  # fmt: skip
        self.events.append(event)
        return event

    def save(self, process: str, name: str, stamp: str, **facts: Any) -> Event:
        return self.add(process, "save", id=name, stamp=stamp, value=facts.pop("value", f"v{stamp}"), **facts)

    def delete(self, process: str, name: str | None = None, **facts: Any) -> Event:
        return self.add(process, "delete", id=name, **facts)

    def load(self, process: str, found: tuple[str, str] | None, name: str | None = None, **facts: Any) -> Event:
        seen = None if found is None else Seen(*found, facts.pop("value", f"v{found[1]}"))
        return self.add(process, "load", id=name, found=seen, **facts)

    def list(self, process: str, *listed: tuple[str, str], **facts: Any) -> Event:
        return self.add(process, "list_checkpoints", listed=tuple(Seen(*each) for each in listed), **facts)

    def exists(self, process: str, name: str | None, there: bool, **facts: Any) -> Event:
        return self.add(process, "exists", id=name, there=there, **facts)

    def holds(self, store: str, *held: tuple[str, str], own: tuple[str, str] | None = None, **facts: Any) -> Event:
        seen = tuple(Seen(*each, f"v{each[1]}") for each in held)
        newest = seen[0] if own is None and seen else None
        found = Seen(*own) if own is not None else newest and replace(newest, value=None)
        return self.add(store, "holds", listed=seen, found=found, **facts)

    def rules(self, **options: Any) -> list[str]:
        return [problem.rule for problem in check_history(self.events, **options)]


@pytest.fixture
def told() -> Told:
    return Told()


# -- what must be found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["a", "b"])
def test_a_save_that_nobody_finds_is_lost(told: Told, reader: str):
    told.save("a", "x", "1")
    told.load(reader, None)
    told.load(reader, None, "x")
    told.exists(reader, "x", False)
    told.exists(reader, None, False)
    told.list(reader)
    assert told.rules() == ["lost"] * 5


def test_a_save_that_its_own_process_does_not_list_is_lost(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2")
    told.list("a", ("y", "2"))
    told.list("b", ("y", "2"))
    told.list("c", ("y", "2"), strict=True)
    assert [(each.rule, each.event.process) for each in check_history(told.events)] == [("lost", "a"), ("lost", "c")]


def test_a_save_that_a_store_has_not_got_in_the_end_is_lost(told: Told):
    told.save("a", "x", "1")
    told.holds("s3")
    assert told.rules() == ["lost"]


def test_what_a_store_only_lists_is_not_held(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2", outcome="unknown")
    listed = (Seen("y", "2", NOTHING), Seen("x", "1", NOTHING))
    told.add("valkey", "holds", listed=listed, found=None)
    told.holds("s3", ("x", "1"))
    assert told.rules() == ["lost", "unequal"]


def test_a_thread_that_nobody_looked_for_in_the_end_is_lost(told: Told):
    told.save("a", "x", "1")
    told.holds("s3", thread="another")
    assert told.rules() == ["lost"]


def test_an_older_version_in_the_end_is_a_loss(told: Told):
    told.save("a", "x", "1")
    told.save("a", "x", "2")
    told.holds("s3", ("x", "1"))
    assert told.rules() == ["lost"]


def test_an_id_twice_in_a_list_is_a_duplicate(told: Told):
    told.save("a", "x", "1")
    told.list("b", ("x", "1"), ("x", "1"))
    assert told.rules() == ["duplicated"]


def test_one_save_under_two_ids_is_a_duplicate(told: Told):
    told.save("a", "x", "1")
    told.holds("s3", ("x", "1"))
    told.load("b", ("y", "1"))
    assert told.rules() == ["duplicated"]


def test_one_save_with_another_stamp_is_a_duplicate(told: Told):
    told.save("a", "x", "1")
    told.load("a", ("x", "2"), value="v1")
    assert told.rules() == ["duplicated"]


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_read_after_its_delete_was_resurrected(told: Told, whole: bool):
    told.save("a", "x", "1")
    told.delete("a", None if whole else "x")
    told.load("a", ("x", "1"))
    told.load("a", ("x", "1"), "x")
    told.list("a", ("x", "1"))
    told.exists("a", "x", True)
    told.exists("a", None, True)
    assert told.rules() == ["resurrected"] * 5


def test_who_reads_strictly_must_know_of_the_deletes_of_others(told: Told):
    told.save("a", "x", "1")
    told.delete("a", "x")
    told.load("b", ("x", "1"))
    told.load("c", ("x", "1"), strict=True)
    assert [(each.rule, each.event.process) for each in check_history(told.events)] == [("resurrected", "c")]


def test_what_was_deleted_and_is_in_a_store_in_the_end_was_resurrected(told: Told):
    told.save("a", "x", "1")
    told.save("b", "y", "2", outcome="unknown")
    told.delete("b")
    told.holds("s3", ("y", "2"), ("x", "1"))
    assert told.rules() == ["resurrected"] * 2


def test_what_nobody_saved_is_a_phantom(told: Told):
    told.save("a", "x", "1")
    told.load("a", ("x", "1"), value="damaged")
    told.load("a", ("z", "9"))
    told.list("a", ("z", "9"), ("x", "1"))
    told.exists("b", "z", True)
    told.load("b", ("x", "1"), "another id")
    told.save("a", "z", "9", outcome="failed")
    told.load("b", ("z", "9"))
    assert told.rules() == ["phantom"] * 6


def test_a_state_of_another_thread_is_a_phantom(told: Told):
    told.save("a", "x", "1", thread="other")
    told.load("a", ("x", "1"))
    (problem,) = check_history(told.events)
    assert problem.rule == "phantom"
    assert "a state of thread other" in str(problem)


def test_what_is_saved_only_later_is_a_phantom(told: Told):
    told.load("a", ("x", "1"))
    told.save("a", "x", "1")
    assert told.rules() == ["phantom"]


def test_a_process_reads_what_it_wrote(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2")
    told.load("a", ("x", "1"))
    told.save("a", "x", "3")
    told.load("a", ("x", "1"), "x")
    assert told.rules() == ["read-your-writes"] * 2


def test_a_process_never_goes_back(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2")
    told.load("b", ("x", "1"))
    told.load("b", ("y", "2"))
    told.load("b", ("x", "1"))
    assert told.rules() == ["monotonic reads"]


def test_a_process_never_goes_back_behind_what_was_listed_to_it(told: Told):
    for name, stamp in (("x", "1"), ("y", "2"), ("z", "3")):
        told.save("a", name, stamp)
    told.list("b", ("z", "3"), ("x", "1"))  # it need not have heard of y
    assert told.rules() == []
    told.list("b", ("z", "3"), ("y", "2"), ("x", "1"))
    told.list("b", ("z", "3"), ("x", "1"))
    assert told.rules() == ["monotonic reads"]
    told.load("b", ("y", "2"))
    assert told.rules() == ["monotonic reads"] * 2
    told.delete("a", "y")
    told.list("b", ("z", "3"), ("x", "1"))
    told.load("b", ("x", "1"), "x")
    assert told.rules() == ["monotonic reads"] * 2


def test_who_reads_strictly_is_told_the_newest(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2")
    told.load("b", ("x", "1"))
    told.load("c", ("x", "1"), strict=True)
    assert [(each.rule, each.event.process) for each in check_history(told.events)] == [("newest", "c")]


def test_a_store_whose_own_newest_is_wrong_is_found(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2")
    told.holds("s3", ("y", "2"), ("x", "1"), own=("x", "1"))
    assert told.rules() == ["newest"]


def test_a_list_is_in_the_order_of_the_stamps(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2")
    told.list("b", ("x", "1"), ("y", "2"))
    assert told.rules() == ["order"]


def test_stores_that_hold_different_things_in_the_end_are_found(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2", outcome="unknown")
    told.holds("s3", ("x", "1"))
    told.holds("pg", ("y", "2"), ("x", "1"))
    assert told.rules() == ["unequal"]


# -- what is allowed -------------------------------------------------------------------------------------------------


def test_an_ordinary_turn(told: Told):
    told.load("a", None)
    told.save("a", "i1", "1", iteration=True)
    told.save("a", "i2", "2", iteration=True)
    told.save("a", "3", "3")
    told.delete("a", "i1")
    told.delete("a", "i2")
    told.load("a", ("3", "3"))
    told.list("a", ("3", "3"))
    told.exists("a", "i1", False)
    told.delete("a")
    told.load("b", None, strict=True)
    told.save("b", "4", "4")
    for store in ("s3", "pg"):
        told.holds(store, ("4", "4"))
    assert told.rules() == []


def test_what_overlaps_may_be_in_any_order(told: Told):
    told.save("a", "x", "1")
    told.save("a", "y", "2", begin=10, end=20)
    told.load("b", ("x", "1"), begin=11, end=12, strict=True)
    told.load("b", ("y", "2"), begin=11, end=12, strict=True)
    told.delete("a", None, begin=30, end=40)
    told.load("b", ("y", "2"), begin=31, end=32, strict=True)
    told.load("b", None, begin=39, end=50, strict=True)
    told.save("a", "z", "3", begin=60, end=70)
    told.delete("b", None, begin=65, end=75)
    told.load("c", None, begin=80)
    told.load("c", ("z", "3"), begin=82, strict=True)
    assert told.rules() == []


@pytest.mark.parametrize("end", [None, 5.0])
def test_what_is_unknown_may_have_happened_or_not(told: Told, end: float | None):
    told.save("a", "x", "1", begin=1)
    told.save("a", "y", "2", begin=4, end=end, outcome="unknown")
    told.load("a", ("x", "1"), begin=6)
    told.load("a", ("y", "2"), begin=8)
    told.delete("b", None, begin=10, end=end and 11, outcome="unknown")
    told.load("a", ("y", "2"), begin=12)
    told.load("a", None, begin=14)
    told.load("a", ("x", "1"), begin=16)
    told.holds("s3")
    told.holds("pg")
    assert told.rules() == []


def test_a_delete_may_be_overtaken_by_a_save_of_the_same_id(told: Told):
    told.save("a", "draft", "1")
    told.delete("a", "draft")
    told.save("a", "draft", "2")
    told.load("a", ("draft", "2"), "draft")
    told.holds("s3", ("draft", "2"))
    assert told.rules() == []


def test_an_iteration_save_may_go_as_soon_as_something_is_newer(told: Told):
    told.save("a", "i", "1", iteration=True)
    told.save("a", "2", "2")
    told.load("b", None, "i", strict=True)
    told.load("a", ("i", "1"), "i")
    told.holds("s3", ("2", "2"))
    assert told.rules() == []


def test_a_list_that_was_cut_off_at_its_limit_lacks_only_what_is_older(told: Told):
    for number in "123":
        told.save("a", number, number)
    told.list("a", ("3", "3"), ("2", "2"), limit=2)
    assert told.rules() == []
    told.list("a", ("3", "3"), ("1", "1"), limit=2)
    assert told.rules() == ["lost"]


def test_of_a_loose_thread_only_the_end_is_judged(told: Told):
    told.save("a", "x", "1")
    told.load("a", None)
    assert told.rules(loose={T}) == []
    told.holds("s3")
    assert told.rules(loose={T}) == ["lost"]


# -- recording -------------------------------------------------------------------------------------------------------


def state(number: int, iterations: tuple[str, ...] = ()) -> AgentState:
    metadata = {ITERATION_KEY: list(iterations)} if iterations else {}
    return AgentState(messages=(Message.user(f"number {number}"),), metadata=metadata)


def replicated() -> ReplicatedCheckpointer:
    return ReplicatedCheckpointer(*(ReferenceCheckpointer() for _ in range(3)))


async def test_what_a_stack_did_is_read_back_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path, stores = tmp_path / "a.jsonl", [ReferenceCheckpointer() for _ in range(3)]
    async with RecordingCheckpointer(ReplicatedCheckpointer(*stores), path, process="a") as checkpointer:
        name = uuid4().hex
        await checkpointer.save(state(1, (name,)), T, name)
        saved = await checkpointer.save(state(2), T)
        assert await checkpointer.delete(T, name)
        assert (await checkpointer.load(T)) == state(2).model_copy(
            update={"started_at": (found := await checkpointer.load(T, saved)).started_at,
                    "updated_at": found.updated_at, "run_id": found.run_id}
        )  # fmt: skip
        assert await checkpointer.list_checkpoints(T) == [saved]
        assert await checkpointer.exists(T)
        assert await checkpointer.list_threads() == [T]
    events = read_history(path)
    assert [event.kind for event in events] == ["save", "save", "delete", "load", "load", "list_checkpoints", "exists"]
    assert [event.iteration for event in events[:2]] == [True, False]
    assert all(event.outcome == "ok" and event.end is not None and event.end >= event.begin for event in events)
    assert events[1].stamp == events[1].id == saved
    assert events[3].found == Seen(saved, saved, events[1].value)
    for number, store in enumerate(stores):
        events += await holdings(store, f"store {number}", threads_of(events))
    assert [event.listed for event in events[-3:]] == [(Seen(saved, saved, events[1].value),)] * 3
    assert check_history(events) == []
    assert main([str(path)]) == 0
    assert "7 operations (7 ok, 0 failed, 0 unknown), 0 problems" in capsys.readouterr().out

    await stores[0].delete(T)
    events = [*read_history(path), *await holdings(stores[0], "store 0", [T])]
    assert [problem.rule for problem in check_history(events)] == ["lost"]
    with path.open("a") as file:
        file.writelines(event.to_json() + "\n" for event in events[-1:])
    assert main([str(path)]) == 1
    assert "lost: not listed" in capsys.readouterr().out


async def test_a_stack_that_stamps_nothing_can_be_recorded_too(tmp_path: Path):
    path, store = tmp_path / "a.jsonl", BoundedMemoryCheckpointer()
    async with RecordingCheckpointer(RetryingCheckpointer(MemoryCheckpointer()), path, process="a") as checkpointer:
        name = await checkpointer.save(state(1), T)
        assert await checkpointer.load(T, name) == await checkpointer.load(T)
    assert check_history(read_history(path)) == []
    await store.close()


async def test_outcomes(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    faulty = [FaultyCheckpointer(ReferenceCheckpointer()) for _ in range(3)]
    async with RecordingCheckpointer(ReplicatedCheckpointer(*faulty), path, process="a") as checkpointer:
        await checkpointer.save(state(1), T)
        for each in faulty[:2]:
            each.inject(on("save", times=None).fail_before())
        with pytest.raises(QuorumError):
            await checkpointer.save(state(2), T)
        with pytest.raises(InvalidArgument):
            await checkpointer.save(state(3), T, "x", {"no": object()})
    events = read_history(path)
    assert [(event.outcome, event.error) for event in events] == [("ok", None), ("unknown", "QuorumError")]
    assert check_history(events) == []


def test_what_was_under_way_in_a_crash_is_unknown(tmp_path: Path, told: Told):
    path = tmp_path / "a.jsonl"
    saved = told.save("a", "x", "1")
    begun = replace(told.save("a", "y", "2"), end=None, outcome="unknown")
    path.write_text(f"{saved.to_json()}\n{begun.to_json()}\n" + '{"process": "a", "num')
    assert read_history(path) == [saved, begun]
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="not an event"):
        read_history(tmp_path / "b.jsonl")


def test_every_rule_of_the_docs_is_tested_here():
    from locus_tiered.testing import history_check

    table = [line.split("``")[1] for line in (history_check.__doc__ or "").splitlines() if line.startswith("``")]
    source = Path(__file__).read_text()
    assert len(table) == 9
    for rule in table:
        assert f'"{rule}"' in source
