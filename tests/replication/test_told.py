"""What a process was told of is remembered, within bounds."""

from __future__ import annotations

from locus_tiered.core.checkpoint import Entry
from locus_tiered.layers.told import Told

STEP = "6f1ad3e7b1a24a3c9a51d0a1c3f5e7a9"


def entries(*pairs: tuple[str, str]) -> list[Entry]:
    return [Entry(*pair) for pair in pairs]


def test_the_greatest_stamp_of_an_id_is_remembered_by_thread() -> None:
    told = Told()
    told.tell("t", entries(("a", "3"), ("b", "2")))
    told.tell("t", entries(("a", "1")))
    told.tell("u", entries(("a", "9")))
    told.tell("t", [Entry("old", None)])  # from before the stack: nobody can tell which is the newer one
    assert [told.of("t", name) for name in ("a", "b", "old", "c")] == ["3", "2", "", ""]
    assert told.newest("t") == Entry("a", "3")
    assert told.newest("nowhere") is None


def test_a_list_is_less_when_it_lacks_something_or_has_an_older_version() -> None:
    told = Told()
    told.tell("t", entries(("a", "3"), ("b", "2")))
    assert not told.is_less("t", entries(("a", "3"), ("b", "2"), ("c", "1")))
    assert not told.is_less("t", entries(("a", "4"), ("b", "2")))
    assert told.is_less("t", entries(("a", "3")))
    assert told.is_less("t", entries(("a", "3"), ("b", "1")))
    assert told.is_less("t", [])
    assert not told.is_less("nowhere", [])


def test_a_step_of_a_turn_may_go_but_not_back() -> None:
    told = Told()
    told.tell("t", entries(("a", "3"), (STEP, "2")))
    assert not told.is_less("t", entries(("a", "3")))
    assert told.is_less("t", entries(("a", "3"), (STEP, "1")))


def test_what_is_gone_is_forgotten() -> None:
    told = Told()
    told.tell("t", entries(("a", "3"), ("b", "2"), ("c", "1")))
    told.forget("t", "a")
    told.forget("t", "never")
    told.forget("nowhere", "a")
    assert told.newest("t") == Entry("b", "2")
    told.only("t", entries(("b", "1"), ("d", "7")))
    assert [told.of("t", name) for name in "abcd"] == ["", "1", "", ""]
    told.forget("t")
    assert told.newest("t") is None


def test_it_is_bounded_in_checkpoints_of_all_threads() -> None:
    told = Told(remember=100)
    for number in range(60):
        told.tell(f"t{number}", entries(("a", "1"), ("b", "2")))
    kept = [number for number in range(60) if told.of(f"t{number}", "a")]
    assert kept == list(range(60 - 33, 60))  # each counts for one more
    told.tell("long", entries(*((f"{number}", "1") for number in range(24))))
    assert told.of("long", "0")
    told.tell("long", entries(("one too many", "1")))  # a thread that would take the place of all others
    assert not told.of("long", "0")
    assert told.of("t59", "a")
