"""``RetryingCheckpointer``: what is tried again, when, how often, and what is not."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from statistics import mean
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from locus.core.state import AgentState
from locus.memory.backends import redis_checkpointer
from locus.memory.backends.s3 import S3Backend

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    TieredCheckpointer,
)
from locus_tiered.core.classification import Kind
from locus_tiered.core.deadline import begin, end, remaining
from locus_tiered.core.errors import (
    AttemptTimeout,
    BackendError,
    BreakerOpen,
    CapabilityMissing,
    Overloaded,
    RetriesExhausted,
    StackConfigError,
)
from locus_tiered.core.operations import OPERATIONS, Load, Operation
from locus_tiered.core.signals import Signal, listen
from locus_tiered.layers.budget import RetryBudget, shared_budget
from locus_tiered.layers.order import StackOrderWarning
from locus_tiered.layers.retrying import RetryEvent
from locus_tiered.testing.faults import FaultyCheckpointer, ReferenceCheckpointer, on
from locus_tiered.testing.virtual_time import run_virtual, virtual_clock
from tests.layers.parts import (
    Between,
    a_moment,
    fixed_chance,
    guarded,
    latest,
    leg,
    now,
    others,
    outcome,
    retrying,
    state,
    virtual,
)

NO_LIMIT = RetryBudget(ratio=1.0, burst=10_000)


def slow_down(seconds: str | None = None) -> ClientError:
    headers = {} if seconds is None else {"retry-after": seconds}
    return ClientError(
        {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": headers}},
        "PutObject",
    )


def status(code: int, retry_after: str | None = None) -> httpx.HTTPStatusError:
    response = httpx.Response(code, headers={} if retry_after is None else {"Retry-After": retry_after})
    return httpx.HTTPStatusError("no", request=httpx.Request("GET", "http://store"), response=response)


# -- parameters ------------------------------------------------------------------------------------------------------


def test_the_defaults():
    checkpointer = RetryingCheckpointer(ReferenceCheckpointer())
    assert (checkpointer.attempts, checkpointer.deadline) == (3, 15.0)
    assert (checkpointer.base, checkpointer.throttled_base, checkpointer.cap) == (0.05, 1.0, 5.0)
    assert (checkpointer.budget.ratio, checkpointer.budget.burst) == (0.09, 10)
    parameters = inspect.signature(RetryingCheckpointer).parameters
    assert parameters["retry_on"].default is None and parameters["on_retry"].default is None
    assert parameters["repeat"].default == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 2.0},
        {"attempts": True},
        {"deadline": 0},
        {"deadline": "15s"},
        {"deadline": float("nan")},
        {"base": -1},
        {"throttled_base": 0},
        {"cap": 0},
        {"repeat": "vacuum"},
        {"repeat": ("vacum",)},
        {"retry_on": 5},
        {"retry_on": (ValueError, "KeyError")},
        {"retry_on": int},
    ],
    ids=str,
)
def test_parameters_that_make_no_sense_are_refused(wrong):
    with pytest.raises(StackConfigError, match=next(iter(wrong))):
        RetryingCheckpointer(ReferenceCheckpointer(), **wrong)


def test_its_repr_is_the_code_that_builds_it():
    inner = BoundedMemoryCheckpointer("1MiB")
    written = "RetryingCheckpointer(BoundedMemoryCheckpointer(max_bytes='1MiB')"
    assert repr(RetryingCheckpointer(inner)) == f"{written})"
    assert repr(RetryingCheckpointer(inner, attempts=5, deadline=2)) == f"{written}, attempts=5, deadline=2.0)"
    chosen = RetryingCheckpointer(inner, base=1, throttled_base=2, cap=3, budget=RetryBudget(0.5, 2), repeat={"vacuum"})
    assert repr(chosen) == (
        f"{written}, base=1.0, throttled_base=2.0, cap=3.0, budget=RetryBudget(ratio=0.5, burst=2), repeat=['vacuum'])"
    )


@pytest.mark.filterwarnings("ignore::locus_tiered.layers.order.StackOrderWarning")
@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: RetryingCheckpointer(CachedCheckpointer(ReferenceCheckpointer())), "repeats its near tiers"),
        (lambda: RetryingCheckpointer(TieredCheckpointer(ReferenceCheckpointer())), "repeats all tiers"),
        (lambda: RetryingCheckpointer(RetryingCheckpointer(ReferenceCheckpointer())), "keep one"),
    ],
)
def test_a_wrong_order_of_layers_warns_and_says_why(build, why):
    with pytest.warns(StackOrderWarning, match=why) as caught:
        build()
    assert caught[0].filename == __file__


# -- attempts --------------------------------------------------------------------------------------------------------


@virtual
async def test_it_is_not_to_be_noticed_where_nothing_goes_wrong():
    faulty = FaultyCheckpointer()
    checkpointer = retrying(faulty)
    assert await checkpointer.save(state(1), "t", "one") == "one"
    assert await latest(checkpointer) == 1
    assert await checkpointer.list_checkpoints("t") == ["one"]
    assert await checkpointer.delete("t", "one") is True
    stats = checkpointer.stats
    assert (stats.calls, stats.retries, stats.recovered, stats.exhausted, stats.unknown_errors) == (4, 0, 0, 0, 0)
    assert len(faulty.calls) == 4 and now() == 0.0


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
@virtual
async def test_it_tries_as_often_as_allowed_and_says_what_is_known(attempts):
    error = ConnectionResetError("gone")
    faulty = FaultyCheckpointer(script=[on("save", times=None).fail_before(error)])
    checkpointer = retrying(faulty, attempts=attempts)
    with pytest.raises(RetriesExhausted) as caught:
        await checkpointer.save(state(1), "t")
    assert faulty.count("save") == attempts
    raised = caught.value
    assert (raised.member, raised.operation, raised.temporary) == ("FaultyCheckpointer", "save", True)
    assert raised.__cause__ is error
    assert f"FaultyCheckpointer: save of thread 't' failed {attempts} times (ConnectionResetError)" in str(raised)
    assert "may or may not have taken effect" in str(raised)
    stats = checkpointer.stats
    assert (stats.calls, stats.retries, stats.recovered, stats.exhausted) == (1, attempts - 1, 0, 1)


@pytest.mark.parametrize("failures", [1, 2])
@virtual
async def test_what_succeeds_in_the_end_has_succeeded(failures):
    faulty = FaultyCheckpointer(script=[on("save", times=failures).fail_before()])
    checkpointer = retrying(faulty)
    assert await checkpointer.save(state(1), "t", "one") == "one"
    assert faulty.count("save") == failures + 1
    assert (checkpointer.stats.retries, checkpointer.stats.recovered, checkpointer.stats.exhausted) == (failures, 1, 0)


@virtual
async def test_of_a_read_nothing_is_in_doubt():
    checkpointer = retrying(FaultyCheckpointer(script=[on("load", times=None).fail_before()]))
    with pytest.raises(RetriesExhausted) as caught:
        await checkpointer.load("t")
    assert "may or may not" not in str(caught.value)


@virtual
async def test_what_a_thread_is_called_does_not_flood_the_message():
    checkpointer = retrying(FaultyCheckpointer(script=[on("load", times=None).fail_before()]))
    with pytest.raises(RetriesExhausted) as caught:
        await checkpointer.load("x" * 4096)
    assert len(str(caught.value)) < 400


# -- what is not tried again -----------------------------------------------------------------------------------------


class Strange(Exception):
    """Of no driver that anybody knows."""


@pytest.mark.parametrize(
    "error", [ValueError("no"), PermissionError(13, "no"), status(404), status(403), Strange("?"), RuntimeError("?")]
)
@virtual
async def test_permanent_and_unknown_errors_leave_at_once(error):
    faulty = FaultyCheckpointer(script=[on("load", times=None).fail_before(error)])
    checkpointer = retrying(faulty)
    with pytest.raises(BackendError) as caught:
        await checkpointer.load("t")
    assert type(caught.value) is BackendError and caught.value.__cause__ is error
    assert len(faulty.calls) == 1 and now() == 0.0
    unknown = isinstance(error, Strange) or type(error) is RuntimeError
    assert checkpointer.stats.unknown_errors == unknown
    assert (checkpointer.stats.retries, checkpointer.stats.exhausted) == (0, 0)


@virtual
async def test_an_unknown_error_is_counted_and_told():
    heard: list[Signal] = []
    checkpointer = retrying(FaultyCheckpointer(script=[on("load", times=None).fail_before(Strange())]), name="leg")
    with listen(heard.append):
        for _ in range(3):
            await outcome(checkpointer.load("t"))
    assert checkpointer.stats.unknown_errors == 3
    assert [(signal.kind, signal.member, signal.facts) for signal in heard] == [
        ("retry.unknown_error", "leg", {"error": "Strange"})
    ] * 3


@virtual
async def test_a_permanent_error_in_a_later_attempt_leaves_as_it_is():
    no, gone = ValueError("no"), ConnectionError("gone")
    for last in (no, Strange("?")):
        faulty = FaultyCheckpointer(script=[on("load").fail_before(gone), on("load", at=2).fail_before(last)])
        checkpointer = retrying(faulty)
        with pytest.raises(BackendError) as caught:
            await checkpointer.load("t")
        assert type(caught.value) is BackendError and caught.value.__cause__ is last
        assert len(faulty.calls) == 2
        assert checkpointer.stats.unknown_errors == (last is not no)


@virtual
async def test_a_missing_capability_is_no_failure():
    class Simple(ReferenceCheckpointer):
        async def vacuum(self, older_than_days: int = 30) -> int:
            raise NotImplementedError

    with pytest.raises(CapabilityMissing):
        await retrying(Simple(), repeat=("vacuum",)).vacuum()


@pytest.mark.parametrize("refusal", [BreakerOpen, Overloaded, RetriesExhausted])
@virtual
async def test_what_was_decided_below_is_not_asked_again(refusal):
    error = refusal("no", member="m", operation="load", temporary=True)

    async def refuse(_: object) -> None:
        raise error

    below = Between(ReferenceCheckpointer(), refuse)
    checkpointer = retrying(below, retry_on=lambda _: True)
    assert await outcome(checkpointer.load("t")) is error
    assert len(below.calls) == 1


@pytest.mark.filterwarnings("ignore::locus_tiered.layers.order.StackOrderWarning")
@virtual
async def test_an_outer_retry_does_not_multiply_the_attempts():
    faulty = FaultyCheckpointer(script=[on("load", times=None).fail_before()])
    checkpointer = retrying(retrying(retrying(faulty)))
    with pytest.raises(RetriesExhausted):
        await checkpointer.load("t")
    assert len(faulty.calls) == 3


@virtual
async def test_nor_does_a_stack_inside_another_checkpointer_inside_a_stack():
    faulty = FaultyCheckpointer(script=[on("load", times=None).fail_before()])

    class Foreign(ReferenceCheckpointer):
        async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
            return await inner.load(thread_id, checkpoint_id)

    inner = retrying(faulty)
    with pytest.raises(RetriesExhausted):
        await retrying(Foreign()).load("t")
    assert len(faulty.calls) == 3


# -- what may be repeated --------------------------------------------------------------------------------------------


def operation_of(kind: type[Operation[Any]]) -> Operation[Any]:
    arguments: dict[str, tuple[Any, ...]] = {"search": ("x",), "query_by_metadata": ("k", "v")}
    arguments |= {"save": ("t", AgentState(), "one"), "copy_thread": ("t", "u"), "vacuum": (7,)}
    arguments |= {"list_threads": (), "list_with_metadata": ()}
    return kind(*arguments.get(kind.name, ("t",)))


@pytest.mark.parametrize("kind", OPERATIONS)
@virtual
async def test_only_what_is_repeatable_is_repeated_unless_it_was_named(kind):
    async def fail(_: object) -> None:
        raise ConnectionError

    for named in (False, True):
        below = Between(ReferenceCheckpointer(), fail)
        checkpointer = retrying(below, repeat=(kind.name,) if named else ())
        await outcome(checkpointer.handle(operation_of(kind)))
        assert len(below.calls) == (3 if kind.repeatable or named else 1)
    assert kind.repeatable == (kind.name not in ("vacuum", "copy_thread"))


@virtual
async def test_a_copy_that_failed_half_way_is_not_made_again_and_says_so():
    faulty = FaultyCheckpointer()
    checkpointer = retrying(faulty)
    await checkpointer.save(state(1), "t")
    faulty.inject(on("copy_thread").fail_after(), on("vacuum").fail_after())
    with pytest.raises(BackendError, match="may or may not have taken effect"):
        await checkpointer.copy_thread("t", "u")
    with pytest.raises(BackendError, match="may or may not have taken effect"):
        await checkpointer.vacuum()
    assert (faulty.count("copy_thread"), faulty.count("vacuum")) == (1, 1)


# -- one save is one checkpoint --------------------------------------------------------------------------------------


@virtual
async def test_a_save_without_an_id_makes_one_checkpoint_however_often_it_was_tried():
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far, script=[on("save", times=2).fail_after()])
    checkpointer = retrying(faulty)
    original = state(1)
    saved = await checkpointer.save(original, "t", metadata={"k": "v"})
    assert [call.checkpoint_id for call in faulty.matching("save")] == [saved] * 3
    assert list(far.stored["t"]) == [saved]
    assert await checkpointer.load("t", saved) == original
    assert await checkpointer.list_checkpoints("t") == [saved]


@pytest.mark.parametrize("fault", ["fail_before", "fail_after", "late"])
@virtual
async def test_whatever_went_wrong_on_the_way(fault):
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far)
    # Half of all calls fail, which a breaker would not bear for long.
    home = leg(faulty, breaker=None, retry={"budget": RetryBudget(ratio=1)})
    checkpointer = TieredCheckpointer(BoundedMemoryCheckpointer(), home, clock=virtual_clock())
    for number in range(10):
        now_and_then = on("save", times=1 + number % 2)
        late = now_and_then.apply_late(answer="raise", after=1)
        faulty.inject(late if fault == "late" else getattr(now_and_then, fault)())
        await checkpointer.save(state(number), "t")
    assert len(far.stored["t"]) == 10
    ids = await checkpointer.list_checkpoints("t")
    assert [(await checkpointer.load("t", each)).iteration for each in ids] == [*range(9, -1, -1)]  # type: ignore[union-attr]


@virtual
async def test_saves_at_once_do_not_share_an_id():
    far = ReferenceCheckpointer()
    checkpointer = retrying(FaultyCheckpointer(far, script=[on("save", times=5).fail_after()]))
    saved = await asyncio.gather(*(checkpointer.save(state(n), "t") for n in range(20)))
    assert len(set(saved)) == 20 == len(far.stored["t"])


@virtual
async def test_a_delete_that_took_effect_before_it_failed_answers_false():
    faulty = FaultyCheckpointer()
    checkpointer = retrying(faulty)
    await checkpointer.save(state(1), "t", "one")
    faulty.inject(on("delete").fail_after())
    assert await checkpointer.delete("t", "one") is False
    assert not await checkpointer.exists("t", "one")


# -- pauses ----------------------------------------------------------------------------------------------------------


async def pauses(checkpointer: RetryingCheckpointer, calls: int = 1) -> list[float]:
    """The pauses of calls that all fail, as its hook hears of them."""
    noted: list[float] = []
    checkpointer._on_retry = lambda event: noted.append(event.wait)
    for _ in range(calls):
        await outcome(checkpointer.load("t"))
    return noted


def failing(error: Exception | None = None, **options: Any) -> RetryingCheckpointer:
    faulty = FaultyCheckpointer(script=[on("load", times=None).fail_before(error)])
    return retrying(faulty, **({"budget": NO_LIMIT, "deadline": 10_000} | options))


@virtual
async def test_the_pause_doubles_up_to_the_cap():
    most = failing(attempts=12, clock=fixed_chance(1.0))
    assert await pauses(most) == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0])
    assert now() == pytest.approx(26.35)
    half = failing(attempts=4, base=0.2, cap=0.5, clock=fixed_chance(0.5))
    assert await pauses(half) == pytest.approx([0.1, 0.2, 0.25])
    none = failing(attempts=4, clock=fixed_chance(0.0))
    assert await pauses(none) == [0.0, 0.0, 0.0]


@given(seed=st.integers(0, 2**32), base=st.floats(0.001, 10), cap=st.floats(0.001, 20), attempts=st.integers(2, 8))
def test_every_pause_is_between_nothing_and_the_bound(seed, base, cap, attempts):
    async def bounded() -> None:
        checkpointer = failing(attempts=attempts, base=base, cap=cap, clock=virtual_clock(seed=seed))
        noted = await pauses(checkpointer)
        assert len(noted) == attempts - 1
        for number, pause in enumerate(noted):
            assert 0 <= pause <= min(cap, base * 2**number)
        assert asyncio.get_running_loop().time() == pytest.approx(sum(noted))

    run_virtual(bounded)


@virtual
async def test_the_jitter_is_full():
    """Every part of the range is hit as often as every other: callers that failed together part."""
    noted = await pauses(failing(attempts=2, base=1.0, clock=virtual_clock(seed=7)), 4000)
    assert mean(noted) == pytest.approx(0.5, abs=0.02)
    for tenth in range(10):
        assert sum(tenth / 10 <= pause < (tenth + 1) / 10 for pause in noted) == pytest.approx(400, abs=80)


@virtual
async def test_after_slow_down_the_pause_is_longer():
    assert await pauses(failing(slow_down(), attempts=5, clock=fixed_chance(1.0))) == pytest.approx([1, 2, 4, 5])
    chosen = failing(status(429), attempts=3, throttled_base=0.5, clock=fixed_chance(1.0))
    assert await pauses(chosen) == pytest.approx([0.5, 1])


@virtual
async def test_a_server_that_says_how_long_is_believed():
    for error in (slow_down("7"), status(503, "7"), status(429, "7")):
        assert await pauses(failing(error, attempts=3)) == [7.0, 7.0]  # also above the cap
    # It is the least; the jitter may say more.
    more = await pauses(failing(status(429, "1"), attempts=4, throttled_base=3, clock=fixed_chance(1.0)))
    assert more == pytest.approx([3, 5, 5])


@virtual
async def test_a_server_that_says_when_is_believed():
    later = datetime.now(UTC) + timedelta(seconds=100)
    noted = await pauses(failing(status(503, format_datetime(later, usegmt=True)), attempts=2))
    assert noted == [pytest.approx(100, abs=10)]
    earlier = datetime.now(UTC) - timedelta(seconds=100)
    noted = await pauses(failing(status(503, format_datetime(earlier, usegmt=True)), attempts=2))
    assert 0 <= noted[0] <= 1


@virtual
async def test_who_is_told_to_wait_longer_than_he_has_time_gives_up_at_once():
    checkpointer = failing(status(503, "20"), deadline=15, budget=RetryBudget())
    with pytest.raises(RetriesExhausted, match="next pause would pass the deadline of 15 s"):
        await checkpointer.load("t")
    assert now() == 0.0
    assert (checkpointer.stats.retries, checkpointer.stats.exhausted) == (0, 1)
    assert checkpointer.budget.tokens == 10  # a retry that is not made costs nothing


# -- the deadline ----------------------------------------------------------------------------------------------------


@virtual
async def test_the_deadline_is_for_all_attempts_and_pauses():
    faulty = FaultyCheckpointer(script=[on("load", times=None).hang()])
    checkpointer = leg(faulty, retry={"attempts": 100, "budget": NO_LIMIT}, breaker=None)
    with pytest.raises(RetriesExhausted, match="deadline of 15 s") as caught:
        await checkpointer.load("t")
    assert now() == pytest.approx(15.0, abs=0.5)  # 5 s, a pause, 5 s, a pause, and what is left
    assert now() <= 15.0
    assert isinstance(caught.value.__cause__, AttemptTimeout | TimeoutError)
    assert 3 <= len(faulty.calls) <= 4


@given(deadline=st.floats(0.01, 30), timeout=st.floats(0.01, 30), attempts=st.integers(1, 10), seed=st.integers(0, 99))
def test_with_a_guard_inside_the_deadline_always_holds(deadline, timeout, attempts, seed):
    async def holds() -> None:
        faulty = FaultyCheckpointer(script=[on(times=None).hang()])
        retry = {"attempts": attempts, "deadline": deadline, "budget": NO_LIMIT, "clock": virtual_clock(seed=seed)}
        checkpointer = leg(faulty, retry=retry, timeout=timeout, breaker=None)
        for call in (checkpointer.load("t"), checkpointer.save(state(1), "t")):
            began = asyncio.get_running_loop().time()
            assert isinstance(await outcome(call), RetriesExhausted)
            assert asyncio.get_running_loop().time() - began <= deadline + 1e-6
        faulty.release()
        await a_moment()
        assert not others()

    run_virtual(holds)


@virtual
async def test_without_a_guard_an_attempt_is_not_cut_short():
    faulty = FaultyCheckpointer(script=[on("load").slow(100)])
    assert await retrying(faulty).load("t") is None
    assert now() == 100.0


@virtual
async def test_everything_inside_sees_the_deadline():
    below = Between(FaultyCheckpointer())
    checkpointer = leg(below, retry={"deadline": 12})
    for call in (checkpointer.load("t"), checkpointer.save(state(1), "t"), checkpointer.delete("t")):
        assert remaining(virtual_clock()) is None
        await call  # a change runs in a task of its own, which sees it as well
        assert remaining(virtual_clock()) is None
    assert below.left == [12.0, 12.0, 12.0]


@pytest.mark.filterwarnings("ignore::locus_tiered.layers.order.StackOrderWarning")
@pytest.mark.parametrize(("outer", "inner", "least"), [(2, 15, 2), (15, 2, 2), (7, 7, 7)])
@virtual
async def test_nested_layers_share_the_sooner_deadline(outer, inner, least):
    below = Between(FaultyCheckpointer(script=[on("load", times=None).slow(0.5), on("load", times=None).fail_before()]))
    middle = retrying(below, deadline=inner, attempts=100, budget=NO_LIMIT)
    checkpointer = retrying(middle, deadline=outer, attempts=100, budget=NO_LIMIT)
    with pytest.raises(RetriesExhausted):
        await checkpointer.load("t")
    assert below.left[0] == least
    assert all(left is not None and left > 0 for left in below.left)
    # What is left shrinks from attempt to attempt: nobody begins to count anew.
    assert sorted(below.left, reverse=True) == below.left  # type: ignore[type-var]
    assert now() <= least + 0.5


@virtual
async def test_a_sooner_deadline_of_the_caller_holds():
    faulty = FaultyCheckpointer(script=[on("load", times=None).hang()])
    checkpointer = leg(faulty)
    token = begin(3.0, virtual_clock())
    assert isinstance(await outcome(checkpointer.load("t")), RetriesExhausted)
    assert now() == 3.0
    end(token)


@virtual
async def test_calls_at_once_have_deadlines_of_their_own():
    below = Between(FaultyCheckpointer(script=[on(times=None).slow(1)]))
    checkpointer = retrying(below, deadline=10)

    async def later(seconds: float) -> None:
        await asyncio.sleep(seconds)
        await checkpointer.load("t")

    await asyncio.gather(*(later(seconds) for seconds in (0, 0.25, 0.5, 3)))
    assert below.left == [10.0] * 4
    assert remaining(virtual_clock()) is None


@virtual
async def test_a_call_that_is_dropped_in_mid_air_disturbs_nobody():
    """What becomes of a call whose loop was left for good: it is closed, in whatever context."""
    faulty = FaultyCheckpointer(script=[on("load", times=2).hang()])
    for context in (copy_context(), None):
        call = leg(faulty).load("t")
        if context is None:
            call.send(None)
        else:
            context.run(call.send, None)
        call.close()
        assert remaining(virtual_clock()) is None


# -- the budget ------------------------------------------------------------------------------------------------------


def test_a_budget_is_a_bucket_of_tokens():
    budget = RetryBudget(ratio=0.25, burst=2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.note_call()
    assert not budget.take()
    budget.note_call()
    assert budget.take() and not budget.take()
    for _ in range(1000):
        budget.note_call()
    assert budget.tokens == 2
    assert repr(budget) == "RetryBudget(ratio=0.25, burst=2)"


@pytest.mark.parametrize("wrong", [{"ratio": -0.1}, {"ratio": 1.1}, {"burst": -1}], ids=str)
def test_a_budget_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(StackConfigError):
        RetryBudget(**wrong)


def test_no_budget_at_all_means_no_retries():
    budget = RetryBudget(ratio=0, burst=0)
    budget.note_call()
    assert not budget.take()


@given(
    ratio=st.floats(0, 1),
    burst=st.integers(0, 12),
    story=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60),
    attempts=st.integers(1, 5),
)
def test_the_budget_is_never_exceeded(ratio, burst, story, attempts):
    """At every moment: retries <= burst + ratio x calls, and what reached the member is calls + retries."""

    async def story_holds() -> None:
        faulty = FaultyCheckpointer()
        checkpointer = retrying(faulty, attempts=attempts, budget=RetryBudget(ratio, burst), deadline=10_000)
        for failures, writes in story:
            name = "save" if writes else "load"
            if failures:
                faulty.inject(on(name, times=failures).fail_before())
            await outcome(checkpointer.save(state(1), "t") if writes else checkpointer.load("t"))
            faulty.clear()
            stats = checkpointer.stats
            assert stats.retries <= burst + ratio * stats.calls + 1e-9
            assert len(faulty.calls) == stats.calls + stats.retries
            assert checkpointer.budget.tokens >= 0

    run_virtual(story_holds)


@virtual
async def test_in_a_long_outage_one_call_in_eleven_is_retried():
    faulty = FaultyCheckpointer()
    checkpointer = retrying(faulty)
    faulty.partition()
    for _ in range(5000):
        assert isinstance(await outcome(checkpointer.load("t")), RetriesExhausted)
    assert checkpointer.stats.retries <= 0.09 * 5000 + 10
    assert len(faulty.calls) <= 5000 * 1.1
    assert isinstance(error := await outcome(checkpointer.load("t")), RetriesExhausted)
    assert "the retry budget is used up (a long outage)" in str(error)
    # Afterwards it fills up again, from calls that succeed.
    faulty.heal()
    for _ in range(112):
        await checkpointer.load("t")
    assert checkpointer.budget.tokens == 10


def test_one_budget_per_backend_whatever_stacks_it_is_in():
    backend, other = ReferenceCheckpointer(), ReferenceCheckpointer()
    first = RetryingCheckpointer(backend)
    assert RetryingCheckpointer(GuardedCheckpointer(backend)).budget is first.budget
    assert RetryingCheckpointer(other).budget is not first.budget
    own = RetryBudget()
    assert RetryingCheckpointer(backend, budget=own).budget is own
    assert shared_budget(TieredCheckpointer(backend, other)) is not first.budget  # of several members
    assert RetryingCheckpointer(BoundedMemoryCheckpointer()).budget is not first.budget  # of a store


def test_a_backend_that_cannot_be_remembered_has_a_budget_all_the_same():
    class Odd(ReferenceCheckpointer):
        __hash__ = None  # type: ignore[assignment]

    assert RetryingCheckpointer(Odd()).budget.tokens == 10


# -- on_retry --------------------------------------------------------------------------------------------------------


@virtual
async def test_the_hook_receives_a_frozen_record_before_each_pause():
    events: list[tuple[float, RetryEvent]] = []
    error = slow_down("2")
    faulty = FaultyCheckpointer(script=[on("save").fail_before(ConnectionError()), on("save", at=2).fail_before(error)])
    checkpointer = retrying(faulty, on_retry=lambda event: events.append((now(), event)), clock=fixed_chance(0.5))
    await checkpointer.save(state(1), "thread-7")
    (first_at, first), (second_at, second) = events
    assert (first_at, second_at) == (0.0, 0.025)
    assert (first.operation, first.member, first.thread_id) == ("save", "FaultyCheckpointer", "thread-7")
    assert (first.attempt, first.attempts, first.wait, first.kind) == (1, 3, 0.025, Kind.TEMPORARY)
    assert (second.attempt, second.attempts, second.wait, second.kind) == (2, 3, 2.0, Kind.THROTTLED)
    assert isinstance(second.error, BackendError) and second.error.__cause__ is error
    with pytest.raises(FrozenInstanceError):
        first.attempt = 5  # type: ignore[misc]
    assert now() == 2.025


@virtual
async def test_an_operation_without_a_thread_has_none_to_name():
    events: list[RetryEvent] = []
    faulty = FaultyCheckpointer(script=[on("list_threads").fail_before()])
    await retrying(faulty, on_retry=events.append).list_threads()
    assert (events[0].operation, events[0].thread_id) == ("list_threads", None)


@virtual
async def test_what_the_hook_raises_is_logged_and_does_not_matter(caplog: pytest.LogCaptureFixture):
    def broken(event: RetryEvent) -> None:
        raise ZeroDivisionError("in a hook")

    faulty = FaultyCheckpointer(script=[on("save", times=2).fail_before()])
    checkpointer = retrying(faulty, on_retry=broken, name="leg")
    assert await checkpointer.save(state(1), "t", "one") == "one"
    assert caplog.text.count("leg: on_retry failed") == 2
    assert "ZeroDivisionError" in caplog.text


@virtual
async def test_every_retry_is_told():
    heard: list[Signal] = []
    faulty = FaultyCheckpointer(script=[on("save", times=2).fail_before()])
    with listen(heard.append):
        await retrying(faulty, name="leg").save(state(1), "t")
    assert [(signal.kind, signal.member, signal.thread_id) for signal in heard] == [("retry", "leg", "t")] * 2
    assert [signal.facts["attempt"] for signal in heard] == [1, 2]
    assert {signal.facts["operation"] for signal in heard} == {"save"}


# -- retry_on --------------------------------------------------------------------------------------------------------

STRANGE_FAULT = on("load").fail_before(Strange("once"))


@pytest.mark.parametrize(
    "retry_on",
    [(Strange,), [Strange, KeyError], {Exception}, Strange, lambda error: isinstance(error, Strange), lambda _: True],
)
@virtual
async def test_an_error_that_was_named_is_retried(retry_on):
    faulty = FaultyCheckpointer(script=[STRANGE_FAULT])
    checkpointer = retrying(faulty, retry_on=retry_on)
    assert await checkpointer.load("t") is None
    assert len(faulty.calls) == 2
    assert checkpointer.stats.unknown_errors == 0


@pytest.mark.parametrize("retry_on", [(), (KeyError,), KeyError, lambda _: False, lambda _: None])
@virtual
async def test_and_one_that_was_not_is_not(retry_on):
    faulty = FaultyCheckpointer(script=[STRANGE_FAULT])
    assert isinstance(await outcome(retrying(faulty, retry_on=retry_on).load("t")), BackendError)
    assert len(faulty.calls) == 1


@pytest.mark.parametrize("retry_on", [(KeyError,), KeyError, lambda _: None, None])
@virtual
async def test_what_the_tables_know_stays_known(retry_on):
    faulty = FaultyCheckpointer(script=[on("load").fail_before(), on("exists").fail_before(ValueError())])
    checkpointer = retrying(faulty, retry_on=retry_on)
    assert await checkpointer.load("t") is None
    assert isinstance(await outcome(checkpointer.exists("t")), BackendError)
    assert faulty.count("load") == 2 and faulty.count("exists") == 1


@virtual
async def test_a_function_has_the_last_word_about_the_foreign_error():
    asked: list[BaseException] = []

    def decide(error: BaseException) -> bool | None:
        asked.append(error)
        return not isinstance(error, ConnectionError)

    gone, no = ConnectionError("gone"), ValueError("no")
    faulty = FaultyCheckpointer(script=[on("load").fail_before(gone), on("exists").fail_before(no)])
    checkpointer = retrying(faulty, retry_on=decide)
    assert isinstance(await outcome(checkpointer.load("t")), BackendError)
    assert await checkpointer.exists("t") is False
    assert set(asked) == {gone, no}
    assert faulty.count("load") == 1 and faulty.count("exists") == 2


@virtual
async def test_throttling_stays_throttling_when_a_function_says_retry():
    noted = await pauses(failing(slow_down("7"), attempts=2, retry_on=lambda _: True))
    assert noted == [7.0]


# -- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["first attempt", "pause", "second attempt"])
@pytest.mark.parametrize("name", ["load", "save"])
@virtual
async def test_cancelled_it_leaves_at_once(name, where):
    script = [on(name).slow(1)]
    if where != "first attempt":
        script = [on(name).fail_before(), on(name, at=2).slow(1)]
    faulty = FaultyCheckpointer(script=script)
    checkpointer = retrying(faulty, base=2.0, clock=fixed_chance(0.5))  # a pause of 1 s
    task = asyncio.create_task(checkpointer.load("t") if name == "load" else checkpointer.save(state(1), "t"))
    await asyncio.sleep(1.5 if where == "second attempt" else 0.5)
    before = now()
    task.cancel()
    assert isinstance(await outcome(task), asyncio.CancelledError)
    assert now() == before
    assert task.cancelled()
    assert len(faulty.calls) == (2 if where == "second attempt" else 1)


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("name", ["load", "save", "delete"])
@pytest.mark.parametrize("kind", ["fail_before", "fail_after"])
@virtual
async def test_cancelled_after_any_number_of_steps_it_leaves_nothing_behind(kind, name, turns):
    far = ReferenceCheckpointer()
    await far.save(state(1), "t", "one")
    faulty = FaultyCheckpointer(far, script=[getattr(on(name, times=2), kind)()])
    checkpointer = leg(faulty)
    calls: dict[str, Callable[[], Any]] = {
        "load": lambda: checkpointer.load("t"),
        "save": lambda: checkpointer.save(state(2), "t", "two"),
        "delete": lambda: checkpointer.delete("t", "one"),
    }
    task = asyncio.create_task(calls[name]())
    for _ in range(turns):
        await asyncio.sleep(0)
    late, before = task.done(), now()
    task.cancel()
    assert late or isinstance(await outcome(task), asyncio.CancelledError)
    assert now() == before
    await checkpointer.close()
    assert not others()
    assert remaining(virtual_clock()) is None
    assert set(far.stored.get("t", {})) <= {"one", "two"}
    await checkpointer.save(state(3), "t", "three")
    assert await latest(checkpointer) == 3


@virtual
async def test_what_is_no_exception_is_not_touched():
    class PowerCut(BaseException):
        pass

    async def cut(_: object) -> None:
        raise PowerCut

    for error in (PowerCut, KeyboardInterrupt, SystemExit, GeneratorExit):

        async def end_of_it_all(_: object, error: type[BaseException] = error) -> None:
            raise error

        below = Between(ReferenceCheckpointer(), end_of_it_all)
        with pytest.raises(error):
            retrying(below, retry_on=lambda _: True).load("t").send(None)
        assert len(below.calls) == 1


@virtual
async def test_a_timeout_around_it_works_as_ever():
    faulty = FaultyCheckpointer(script=[on("load", times=None).fail_before()])
    checkpointer = retrying(faulty, base=100, cap=100, deadline=1000, clock=fixed_chance(1.0))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await checkpointer.load("t")
    assert now() == 10.0


# -- with a guard ----------------------------------------------------------------------------------------------------


@virtual
async def test_a_slow_attempt_is_given_up_and_the_next_one_succeeds():
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far, script=[on("save").slow(12), on("load").slow(12)])
    checkpointer = leg(faulty)
    assert await checkpointer.load("t") is None
    assert faulty.count("load") == 2 and now() == pytest.approx(5, abs=0.1)
    began = now()
    saved = await checkpointer.save(state(1), "t")
    assert now() - began == pytest.approx(12, abs=0.1)  # the second attempt waited in line for the first
    assert list(far.stored["t"]) == [saved]
    assert faulty.max_in_flight("t") == 1


@virtual
async def test_an_open_breaker_ends_the_retrying():
    faulty = FaultyCheckpointer()
    checkpointer = leg(faulty)
    faulty.partition()
    assert isinstance(await outcome(checkpointer.save(state(1), "t")), RetriesExhausted)  # three failures
    last = await outcome(checkpointer.save(state(1), "t"))  # the fifth opens it
    assert isinstance(last, RetriesExhausted) and isinstance(last.__cause__, ConnectionError)
    assert "failed, and the breaker has opened since (InjectedFault): it may or may not have taken effect" in str(last)
    refused = await outcome(checkpointer.save(state(1), "t"))
    assert isinstance(refused, BreakerOpen) and "was not sent" in str(refused)
    assert len(faulty.calls) == 5
    assert (checkpointer.stats.exhausted, checkpointer.stats.retries) == (2, 4)


@virtual
async def test_an_attempt_that_was_turned_away_does_not_hide_that_another_was_sent():
    faulty = FaultyCheckpointer()
    checkpointer = leg(faulty, max_concurrency=1, max_waiting=0, timeout=None)
    faulty.inject(on("save").fail_after(), on("exists").hang())
    saving = asyncio.create_task(checkpointer.save(state(1), "t", "one"))
    await a_moment(20)
    asking = asyncio.create_task(checkpointer.exists("u"))
    await faulty.until_hung()
    error = await outcome(saving)
    assert isinstance(error, RetriesExhausted)
    assert "failed, and was then turned away, because too many calls wait (InjectedFault): it may or may" in str(error)
    assert await faulty.inner.exists("t", "one")
    faulty.release()
    await asking


@virtual
async def test_a_stack_reads_and_lists_its_layers():
    checkpointer = leg(BoundedMemoryCheckpointer())
    assert isinstance(checkpointer.inner, GuardedCheckpointer)
    assert checkpointer.inner.breaker is not None and checkpointer.inner.breaker.state == "closed"
    assert checkpointer.capabilities == BoundedMemoryCheckpointer().capabilities
    assert checkpointer.deletes_single_checkpoints is True
    assert await checkpointer.handle(Load("t")) is None
    assert repr(leg(guarded(BoundedMemoryCheckpointer("1MiB")).inner)).startswith("RetryingCheckpointer(Guarded")
    assert logging.getLogger("locus_tiered.layers.retrying") is not None


# -- clients that retry by themselves --------------------------------------------------------------------------------


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, as if nobody had been told yet; and no AWS configuration of whoever runs the tests."""
    monkeypatch.setattr("locus_tiered.layers.client_retries._told", set())
    for name in ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", "AWS_CONFIG_FILE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    return caplog


def s3(**config: Any) -> S3Backend:
    client = None
    if config:
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        client = boto3.session.Session().client("s3", endpoint_url="http://s3", config=Config(**config), **keys)
    return S3Backend(bucket="b", _client=client)


def test_that_boto3_retries_is_said_once(untold):
    for _ in range(3):
        RetryingCheckpointer(GuardedCheckpointer(s3()))
    assert untold.text.count("boto3 tries each request") == 1
    assert "S3Backend retries by itself" in untold.text and "AWS_MAX_ATTEMPTS=1" in untold.text


@pytest.mark.parametrize("setting", ["AWS_MAX_ATTEMPTS", "total_max_attempts", "max_attempts"])
def test_that_boto3_does_not_retry_needs_no_word(untold, monkeypatch, setting):
    if setting == "AWS_MAX_ATTEMPTS":
        monkeypatch.setenv(setting, "1")
        backend = s3()
    else:
        backend = s3(retries={setting: 0 if setting == "max_attempts" else 1})
    RetryingCheckpointer(backend)
    assert untold.text == ""


def test_clients_that_do_not_retry_are_not_accused(untold):
    RetryingCheckpointer(redis_checkpointer("redis://localhost"))
    RetryingCheckpointer(ReferenceCheckpointer())
    GuardedCheckpointer(s3())  # without a retry of ours nothing is multiplied
    assert untold.text == ""
