"""Loops come and go, and so does ``close`` (law 10): ``Agent.run_sync`` opens a loop per call and closes after each."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks.base import Subject, check, expect, gather_all
from locus_tiered.testing.checks.basics import ALL, save_some
from locus_tiered.testing.checks.interrupts import in_another_loop
from locus_tiered.testing.checks.order import expect_newest
from locus_tiered.testing.checks.states import plain_state


@check(law=10)
async def check_close_before_use(subject: Subject) -> None:
    """close may be called before anything else, and the checkpointer works after it."""
    cp, state = await subject.make(), plain_state("first")
    await cp.close()
    await cp.save(state, "t", "c")
    subject.expect_state(await cp.load("t"), state, "load after close, save")


@check(law=10)
async def check_close_and_use_again(subject: Subject) -> None:
    """close may be called twice; after it the checkpointer works again and has everything."""
    cp = await subject.make()
    saved = await save_some(cp, 3)
    await cp.close()
    await cp.close()
    for name, state in saved.items():
        subject.expect_state(await cp.load("t", name), state, f"load('t', {name!r}) after close")
    await cp.save(plain_state("after"), "t", "after")
    await expect_newest(cp, "t", "after", "after", "after close and one more save")
    expect(len(await cp.list_checkpoints("t")) == 4, "after close, checkpoints are missing")
    await cp.close()


async def _busy(cp: BaseCheckpointer, prefix: str, rounds: int) -> None:
    """``rounds`` saves, loads and lists of one thread, all at the same time."""

    async def save(number: int) -> None:
        name = f"{prefix}{number}"
        expect(await cp.save(plain_state(name), "t", name) == name, f"save under {name!r} returned another id")

    async def load() -> None:
        expect(await cp.load("t") is not None, "load('t') is None though the thread has checkpoints")

    async def names() -> None:
        expect(await cp.list_checkpoints("t", ALL), "list_checkpoints('t') is empty though it has checkpoints")

    await gather_all(*(call for number in range(rounds) for call in (save(number), load(), names())))


async def _in_three_loops(cp: BaseCheckpointer, *, close: bool) -> None:
    """One save in a first loop, ten rounds at the same time in a second, ten more in a third.

    The many calls are the first of their loop: each time whatever belongs to a loop is made by one of them while
    the others wait. What belongs to the store itself was made in the first loop, one call at a time.
    """

    async def first() -> None:
        await cp.save(plain_state("before"), "t", "before")

    async def second() -> None:
        await _busy(cp, "b", 10)

    async def third() -> None:
        await _busy(cp, "a", 10)
        wanted = {f"{prefix}{number}" for prefix in "ab" for number in range(10)}
        lost = sorted(wanted - set(await cp.list_checkpoints("t", ALL)))
        expect(not lost, f"{len(lost)} of {len(wanted)} acknowledged saves are not listed: {lost[:5]}")
        await cp.save(plain_state("after"), "t", "after")
        got = await cp.load("t")
        expect(got is not None and got.run_id == "after", "in a third event loop, a save is not the newest")

    for number, work in enumerate((first, second, third)):

        async def live(work: Callable[[], Coroutine[Any, Any, None]] = work, last: bool = number == 2) -> None:
            try:
                await work()
            finally:
                if close or last:
                    await cp.close()

        try:
            await in_another_loop(live)
        except AssertionError as error:
            raise AssertionError(f"in event loop {number + 1} of 3: {error}") from error


@check(law=10)
async def check_second_loop_after_close(subject: Subject) -> None:
    """Used and closed in one event loop, it works in the next, with many calls at the same time."""
    await _in_three_loops(await subject.make(), close=True)


@check(law=10)
async def check_second_loop_without_close(subject: Subject) -> None:
    """Used in one event loop that ended without close, it works in the next, with many calls at the same time."""
    cp = await subject.make()
    with warnings.catch_warnings():
        # Connections of a loop that ended cannot be closed any more; Python may say so when they are collected.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            await _in_three_loops(cp, close=False)
        finally:
            gc.collect()
