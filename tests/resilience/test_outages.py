"""Whole outages in virtual time: a minute of 20 calls a second, a storm of 1000 saves, and the time after.

The figures of issue 3: what reaches the member is at most 1.1 times what was asked for; a storm ends within the
deadline and leaves no task behind; what was acknowledged is there, once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import BoundedMemoryCheckpointer, TieredCheckpointer
from locus_tiered.core.errors import AttemptTimeout, BackendError, BreakerOpen, Overloaded, RetriesExhausted
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.testing.faults import FaultKind, FaultyCheckpointer, ReferenceCheckpointer
from locus_tiered.testing.virtual_time import virtual_clock
from tests.layers.parts import a_moment, guarded, leg, now, others, outcome, retrying, state, virtual

RATE, SECONDS = 20, 60


@dataclass
class Traffic:
    """What agents ask for, and what they were told."""

    checkpointer: BaseCheckpointer
    acknowledged: dict[str, list[str]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    async def call(self, number: int) -> None:
        """One of three threads' loads and saves, and now and then a look or a deletion of nothing."""
        thread, began = f"t{number % 3}", asyncio.get_running_loop().time()
        try:
            match number % 4:
                case 0 | 2:
                    saved = await self.checkpointer.save(state(number), thread)
                    self.acknowledged.setdefault(thread, []).append(saved)
                case 1:
                    await self.checkpointer.load(thread)
                case 3:
                    await self.checkpointer.list_checkpoints(thread)
        except BackendError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["well"] += 1
        self.longest = max(self.longest, asyncio.get_running_loop().time() - began)

    async def flow(self, seconds: float) -> None:
        """``RATE`` calls a second, whatever becomes of them."""
        calls = []
        for number in range(int(seconds * RATE)):
            calls.append(asyncio.create_task(self.call(number)))
            await asyncio.sleep(1 / RATE)
        await asyncio.gather(*calls)


def in_tiers(home: BaseCheckpointer) -> TieredCheckpointer:
    return TieredCheckpointer(BoundedMemoryCheckpointer(), home, clock=virtual_clock())


OUTAGES = {
    "refused": FaultKind.FAIL_BEFORE,
    "answers are lost": FaultKind.FAIL_AFTER,
    "hung": FaultKind.HANG,
    "none on outage": FaultKind.NONE_ON_OUTAGE,
}


STACKS = ["retry", "retry, guard", "tiers, retry, guard"]
# Without a guard a hung call hangs, so there is nothing to count.
CASES = [(outage, stack) for outage in OUTAGES for stack in STACKS if (outage, stack) != ("hung", "retry")]


@pytest.mark.parametrize(("outage", "stack"), CASES)
@virtual
async def test_amplification_is_at_most_1_1_over_a_minute(outage: str, stack: str):
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far)
    home = retrying(faulty) if stack == "retry" else leg(faulty)
    traffic = Traffic(in_tiers(home) if stack.startswith("tiers") else home)
    faulty.partition(OUTAGES[outage])
    await traffic.flow(SECONDS)

    asked, sent = home.stats.calls, len(faulty.calls)
    assert sum(traffic.outcomes.values()) == RATE * SECONDS
    assert asked >= RATE * SECONDS / 2  # loads of one thread at once are one load in tiers
    assert sent <= 1.1 * asked, f"{sent} calls for {asked}"
    if stack != "retry" and outage != "none on outage":
        assert sent <= 0.1 * asked  # the breaker does most of it

    # Afterwards all is as before.
    faulty.heal()
    faulty.release()
    await asyncio.sleep(60)
    await traffic.flow(3)
    await asyncio.sleep(5)
    assert (await outcome(traffic.checkpointer.load("t0"))) is not None
    for thread, saved in traffic.acknowledged.items():
        listed = await traffic.checkpointer.list_checkpoints(thread, 10_000)
        assert len(listed) == len(set(listed))
        assert set(saved) <= set(listed)
        # What was acknowledged comes in the order in which that happened.
        assert [each for each in reversed(listed) if each in set(saved)] == saved
    if stack != "retry":
        breaker = home.inner.breaker  # type: ignore[attr-defined]
        assert breaker.state == "closed"
    await traffic.checkpointer.close()


@virtual
async def test_a_store_that_fails_half_of_the_time_is_not_beaten_any_harder():
    faulty = FaultyCheckpointer(rates={FaultKind.FAIL_BEFORE: 0.25, FaultKind.FAIL_AFTER: 0.25}, seed=3)
    checkpointer = retrying(faulty)
    traffic = Traffic(checkpointer)
    await traffic.flow(SECONDS)
    assert len(faulty.calls) <= 1.1 * checkpointer.stats.calls


@virtual
async def test_a_store_that_stumbles_now_and_then_is_not_to_be_noticed():
    """One call in a hundred fails: every one is tried again, and every one succeeds."""
    faulty = FaultyCheckpointer(rates={FaultKind.FAIL_BEFORE: 0.005, FaultKind.FAIL_AFTER: 0.005}, seed=3)
    checkpointer = leg(faulty)
    traffic = Traffic(checkpointer)
    await traffic.flow(SECONDS)
    assert traffic.outcomes == {"well": RATE * SECONDS}
    assert checkpointer.stats.recovered > 5
    assert len(faulty.calls) <= 1.02 * checkpointer.stats.calls
    assert sum(map(len, traffic.acknowledged.values())) == RATE * SECONDS // 2
    for thread, saved in traffic.acknowledged.items():
        assert len(faulty.inner.stored[thread]) == len(saved)  # type: ignore[attr-defined]


@virtual
async def test_short_outages_are_survived_by_waiting():
    faulty = FaultyCheckpointer()
    checkpointer = leg(faulty, retry={"attempts": 6, "base": 0.5}, breaker=None)
    faulty.partition()
    asyncio.get_running_loop().call_later(1.0, faulty.heal)
    assert await checkpointer.save(state(1), "t", "one") == "one"
    assert list(faulty.inner.stored["t"]) == ["one"]  # type: ignore[attr-defined]


# -- storms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1000, 10])
@pytest.mark.parametrize("breaker", [BreakerPolicy(), None], ids=["breaker", "no breaker"])
@pytest.mark.parametrize("stack", ["bare", "tiers"])
@virtual
async def test_a_storm_on_a_dead_store_ends_at_once(threads, breaker, stack):
    faulty = FaultyCheckpointer()
    home = leg(faulty, breaker=breaker)
    checkpointer = home if stack == "bare" else in_tiers(home)
    faulty.partition()
    saves = [outcome(checkpointer.save(state(n), f"t{n % threads}")) for n in range(1000)]
    results = await asyncio.gather(*saves)
    assert {type(result) for result in results} <= {RetriesExhausted, BreakerOpen, Overloaded}
    assert now() <= 15.0
    assert len(faulty.calls) <= 1.09 * home.stats.calls + 10
    await a_moment()
    assert not others()
    guard = home.inner
    assert guard.running == 0  # type: ignore[attr-defined]
    faulty.heal()
    await asyncio.sleep(5)
    assert await checkpointer.save(state(1), "t0", "one") == "one"


@pytest.mark.parametrize("threads", [1000, 10])
@pytest.mark.parametrize("breaker", [BreakerPolicy(), None], ids=["breaker", "no breaker"])
@pytest.mark.parametrize("stack", ["bare", "tiers"])
@virtual
async def test_a_storm_on_a_hung_store_ends_within_the_deadline(threads, breaker, stack):
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far)
    home = leg(faulty, breaker=breaker)
    checkpointer = home if stack == "bare" else in_tiers(home)
    faulty.partition(FaultKind.HANG)
    saves = [outcome(checkpointer.save(state(n), f"t{n % threads}")) for n in range(1000)]
    results = await asyncio.gather(*saves)
    assert {type(result) for result in results} <= {RetriesExhausted, BreakerOpen, Overloaded, AttemptTimeout}
    if stack == "bare":
        # In tiers every thread's saves wait for each other, and each has its own deadline.
        assert now() <= 15.0
    assert len(faulty.calls) <= 1.09 * home.stats.calls + 10
    await a_moment()
    # Left are the calls that hang, one per place, and nobody who waits for one.
    guard = home.inner
    assert guard.running <= 16  # type: ignore[attr-defined]
    assert faulty.hung == guard.running  # type: ignore[attr-defined]
    faulty.heal()
    await a_moment(20)
    assert not others()
    # What hung was sent, and lands; what was turned away never does.
    assert sum(map(len, far.stored.values())) <= faulty.count("save") <= 16 + home.stats.retries


@virtual
async def test_a_storm_on_a_slow_store_is_served_as_far_as_it_can_be():
    far = ReferenceCheckpointer()
    faulty = FaultyCheckpointer(far, rates={FaultKind.SLOW: 1.0})  # 1 s each
    checkpointer = guarded(faulty)
    results = await asyncio.gather(*(outcome(checkpointer.save(state(n), f"t{n}")) for n in range(1000)))
    served = [result for result in results if isinstance(result, str)]
    assert len(served) == 80  # 16 at once and 64 in the queue, in 5 s
    assert sum(isinstance(result, Overloaded) for result in results) == 920
    assert now() == 5.0
    assert len(far.stored) == 80
