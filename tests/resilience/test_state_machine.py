"""Laws 1 to 9 in bad weather: the state machine over retry and guard over a store that goes wrong all the time.

``weather.py`` says which outcomes are legal. Time is virtual: calls time out, breakers open and close, and lanes stay
closed as long as they would, at once. ``LOCUS_TIERED_EXAMPLES`` raises the number of programs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from locus.core.state import AgentState

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    TieredCheckpointer,
)
from locus_tiered.core.lanes import Lanes
from locus_tiered.core.operations import Save
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.budget import RetryBudget
from locus_tiered.testing.faults import ReferenceCheckpointer, on
from locus_tiered.testing.machine import Pair, checkpointer_machine, run_machine
from locus_tiered.testing.machine_rules import handles, ids, threads
from locus_tiered.testing.strategies import quick_states
from locus_tiered.testing.virtual_time import VirtualTimeLoop, virtual_clock
from tests.resilience.weather import Declined, Patient, Stormy, everything_ended

EXAMPLES = int(os.environ.get("LOCUS_TIERED_EXAMPLES", "4"))  # with each of three seeds
FOREVER = 1e9


@pytest.fixture(autouse=True)
def virtual_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine opens loops of its own: let them be virtual, and each begin when the one before has ended."""
    loops: list[VirtualTimeLoop] = []

    def runner() -> asyncio.Runner:
        return real(loop_factory=loop)

    def loop() -> VirtualTimeLoop:
        loops[:] = [VirtualTimeLoop(start=loops[0].time() if loops else 0.0)]
        return loops[0]

    real = asyncio.Runner
    monkeypatch.setattr(asyncio, "Runner", runner)


def leg(stormy: Stormy, seed: int) -> RetryingCheckpointer:
    """Retry around guard, hasty enough for slow calls to be given up, and more or less patient."""
    clock = virtual_clock(seed=seed)
    policy = BreakerPolicy(in_a_row=4, minimum=8, window=10, open_for=2, longest=10)
    guard = GuardedCheckpointer(stormy, timeout=0.7, breaker=policy, clock=clock)
    budget = RetryBudget() if seed % 2 else RetryBudget(ratio=0.5, burst=100)
    return RetryingCheckpointer(guard, attempts=2 + seed % 3, deadline=6, budget=budget, clock=clock)


def bare(seed: int) -> Pair:
    """No stamps here: only what hangs may be late, and the guard's lanes keep the order."""
    stormy = Stormy(ReferenceCheckpointer(), seed, answers=("hang",))
    return Pair(Patient(leg(stormy, seed), stormy), cleanup=lambda: everything_ended(stormy))


def cached(seed: int) -> Pair:
    stormy = Stormy(ReferenceCheckpointer(), seed)
    stack = CachedCheckpointer(leg(stormy, seed), clock=virtual_clock(seed=seed))
    return Pair(Patient(stack, stormy), cleanup=lambda: everything_ended(stormy))


def exclusive(seed: int) -> Pair:
    stormy = Stormy(ReferenceCheckpointer(), seed)
    near = BoundedMemoryCheckpointer("24KiB")
    stack = CachedCheckpointer(leg(stormy, seed), near=near, latest="exclusive", clock=virtual_clock(seed=seed))
    return Pair(Patient(stack, stormy), cleanup=lambda: everything_ended(stormy))


def three_tiers(far: ReferenceCheckpointer, seed: int) -> tuple[Patient, Stormy]:
    stormy = Stormy(far, seed)
    near = (BoundedMemoryCheckpointer("24KiB"), ReferenceCheckpointer())
    return Patient(TieredCheckpointer(*near, leg(stormy, seed), clock=virtual_clock(seed=seed)), stormy), stormy


def tiered(seed: int) -> Pair:
    patient, stormy = three_tiers(ReferenceCheckpointer(), seed)
    return Pair(patient, cleanup=lambda: everything_ended(stormy))


def two_processes(seed: int) -> Pair:
    far = ReferenceCheckpointer()
    (first, one), (second, two) = three_tiers(far, seed), three_tiers(far.twin(), seed + 100)
    return Pair(first, second, cleanup=lambda: everything_ended(one, two))


SUBJECTS: dict[str, tuple[Callable[[int], Pair], set[str]]] = {
    "bare": (bare, set()),
    "cached": (cached, set()),
    "exclusive": (exclusive, set()),
    "tiered": (tiered, set()),
    "two processes": (two_processes, {"ids elsewhere", "blind saves"}),
}


def machine(subject: str, seed: int) -> Any:
    factory, forgives = SUBJECTS[subject]
    plain: Any = checkpointer_machine(
        lambda: factory(seed),
        name=f"{subject.title().replace(' ', '')}InBadWeather",
        refusals=(Declined,),
        forgives={"delete answers", *forgives},
        time_limit=FOREVER,
    )

    class Impatient(plain):  # type: ignore[misc]
        """Also callers who go away in the middle of a change."""

        @rule(handle=handles, thread=threads, name=st.none() | ids, state=quick_states(), steps=st.integers(0, 30))
        def save_and_leave(self, handle: int, thread: str, name: str | None, state: AgentState, steps: int) -> None:
            async def step(patient: Patient) -> None:
                await self.look_first(patient, thread)
                self._saves += 1
                marked = state.model_copy(update={"total_tokens_used": self._saves})
                if await left(patient.stack.save(marked, thread, name), steps) is not None:
                    saved = await patient.what_became_of(thread, self._saves)
                else:
                    saved = patient.stormy.find(thread, self._saves)
                    assert saved is not None, "a save was acknowledged that is not there"
                if saved is not None:
                    self.model.save(thread, saved, marked, None)
                    self.touched(patient, thread, [saved])

            self.run(step(self.handle(handle)))

        @rule(handle=handles, thread=threads, name=st.none() | ids, steps=st.integers(0, 30))
        def delete_and_leave(self, handle: int, thread: str, name: str | None, steps: int) -> None:
            async def step(patient: Patient) -> None:
                await left(patient.stack.delete(thread, name), steps)
                await self._delete(patient, thread, name)  # once more, to the end

            self.run(step(self.handle(handle)))

    Impatient.__qualname__ = Impatient.__name__ = plain.__name__
    return Impatient


async def left(call: Any, steps: int) -> BaseException | None:
    """Make a call, go away after so many steps of the loop; what became of the caller."""
    task = asyncio.ensure_future(call)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    (result,) = await asyncio.gather(task, return_exceptions=True)
    return result if isinstance(result, BaseException) else None


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_laws_hold_in_bad_weather(subject: str):
    Patient.seen.clear()
    for seed in (1, 2, 3):
        run_machine(machine(subject, seed), max_examples=EXAMPLES)
    # It was bad enough.
    for what in ("took effect all the same", "failed: RetriesExhausted"):
        assert Patient.seen[what], f"never: {what}"


# -- the machine is sharp ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["bare", "tiered"])
def test_a_lane_that_does_not_wait_for_what_was_abandoned_is_found_out(subject: str, monkeypatch: pytest.MonkeyPatch):
    def forget(lanes: Any, key: Any, lane: Any, task: Any) -> None:
        lane.busy = False
        lane.wake()

    monkeypatch.setattr(Lanes, "_abandon", staticmethod(forget))
    with pytest.raises(AssertionError):
        for seed in range(1, 6):
            run_machine(machine(subject, seed), max_examples=50, shrink=False)


def test_a_retry_that_makes_up_a_new_id_is_found_out(monkeypatch: pytest.MonkeyPatch):
    real = RetryingCheckpointer._attempt

    def attempt(self: Any, operation: Any, number: int) -> Any:
        if isinstance(operation, Save) and number > 1:
            operation = replace(operation, checkpoint_id=f"{operation.checkpoint_id}-{number}")
        return real(self, operation, number)

    monkeypatch.setattr(RetryingCheckpointer, "_attempt", attempt)
    with pytest.raises(AssertionError):
        for seed in range(1, 6):
            run_machine(machine("bare", seed), max_examples=50, shrink=False)


@pytest.mark.parametrize("kind", ["fail_before", "fail_after"])
def test_the_patient_caller_finds_out_what_became_of_his_save(kind: str):
    async def ask() -> None:
        stormy = Stormy(ReferenceCheckpointer(), seed=0)
        stormy.clear()  # nothing is left to chance
        await stormy.far.save(AgentState(), "t", "before")
        stormy.inject(getattr(on("save", times=None), kind)())
        patient = Patient(leg(stormy, seed=1), stormy)
        marked = AgentState(total_tokens_used=77)
        if kind == "fail_before":
            with pytest.raises(Declined):
                await patient.save(marked, "t")
            assert list(stormy.far.stored["t"]) == ["before"]
        else:
            saved = await patient.save(marked, "t")
            assert list(stormy.far.stored["t"]) == ["before", saved]

    with asyncio.Runner() as runner:
        runner.run(ask())
