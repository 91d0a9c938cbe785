"""A store that goes away in the middle of a turn, and what becomes of the turn.

    python examples/resilient.py

Three conversations, each with a store of its own that can be cut off. In the first the agent has the store alone. In
the second there are a retry and a guard between them, and the outage is shorter than the retry's patience. In the third
it is longer: the call fails, the breaker opens, and whoever asks meanwhile is told so at once, before the model is
asked (and paid) for an answer that could not be kept.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter

from locus.agent import Agent
from locus.memory.checkpointer import BaseCheckpointer
from locus.testing import ScriptedModel, tool_call
from locus.tools import tool

from locus_tiered import (
    BoundedMemoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
)
from locus_tiered.core.errors import BackendError, BreakerOpen
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.retrying import RetryEvent
from locus_tiered.testing import FaultyCheckpointer

OUTAGE, OPEN_FOR = 0.3, 1.0  # seconds
TURNS = 20
THREAD = "ada"


async def turn(checkpointer: BaseCheckpointer, store: FaultyCheckpointer) -> str:
    """Ask for an order. The store goes away while the tool runs; what was saved before is safe, the rest is not."""

    @tool
    async def look_up(order: str) -> str:
        """Where an order is."""
        store.partition()
        asyncio.get_running_loop().call_later(OUTAGE, store.heal)
        return f"order {order} leaves the warehouse today"

    model = ScriptedModel([tool_call("look_up", order="4821"), "It leaves the warehouse today."])
    agent = Agent(model=model, tools=[look_up], checkpointer=checkpointer, context_window=8_000)
    return (await agent.arun("Where is my order 4821?", thread_id=THREAD)).message


async def greet(checkpointer: BaseCheckpointer, model: ScriptedModel | None = None) -> str:
    model = model or ScriptedModel(["Hello, Ada."])
    agent = Agent(model=model, checkpointer=checkpointer, context_window=8_000)
    return (await agent.arun("I am Ada.", thread_id=THREAD)).message


async def last_said(checkpointer: BaseCheckpointer) -> str:
    state = await checkpointer.load(THREAD)
    return "nothing" if state is None else repr(state.messages[-1].content)


async def alone() -> None:
    print("-- the store alone --")
    store = FaultyCheckpointer()
    await greet(store)
    try:
        await turn(store, store)
    except ConnectionError as error:
        print(f"  the turn is lost: {type(error).__name__}")
    await asyncio.sleep(OUTAGE)
    print(f"  the last that the thread knows: {await last_said(store)}")


async def patient() -> None:
    print(f"-- with retry and guard, an outage of {OUTAGE:g} s --")
    store = FaultyCheckpointer()
    # A breaker that opened after fewer failures than there are attempts would end the retries.
    guard = GuardedCheckpointer(store, timeout={"save": 2.0, "load": 1.0}, breaker=BreakerPolicy(in_a_row=10))
    began = perf_counter()

    def tell(event: RetryEvent) -> None:
        assert guard.breaker is not None
        print(
            f"  {perf_counter() - began:.2f} s: {event.operation} failed ({type(event.error.__cause__).__name__}, "
            f"{event.kind}), attempt {event.attempt} of {event.attempts}; the breaker is {guard.breaker.state}"
        )

    home = RetryingCheckpointer(guard, attempts=8, on_retry=tell)
    async with TieredCheckpointer(BoundedMemoryCheckpointer(), Tier(home, name="home")) as stack:
        await greet(stack)
        began = perf_counter()
        print(f"  {await turn(stack, store)!r}, after {perf_counter() - began:.2f} s")
        print(f"  the last that the thread knows: {await last_said(store)}")
        print(f"  calls that failed and succeeded in the end: {home.stats.recovered}")


async def impatient() -> None:
    print("-- the same, and the store stays away --")
    store = FaultyCheckpointer()
    guard = GuardedCheckpointer(store, breaker=BreakerPolicy(in_a_row=3, open_for=OPEN_FOR))
    assert guard.breaker is not None
    home = RetryingCheckpointer(guard)
    model = ScriptedModel(["Welcome back."])
    async with TieredCheckpointer(BoundedMemoryCheckpointer(), Tier(home, name="home")) as stack:
        await greet(stack)
        store.partition()
        try:
            await greet(stack, model)
        except BackendError as error:
            print(f"  {type(error).__name__} after {home.attempts} attempts; the breaker is {guard.breaker.state}")
        asked, began = len(store.calls), perf_counter()
        for _ in range(TURNS):
            try:
                await greet(stack, model)
            except BreakerOpen:
                pass
        each = 1000 * (perf_counter() - began) / TURNS
        reached = f"{len(store.calls) - asked} calls reached the store, {len(model.received_messages)} the model"
        print(f"  {TURNS} more turns, refused in {each:.1f} ms each: {reached}")
        store.heal()
        await asyncio.sleep(OPEN_FOR)
        print(f"  the store is back; the breaker is {guard.breaker.state}, the next call is the probe")
        print(f"  {await greet(stack, model)!r}; the breaker is {guard.breaker.state}")


async def main() -> None:
    await alone()
    await patient()
    await impatient()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(main())
