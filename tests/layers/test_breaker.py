"""The circuit breaker: when it opens, for how long, whom it lets through meanwhile, and what closes it."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import AttemptTimeout, BackendError, BreakerOpen, StackConfigError
from locus_tiered.core.signals import Signal, listen
from locus_tiered.layers.breaker import Breaker, BreakerPolicy
from locus_tiered.testing.faults import FaultyCheckpointer, on
from tests.layers.parts import a_moment, guarded, latest, now, outcome, state, virtual


class Hand:
    """A breaker, and a clock that is moved by hand."""

    def __init__(self, **policy: float) -> None:
        self.time = 1000.0
        self.breaker = Breaker(BreakerPolicy(**policy), Clock(monotonic=lambda: self.time))

    def call(self, well: bool = True) -> float | None:
        """One call at once: ``None``, or how long to stay away."""
        wait = self.breaker.admit()
        if wait is None:
            era = self.breaker.era
            self.breaker.succeeded(era) if well else self.breaker.failed(era)
        return wait

    def calls(self, story: str) -> None:
        """``+`` and ``-``: calls that succeed and fail."""
        for each in story:
            assert self.call(each == "+") is None

    def fall(self) -> None:
        self.calls("-----")
        assert self.breaker.state == "open"


# -- policy ----------------------------------------------------------------------------------------------------------


def test_the_defaults():
    policy = BreakerPolicy()
    assert (policy.in_a_row, policy.ratio, policy.minimum, policy.window) == (5, 0.5, 10, 30.0)
    assert (policy.open_for, policy.longest) == (5.0, 60.0)
    with pytest.raises(FrozenInstanceError):
        policy.in_a_row = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_a_row": 0},
        {"minimum": 0},
        {"ratio": 0},
        {"ratio": 1.1},
        {"ratio": -1},
        {"window": 0},
        {"open_for": 0},
        {"open_for": 10, "longest": 5},
        {"window": float("nan")},
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(StackConfigError) as caught:
        BreakerPolicy(**wrong)
    assert caught.value.hint


# -- opening ---------------------------------------------------------------------------------------------------------


def test_five_failures_in_a_row_open_it():
    hand = Hand()
    hand.calls("++++----")
    assert hand.breaker.state == "closed"
    hand.calls("-")
    assert hand.breaker.state == "open"
    assert hand.call() == 5.0


def test_a_success_in_between_begins_a_new_row():
    hand = Hand()
    hand.calls("----+----")
    assert hand.breaker.state == "closed"


def test_a_row_has_no_time_limit():
    hand = Hand()
    for _ in range(5):
        hand.time += 3600
        hand.calls("-")
    assert hand.breaker.state == "open"


@pytest.mark.parametrize("story", ["-+-+-+-++-", "--++--+++-", "----+++++-", "+-+-+-+-++-", "-++++++++-"])
def test_half_of_ten_calls_open_it(story):
    hand = Hand()
    hand.calls(story[:-1])
    assert hand.breaker.state == "closed"  # too few
    hand.calls(story[-1])
    assert hand.breaker.state == ("open" if story.count("-") >= 5 else "closed")


def test_less_than_half_does_not():
    hand = Hand()
    hand.calls("-+-+-++-+++" * 20)
    assert hand.breaker.state == "closed"


def test_what_is_older_than_the_window_does_not_count():
    hand = Hand()
    hand.calls("-+-+-+-+")
    hand.time += 30.1
    hand.calls("-+" * 5)
    assert hand.breaker.state == "closed"
    hand.calls("-")
    assert hand.breaker.state == "open"


def test_calls_count_from_the_first_failure():
    hand = Hand()
    hand.calls("+" * 1000 + "-+-+-+-+-")
    assert hand.breaker.state == "closed"
    hand.calls("-")
    assert hand.breaker.state == "open"  # a store that was well for long and is not any more


def test_what_it_remembers_is_bounded():
    hand = Hand()
    for _ in range(5000):
        hand.calls("-++")
    assert hand.breaker.state == "closed"
    assert len(hand.breaker._calls) <= 1000


def test_parameters_of_ones_own():
    hand = Hand(in_a_row=2, open_for=1, longest=2)
    hand.calls("--")
    assert hand.call() == 1.0
    hand = Hand(in_a_row=100, ratio=1.0, minimum=3)
    hand.calls("---")
    assert hand.breaker.state == "open"
    hand = Hand(in_a_row=100, ratio=0.1, minimum=20, window=1)
    hand.calls("-" + "+" * 18 + "-")
    assert hand.breaker.state == "open"


# -- open, half-open, closed -----------------------------------------------------------------------------------------


def test_while_it_is_open_nobody_gets_through_and_everybody_hears_for_how_long():
    hand = Hand()
    hand.fall()
    assert hand.call() == 5.0
    hand.time += 2
    assert hand.call() == 3.0
    hand.time += 2.75
    assert hand.call() == 0.25
    assert hand.breaker.state == "open"


def test_one_probe_and_only_one():
    hand = Hand()
    hand.fall()
    hand.time += 5
    assert hand.breaker.state == "half-open"
    assert hand.breaker.admit() is None
    assert hand.breaker.state == "half-open"
    assert [hand.breaker.admit() for _ in range(10)] == [5.0] * 10
    assert hand.breaker.succeeded(hand.breaker.era) is True
    assert hand.breaker.state == "closed"
    assert [hand.breaker.admit() for _ in range(10)] == [None] * 10


def test_every_failed_probe_doubles_the_time_up_to_a_minute_and_closing_forgets_it():
    hand = Hand()
    hand.fall()
    times = []
    for _ in range(6):
        hand.time += hand.breaker.admit() or 0.0
        assert hand.call(well=False) is None
        times.append(hand.breaker.admit())
    assert times == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    hand.time += 60
    hand.calls("+")
    hand.fall()
    assert hand.call() == 5.0


def test_after_it_closed_it_takes_as_much_to_open_it_as_ever():
    hand = Hand()
    hand.calls("-+-+-+-+--")
    assert hand.breaker.state == "open"
    hand.time += 5
    hand.calls("+" + "----" + "+" + "----")
    assert hand.breaker.state == "closed"


@pytest.mark.parametrize("late", ["succeeded", "failed", "undecided"])
def test_calls_from_before_it_opened_do_not_count(late):
    hand = Hand()
    before = hand.breaker.era
    hand.fall()
    tell = getattr(hand.breaker, late)
    assert not tell(before)
    assert hand.call() == 5.0
    hand.time += 5
    assert hand.breaker.admit() is None
    assert not tell(before)  # the probe is under way, and nobody decides in its place
    assert hand.breaker.state == "half-open"
    assert hand.breaker.admit() == 5.0
    hand.breaker.succeeded(hand.breaker.era)
    for _ in range(10):
        assert not tell(before)
    assert hand.breaker.state == "closed"


def test_a_probe_that_told_nothing_leaves_room_for_another():
    hand = Hand()
    hand.fall()
    hand.time += 5
    for _ in range(3):
        assert hand.breaker.admit() is None
        assert hand.breaker.admit() == 5.0
        hand.breaker.undecided(hand.breaker.era)
    assert hand.call() is None
    assert hand.breaker.state == "closed"


def test_of_many_threads_one_probes():
    hand = Hand()
    for _ in range(50):
        hand.fall()
        hand.time += 60
        answers: list[float | None] = []
        at_once = threading.Barrier(8)

        def ask(answers: list[float | None] = answers, at_once: threading.Barrier = at_once) -> None:
            at_once.wait()
            answers.append(hand.breaker.admit())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers.count(None) == 1
        hand.breaker.succeeded(hand.breaker.era)


class Model:
    """The same by the book: the list of all calls since the last opening or closing, looked through every time."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.calls: list[tuple[float, bool]] = []
        self.until: float | None = None
        self.time = policy.open_for

    def call(self, now: float, well: bool) -> float | None:
        if self.until is not None:
            if now < self.until:
                return self.until - now
            if well:
                self.calls, self.until, self.time = [], None, self.policy.open_for
            else:
                self.time = min(self.time * 2, self.policy.longest)
                self.until = now + self.time
            return None
        self.calls.append((now, well))
        row = 0
        while row < len(self.calls) and not self.calls[-1 - row][1]:
            row += 1
        recent = [call for call in self.calls if call[0] >= now - self.policy.window]
        while recent and recent[0][1]:
            del recent[0]
        failed = sum(not well for _, well in recent)
        half = len(recent) >= self.policy.minimum and failed >= self.policy.ratio * len(recent)
        if not well and (row >= self.policy.in_a_row or half):
            self.calls, self.until = [], now + self.time
        return None


@given(
    policy=st.builds(
        BreakerPolicy,
        in_a_row=st.integers(1, 6),
        ratio=st.sampled_from([0.25, 0.5, 0.9, 1.0]),
        minimum=st.integers(1, 12),
        window=st.sampled_from([1.0, 8.0, 30.0]),
        open_for=st.sampled_from([1.0, 5.0]),
        longest=st.sampled_from([5.0, 60.0]),
    ),
    story=st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 4.0, 16.0]), st.booleans()), max_size=80),
)
def test_it_does_what_a_simple_one_would(policy: BreakerPolicy, story: list[tuple[float, bool]]):
    hand, model = Hand(), Model(policy)
    hand.breaker = Breaker(policy, Clock(monotonic=lambda: hand.time))
    for pause, well in story:
        hand.time += pause
        assert hand.call(well) == model.call(hand.time, well)
        assert (hand.breaker.state == "closed") == (model.until is None)


# -- inside a guard --------------------------------------------------------------------------------------------------


@virtual
async def test_a_dead_member_is_left_alone_probed_and_taken_back():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    assert checkpointer.breaker is not None
    await checkpointer.save(state(1), "t")
    faulty.partition()
    for _ in range(5):
        with pytest.raises(BackendError):
            await checkpointer.load("t")
    assert checkpointer.breaker.state == "open"
    sent = len(faulty.calls)
    with pytest.raises(BreakerOpen, match=r"next probe is due in 5\.0 s") as caught:
        await checkpointer.save(state(2), "t")
    assert (caught.value.member, caught.value.operation) == ("FaultyCheckpointer", "save")
    assert "the data is as it was" in str(caught.value)
    assert len(faulty.calls) == sent and now() == 0.0  # at once, and nothing was sent

    await asyncio.sleep(5)
    with pytest.raises(BackendError):
        await checkpointer.load("t")  # the probe
    assert len(faulty.calls) == sent + 1
    with pytest.raises(BreakerOpen, match=r"due in 10\.0 s"):
        await checkpointer.load("t")

    faulty.heal()
    await asyncio.sleep(10)
    assert checkpointer.breaker.state == "half-open"
    assert await latest(checkpointer) == 1
    assert checkpointer.breaker.state == "closed"
    stats = checkpointer.stats
    assert (stats.calls, stats.failures, stats.opened, stats.refused) == (10, 6, 2, 2)


@virtual
async def test_while_the_probe_is_under_way_others_are_refused():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    faulty.partition()
    for _ in range(5):
        await outcome(checkpointer.load("t"))
    faulty.heal()
    faulty.inject(on("load").hang())
    await asyncio.sleep(5)
    sent = len(faulty.calls)
    probe = asyncio.create_task(checkpointer.load("t"))
    await faulty.until_hung()
    refused = await asyncio.gather(*(outcome(checkpointer.load("t")) for _ in range(20)))
    assert all(isinstance(each, BreakerOpen) for each in refused)
    assert len(faulty.calls) == sent + 1
    faulty.release()
    assert await probe is None
    assert await checkpointer.load("t") is None


@virtual
async def test_a_cancelled_probe_is_no_verdict():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    faulty.partition()
    for _ in range(5):
        await outcome(checkpointer.load("t"))
    faulty.heal()
    faulty.inject(on("load").hang())
    await asyncio.sleep(5)
    probe = asyncio.create_task(checkpointer.load("t"))
    await faulty.until_hung()
    probe.cancel()
    assert isinstance(await outcome(probe), asyncio.CancelledError)
    assert checkpointer.breaker is not None and checkpointer.breaker.state == "half-open"
    assert await checkpointer.load("t") is None  # the next one probes
    assert checkpointer.breaker.state == "closed"


@virtual
async def test_the_cancellation_of_an_older_call_does_not_let_a_second_probe_through():
    faulty = FaultyCheckpointer(script=[on("exists").hang()])
    checkpointer = guarded(faulty)
    older = asyncio.create_task(checkpointer.exists("t"))
    await faulty.until_hung()
    faulty.inject(on("load", times=5).fail_before(), on("load", at=6).hang())
    for _ in range(5):
        await outcome(checkpointer.load("t"))
    await asyncio.sleep(4.9)
    asyncio.get_running_loop().call_later(0.05, older.cancel)
    assert isinstance(await outcome(older), asyncio.CancelledError)
    await asyncio.sleep(0.1)
    probe = asyncio.create_task(checkpointer.load("t"))
    await faulty.until_hung()
    assert isinstance(await outcome(checkpointer.load("t")), BreakerOpen)
    faulty.release()
    await probe


@virtual
async def test_a_member_that_says_no_is_well():
    faulty = FaultyCheckpointer(script=[on("load", times=None).fail_before(ValueError("no such thing"))])
    checkpointer = guarded(faulty)
    for _ in range(100):
        with pytest.raises(BackendError):
            await checkpointer.load("t")
    assert checkpointer.breaker is not None and checkpointer.breaker.state == "closed"
    assert checkpointer.stats.failures == 0


@virtual
async def test_a_no_ends_a_row_and_closes_an_open_breaker():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    no = on("load").fail_before(ValueError("no"))
    assert checkpointer.breaker is not None
    faulty.inject(on("load", times=4).fail_before(), on("load", at=5).fail_before(ValueError("no")))
    faulty.inject(on("load", at=6, times=4).fail_before())
    for _ in range(9):
        await outcome(checkpointer.load("t"))
    assert checkpointer.breaker.state == "closed"
    faulty.inject(on("load").fail_before())
    await outcome(checkpointer.load("t"))
    assert checkpointer.breaker.state == "open"
    await asyncio.sleep(5)
    faulty.inject(no)
    assert isinstance(await outcome(checkpointer.load("t")), BackendError)
    assert checkpointer.breaker.state == "closed"


@virtual
async def test_an_error_that_nobody_knows_counts_against_the_member():
    class Strange(Exception):
        pass

    checkpointer = guarded(FaultyCheckpointer(script=[on("load", times=None).fail_before(Strange())]))
    for _ in range(5):
        await outcome(checkpointer.load("t"))
    assert checkpointer.breaker is not None and checkpointer.breaker.state == "open"


@virtual
async def test_timeouts_count_and_a_hung_member_is_left_alone():
    faulty = FaultyCheckpointer(script=[on("load", times=None).hang()])
    checkpointer = guarded(faulty)
    for _ in range(5):
        with pytest.raises(AttemptTimeout):
            await checkpointer.load("t")
    assert now() == 25.0
    with pytest.raises(BreakerOpen):
        await checkpointer.load("t")
    assert now() == 25.0


@virtual
async def test_without_a_breaker_every_call_is_made():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty, breaker=None)
    faulty.partition()
    for _ in range(50):
        await outcome(checkpointer.load("t"))
    assert faulty.count("load") == 50
    assert (checkpointer.breaker, checkpointer.stats.failures, checkpointer.stats.refused) == (None, 50, 0)


@virtual
async def test_who_looks_after_the_store_hears_of_it(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="locus_tiered")
    heard: list[Signal] = []
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    faulty.partition()
    with listen(heard.append):
        for _ in range(7):
            await outcome(checkpointer.load("t"))
        faulty.heal()
        await asyncio.sleep(5)
        await checkpointer.load("t")
    assert [signal.kind for signal in heard] == ["breaker.opened", "guard.refused", "guard.refused", "breaker.closed"]
    assert heard[0].facts == {"error": "InjectedFault"}
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "FaultyCheckpointer: the breaker opened after InjectedFault during load",
        "FaultyCheckpointer: the breaker is closed again",
    ]


@virtual
async def test_one_breaker_for_all_loops_and_a_probe_that_was_lost_with_its_loop_is_none():
    faulty = FaultyCheckpointer()
    checkpointer = guarded(faulty)
    assert checkpointer.breaker is not None
    faulty.partition()
    for _ in range(5):
        await outcome(checkpointer.load("t"))
    faulty.heal()
    faulty.inject(on("load").hang())
    await asyncio.sleep(5)
    probe = checkpointer.load("t")
    probe.send(None)  # under way
    await a_moment()
    probe.close()  # what the end of a loop does to what nobody cancelled
    await a_moment()
    assert await checkpointer.load("t") is None
    assert checkpointer.breaker.state == "closed"
