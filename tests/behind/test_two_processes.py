"""Two processes over one home, with one journal directory or two: what the other sees, and what never comes back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.behind.process import Process

Make = Callable[..., Process]


@pytest.fixture(params=["one journal directory", "a journal directory each"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a process called so; those of one name share a journal directory."""

    def made(name: str, **options: object) -> Process:
        journal = tmp_path / ("journal" if request.param.startswith("one") else f"journal of {name}")
        return Process(tmp_path / "home", journal, **options)  # type: ignore[arg-type]

    return made


async def test_another_process_sees_a_save_when_it_reached_home_and_not_before(apart: Make) -> None:
    make = apart
    with make("a") as a, make("b") as b, make("c", ack="turn") as c:
        await a.do("save", "t", "one")
        assert await a.do("load", "t") == "one" and await b.do("load", "t") is None
        assert await a.do("flush") == 0
        assert await b.do("load", "t") == "one"
        await c.do("save", "t", "two")  # its end of a turn is in home at once
        assert await a.do("load", "t") == await b.do("load", "t") == "two"
        assert await a.do("delete", "t")
        assert await a.do("load", "t") is None and await b.do("load", "t") == "two"
        await a.do("flush")
        assert await b.do("load", "t") is None
        await c.do("save", "t", "three")
        assert await c.do("delete", "t")
        assert await b.do("load", "t") is None


@pytest.mark.parametrize("ack", ["turn", "journal"])
async def test_a_thread_that_another_process_deleted_does_not_come_back_from_a_living_one(make: Make, ack: str) -> None:
    with make("a") as a, make("b", ack=ack) as b:
        await a.do("save", "t", "one")
        await a.do("flush")
        await a.do("save", "t", "two")
        await a.do("step", "t", "a step")
        assert await b.do("delete", "t")
        await b.do("flush")
        assert await a.do("flush") == 0
        assert await a.do("words", "t") == await b.do("words", "t") == []
        await a.do("save", "t", "three")
        await a.do("flush")
        assert await b.do("words", "t") == ["three"]


@pytest.mark.parametrize("ack", ["turn", "journal"])
async def test_a_thread_that_another_process_deleted_does_not_come_back_from_a_dead_one(make: Make, ack: str) -> None:
    with make("a") as a, make("b", ack=ack) as b:
        await a.do("save", "t", "one")
        await a.do("flush")
        await a.do("save", "t", "two", "named")
        await a.do("step", "t", "a step")
        a.kill()
        assert await b.do("delete", "t")
        await b.do("flush")
        await b.do("save", "u", "something else")
        with make("a") as again:
            assert await again.do("words", "t") == []
            assert await again.do("flush") == 0
            assert await again.do("words", "t") == [] and await b.do("words", "t") == []


async def test_a_dead_process_is_adopted_by_its_successor_and_nothing_acknowledged_is_lost(make: Make) -> None:
    with make("a") as a:
        for number in range(5):
            await a.do("save", "t", f"{number}")
        name = await a.do("save", "t", "gone")
        assert await a.do("delete", "t", name)
        step = await a.do("step", "t", "a step")
        a.kill()
    with make("a") as again:
        assert await again.do("recover") >= 6
        assert await again.do("words", "t") == ["0", "1", "2", "3", "4", "a step"]
        assert await again.do("load", "t", step) == "a step"
        again.kill()  # before it sent any
    with make("a") as third, make("b") as b:
        assert await third.do("flush") == 0
        assert await b.do("words", "t") == ["0", "1", "2", "3", "4", "a step"]


async def test_a_living_process_keeps_its_rows_when_another_one_starts(make: Make) -> None:
    with make("a") as a:
        await a.do("save", "t", "one")
        with make("a") as second:
            assert await second.do("recover") == 0
            await second.do("save", "t", "two")
            await second.do("close")
        assert await a.do("words", "t") == ["one", "two"]
        assert await a.do("flush") == 0
        assert await a.do("words", "t") == ["one", "two"]


@pytest.fixture
def apart(tmp_path: Path) -> Make:
    """Makes a process called so, with a journal directory of its own name."""
    return lambda name, **options: Process(tmp_path / "home", tmp_path / f"journal of {name}", **options)


async def test_steps_of_a_dead_process_that_were_overtaken_are_dropped(apart: Make) -> None:
    make = apart
    with make("a", ack="turn") as a, make("b", ack="turn") as b:
        await a.do("save", "t", "before")
        await a.do("step", "t", "a step")
        a.kill()
        await b.do("save", "t", "after")
        with make("a", ack="turn") as again:
            assert await again.do("words", "t") == ["before", "after"]
            assert await again.do("flush") == 0
        assert await b.do("words", "t") == ["before", "after"]


@pytest.mark.parametrize("ack", ["turn", "journal"])
async def test_a_turn_cut_short_is_finished_by_the_successor(make: Make, ack: str) -> None:
    with make("a", ack=ack) as a, make("b", ack=ack) as b:
        await a.do("turn", "t", "hello", "hello to you", "one")
        with pytest.raises(ProcessLookupError):
            await a.do("turn_cut_short", "t", "two words", "two", "three")
        with make("a", ack=ack) as again:
            await again.do("continue_turn", "t", "so be it")
            assert await again.do("said", "t") == ["hello", "hello to you", "two words", "so be it"]
            await again.do("flush")
        assert await b.do("said", "t") == ["hello", "hello to you", "two words", "so be it"]
        assert len(await b.do("ids", "t")) == 2, "the steps are gone"


async def test_a_turn_cut_short_whose_steps_reached_home_is_finished_by_another_process(apart: Make) -> None:
    make = apart
    with make("a", ack="turn") as a, make("b", ack="turn") as b:
        with pytest.raises(ProcessLookupError):
            await a.do("turn_cut_short", "t", "two words", "two", "three")
        with make("a", ack="turn") as again:
            await again.do("flush")
            again.kill()
        await b.do("continue_turn", "t", "so be it")
        await b.do("flush")
        with make("a", ack="turn") as third:
            await third.do("flush")
            assert await third.do("said", "t") == await b.do("said", "t") == ["two words", "so be it"]
            assert len(await third.do("ids", "t")) == 1


async def test_a_turn_that_another_process_overtook_is_not_brought_back_by_its_steps(apart: Make) -> None:
    make = apart
    with make("a", ack="turn") as a, make("b", ack="turn") as b:
        await a.do("turn", "t", "hello", "hello to you")
        with pytest.raises(ProcessLookupError):
            await a.do("turn_cut_short", "t", "lost", "two", "three")
        await b.do("turn", "t", "again", "fine", "four")
        with make("a", ack="turn") as again:
            assert await again.do("said", "t") == ["hello", "hello to you", "again", "fine"]
            await again.do("flush")
        assert await b.do("said", "t") == ["hello", "hello to you", "again", "fine"]
        assert len(await b.do("ids", "t")) == 2


async def test_a_name_that_both_save_is_the_last_savers(apart: Make) -> None:
    make = apart
    with make("a") as a, make("b") as b:
        await a.do("save", "t", "of a", "draft")
        await b.do("save", "t", "of b", "draft")
        await b.do("flush")
        await a.do("flush")  # later, though saved before
        assert await a.do("words", "t") == await b.do("words", "t") == ["of b"]
        await a.do("save", "t", "of a again", "draft")
        await a.do("flush")
        assert await b.do("words", "t") == ["of a again"]
        await a.do("save", "t", "never sent", "draft")
        a.kill()
        assert await b.do("delete", "t", "draft")
        await b.do("flush")
        with make("a") as again:
            assert await again.do("words", "t") == [] and await again.do("flush") == 0
        assert await b.do("words", "t") == []


async def test_clocks_an_hour_apart(apart: Make) -> None:
    """Who looks at the thread first is in order whatever the clocks say; who does not is ordered by its own clock."""
    make = apart
    with make("a", ahead=3600.0, ack="turn") as a, make("b", ack="turn") as b, make("c") as c:
        await a.do("save", "t", "ahead")
        await b.do("save", "t", "after")  # b looks before its first save in a thread
        await a.do("save", "t", "last")
        assert await a.do("words", "t") == await b.do("words", "t") == ["ahead", "after", "last"]
        # What breaks: c looked before a saved, and saves without looking again. It is kept, but is not the newest.
        assert await c.do("load", "u") is None
        await c.do("save", "u", "first")
        await a.do("save", "u", "ahead")
        await c.do("save", "u", "later, by the wrong clock")
        await c.do("flush")
        assert await a.do("words", "u") == ["first", "later, by the wrong clock", "ahead"]
        # A delete counts for all that it could see, also what is of the future.
        assert await b.do("delete", "t")
        assert await a.do("words", "t") == await b.do("words", "t") == []
        await b.do("save", "t", "new")
        assert await a.do("words", "t") == ["new"]
