"""What cancels out in the journal changes nothing but the number of requests.

The same program of saves and deletes is run as it is, and without cancelling: once with every delete sent whatever the
journal knows, once with nothing ever cancelled in the index, once with a flush after every step. Drained, the far
store holds the same ids and states in the same order, and every call had the same answer.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locus_tiered.core.ids import RESERVED, marked_name
from locus_tiered.core.stamp import is_stamp
from locus_tiered.layers.far import Far
from locus_tiered.layers.write_behind_options import Ack
from locus_tiered.stores.journal_index import PendingIndex
from locus_tiered.testing.virtual_time import run_virtual
from tests.crash.ledger import Ledger
from tests.crash.lives import MOST, Client, behind, look_everywhere
from tests.crash.points import RecordedFar, virtual_journals

EXAMPLES = int(os.environ.get("LOCUS_TIERED_EXAMPLES", "12"))
ALL = os.environ.get("LOCUS_TIERED_CRASHES") == "all"

Step = tuple[Any, ...]


@pytest.fixture(autouse=True)
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_journals(monkeypatch)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """Fresh directories."""
    return (tmp_path / str(number) for number in itertools.count())


@contextmanager
def as_it_is() -> Iterator[None]:
    yield


@contextmanager
def every_delete_is_sent() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Far, "may_hold", lambda *_: True)
        yield


@contextmanager
def nothing_is_doomed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PendingIndex, "doom", lambda *_: [])
        yield


async def _do(client: Client, step: Step, turns: dict[str, list[str]], kept: dict[str, list[str]]) -> object:
    what, *arguments = step
    match what:
        case "step":
            (thread,) = arguments
            await client.step(thread, turns.setdefault(thread, []))
        case "final":
            (thread,) = arguments
            kept.setdefault(thread, []).append(await client.save(thread))
        case "drop":
            thread, number = arguments
            turn = turns.get(thread, [])
            return await client.delete(thread, turn[number % len(turn)]) if turn else None
        case "drop final":
            thread, number = arguments
            finals = kept.get(thread, [])
            return await client.delete(thread, finals[number % len(finals)]) if finals else None
        case "final again":
            thread, number = arguments
            finals = kept.get(thread, [])
            if finals:
                await client.save(thread, finals[number % len(finals)])
        case "save":
            thread, name = arguments
            await client.save(thread, name)
        case "delete":
            thread, name = arguments
            return await client.delete(thread, name)
        case "wait":
            (seconds,) = arguments
            await asyncio.sleep(seconds)
        case "flush":
            await client.flush()
    return None


def outcome(program: Sequence[Step], path: Path, ack: Ack, exclusive: bool, *, flushing: bool = False) -> Any:
    """What is in the far store in the end, and what was answered on the way."""
    far, ledger = RecordedFar(), Ledger()
    told: dict[str, Any] = {"answers": []}

    async def life() -> None:
        client = Client(behind(far, path, 1, ack=ack, exclusive=exclusive), ledger)
        turns: dict[str, list[str]] = {}
        kept: dict[str, list[str]] = {}
        for step in program:
            told["answers"].append(await _do(client, step, turns, kept))
            if flushing:
                await client.flush()
        await client.flush()
        assert not await look_everywhere(client.stack, ledger), program
        for thread in ledger.threads():
            names = await client.stack.list_checkpoints(thread, MOST)
            states = [await client.stack.load(thread, name) for name in names]
            marks = [state.total_tokens_used for state in states if state is not None]
            told[thread] = [(mark if is_stamp(name) else name, mark) for name, mark in zip(names, marks, strict=True)]
            raw = {name for name in far.stored.get(thread, {}) if marked_name(name) is None}
            assert raw == set(names), program
        await client.close()
        assert all(thread in ledger.threads() or thread.startswith(RESERVED) for thread in far.stored)

    run_virtual(life)
    return told


def check(program: Sequence[Step], places: Iterator[Path], ack: Ack, exclusive: bool) -> None:
    usual = outcome(program, next(places), ack, exclusive)
    with every_delete_is_sent():
        assert outcome(program, next(places), ack, exclusive) == usual, f"{ack} {exclusive} {program}"
    # Without tombstones a doomed row is the only thing that keeps a deleted thread's writes back.
    if not exclusive:
        with nothing_is_doomed():
            assert outcome(program, next(places), ack, exclusive) == usual, f"{ack} {exclusive} {program}"
    flushed = outcome(program, next(places), ack, exclusive, flushing=True)
    assert flushed == usual, f"{ack} {exclusive} {program}"


threads = st.sampled_from("tu")
names = st.sampled_from(["draft", "plan"])
numbers = st.integers(0, 3)
steps = st.one_of(
    st.tuples(st.just("step"), threads),
    st.tuples(st.just("final"), threads),
    st.tuples(st.just("drop"), threads, numbers),
    st.tuples(st.just("drop final"), threads, numbers),
    st.tuples(st.just("final again"), threads, numbers),
    st.tuples(st.just("save"), threads, names),
    st.tuples(st.just("delete"), threads, st.none() | names),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.5, 40.0])),
    st.tuples(st.just("flush")),
)


@pytest.mark.parametrize("exclusive", [False, True], ids=["shared", "exclusive"])
@pytest.mark.parametrize("ack", ["turn", "journal"])
def test_the_far_store_ends_the_same_with_and_without_cancelling(ack: Ack, exclusive: bool, places: Iterator[Path]):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize="LOCUS_TIERED_EXAMPLES" not in os.environ,
    )
    @given(st.lists(steps, min_size=2, max_size=16))
    def programs(program: list[Step]) -> None:
        check(program, places, ack, exclusive)

    programs()


def interleavings(first: Sequence[Step], second: Sequence[Step]) -> Iterator[list[Step]]:
    """Every way in which two clients' steps can follow one another."""
    size = len(first) + len(second)
    for chosen in itertools.combinations(range(size), len(second)):
        mine, theirs = iter(first), iter(second)
        yield [next(theirs) if place in chosen else next(mine) for place in range(size)]


TURN: list[Step] = [("step", "t"), ("step", "t"), ("final", "t"), ("drop", "t", 0), ("drop", "t", 1)]
BESIDE: dict[str, list[Step]] = {
    "a name saved and deleted": [("save", "t", "draft"), ("delete", "t", "draft")],
    "a name saved twice": [("save", "t", "draft"), ("save", "t", "draft")],
    "a thread deleted": [("delete", "t", None)],
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("ack", ["turn", "journal"])
def test_every_interleaving_of_a_turn_with_what_happens_beside_it_ends_the_same(
    ack: Ack, beside: str, places: Iterator[Path]
):
    merged = list(interleavings(TURN, BESIDE[beside]))
    for number, program in enumerate(merged):
        flushes = range(len(program) + 1) if ALL else [number % (len(program) + 1)]
        for at in flushes:
            check([*program[:at], ("flush",), *program[at:]], places, ack, exclusive=False)
            if ALL:
                check([*program[:at], ("wait", 40.0), *program[at:]], places, ack, exclusive=True)
