"""The judge of the crash tests notices what it is there for, and excuses a step of a turn only where the docs do."""

from __future__ import annotations

import pytest

from tests.crash.ledger import Event, Ledger, Status

STEP = "0123456789abcdef0123456789abcdef"


def save(mark: int, name: str | None, *, by: int = 1, iteration: bool = False, status: Status = "done") -> Event:
    return Event("save", "t", name, mark, iteration, status, by=by)


def delete(name: str | None, *, by: int = 1, status: Status = "done") -> Event:
    return Event("delete", "t", name, status=status, by=by)


def kinds(events: list[Event], *listed: tuple[str, int]) -> list[str]:
    return [problem.split(" ", 1)[0] for problem in Ledger(events).broken("t", listed)]


def test_what_was_acknowledged_and_is_not_there_is_lost() -> None:
    assert kinds([save(1, "a"), save(2, "b")], ("b", 2)) == ["LOST"]
    assert kinds([save(1, "a"), save(2, "b")], ("b", 2), ("a", 1)) == []


def test_what_was_deleted_or_replaced_and_is_there_is_resurrected() -> None:
    assert kinds([save(1, "a"), delete("a")], ("a", 1)) == ["RESURRECTED"]
    assert kinds([save(1, "a"), save(2, "a")], ("a", 1)) == ["RESURRECTED"]
    assert kinds([save(1, "a"), delete("a", status="begun")], ("a", 1)) == []


def test_what_nobody_saved_is_wrong_and_there_is_one_order() -> None:
    assert kinds([save(1, "a")], ("a", 1), ("b", 7)) == ["WRONG"]
    assert kinds([save(1, "a"), save(2, "b")], ("a", 1), ("b", 2)) == ["ORDER"]


@pytest.mark.parametrize("by", [1, 2])
@pytest.mark.parametrize("newer", [save(2, "end"), save(2, None, status="begun")])
def test_a_step_may_be_dropped_only_by_another_process_that_found_something_newer(newer: Event, by: int) -> None:
    events = [save(1, STEP, iteration=True), newer, delete("end" if newer.id else "0" * 32, by=by)]
    assert kinds(events) == ([] if by == 2 else ["LOST"])
    assert kinds([save(1, STEP, iteration=True), newer], ("end", 2)) == []
    assert kinds([save(1, STEP, iteration=True), delete("other", by=by)]) == ["LOST"]


def test_a_step_that_is_newer_than_what_was_deleted_is_lost() -> None:
    assert kinds([save(1, "end"), save(2, STEP, iteration=True), delete("end", by=2)]) == ["LOST"]


def test_what_is_no_step_is_never_excused() -> None:
    assert kinds([save(1, "a"), save(2, "end"), delete("end", by=2)]) == ["LOST"]
