"""Virtual time: exact, immediate, patient with threads and sockets, and loud when nothing can happen any more."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.stamp import StampClock
from locus_tiered.testing.services import Valkey
from locus_tiered.testing.virtual_time import EPOCH, DeadlockError, VirtualTimeLoop, run_virtual, virtual_clock

A_WHILE = 0.05  # real seconds, long enough for a loop that does not wait to be caught


def now() -> float:
    return asyncio.get_running_loop().time()


def the_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


def slowly(value: str = "done") -> str:
    """What a thread does that takes real time."""
    threading.Event().wait(A_WHILE)
    return value


# Timers


def test_waiting_is_exact_and_costs_nothing() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        await asyncio.sleep(30 * 86_400)  # more than a loop of the standard library waits at once
        return now()

    before = time.monotonic()
    assert run_virtual(main) == 3600 + 30 * 86_400
    assert time.monotonic() - before < 30


def test_the_clock_stands_still_while_code_runs() -> None:
    async def main() -> set[float]:
        seen = {now()}
        slowly()
        for _ in range(100):
            await asyncio.sleep(0)
            seen.add(now())
        return seen

    assert run_virtual(main, start=5.0) == {5.0}


@given(
    st.floats(0, 1e12),
    st.lists(st.floats(0, 1e6) | st.sampled_from([0.0, 1e-12, 1.0, 1.0]), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_timers_go_off_in_order_each_at_its_own_moment(start: float, delays: list[float]) -> None:
    async def main() -> list[tuple[float, int]]:
        loop, over = asyncio.get_running_loop(), []
        for number, delay in enumerate(delays):
            loop.call_at(start + delay, lambda number=number: over.append((now(), number)))
        await asyncio.sleep(2e6)
        return over

    # Those of one moment may go off in any order, as they may in any loop.
    assert sorted(run_virtual(main, start=start)) == sorted((start + delay, n) for n, delay in enumerate(delays))
    moments = [moment for moment, _ in run_virtual(main, start=start)]
    assert moments == sorted(moments)


def test_a_late_start_does_not_blur_small_steps() -> None:
    async def main() -> float:
        for _ in range(1000):
            await asyncio.sleep(1e-12)  # lost in the rounding, as floats go; but it ends
        await asyncio.sleep(0.5)
        return now()

    assert run_virtual(main, start=1.8e9) == 1.8e9 + 0.5


@pytest.mark.parametrize("hang", [3600.0, math.inf])
def test_timeouts_fire_at_their_moment(hang: float) -> None:
    async def hangs() -> None:
        await (asyncio.sleep(hang) if hang < math.inf else asyncio.Event().wait())

    async def main() -> tuple[float, float, float]:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await hangs()
        first = now()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hangs(), 0.25)
        second = now()
        async with asyncio.timeout(60):
            await asyncio.sleep(59.999)
        return first, second, now()

    assert run_virtual(main) == (60.0, 60.25, 60.25 + 59.999)


def test_a_thousand_callers_meet_at_their_moments() -> None:
    async def caller(number: int) -> float:
        await asyncio.sleep(number % 10)
        async with asyncio.timeout(15):
            await asyncio.sleep(number / 1000)
        return now()

    async def main() -> list[float]:
        return await asyncio.gather(*map(caller, range(1000)))

    assert run_virtual(main) == [n % 10 + n / 1000 for n in range(1000)]


# Running


def test_it_runs_like_asyncio_run() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    cleaned: list[str] = []
    kept: list[AsyncIterator[int]] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(1)
            cleaned.append("generator")

    async def background() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            await asyncio.sleep(1)
            cleaned.append("task")

    async def main() -> str:
        task = asyncio.create_task(background())
        kept.append(numbers())
        await anext(kept[-1])
        assert not task.done()
        return variable.get()

    variable.set("set")
    assert run_virtual(main) == "set"
    assert run_virtual(main()) == "set"
    assert sorted(cleaned) == ["generator", "generator", "task", "task"]


def test_errors_and_cancellation_come_out() -> None:
    async def fails() -> None:
        await asyncio.sleep(1)
        raise KeyError("mine")

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(KeyError, match="mine"):
        run_virtual(fails)
    with pytest.raises(asyncio.CancelledError):
        run_virtual(cancelled)


async def test_it_refuses_to_run_within_a_loop_and_leaves_no_coroutine_behind() -> None:
    async def main() -> None: ...

    for given_as in (main, main()):
        with pytest.raises(RuntimeError, match="running event loop"):
            run_virtual(given_as)
    gc.collect()


def test_nothing_stays_behind() -> None:
    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        await asyncio.to_thread(slowly)
        return weakref.ref(asyncio.get_running_loop())

    threads = threading.active_count()
    gc.disable()
    try:
        assert run_virtual(main)() is None
    finally:
        gc.enable()
    assert threading.active_count() == threads


def test_two_runs_are_one_story() -> None:
    async def story() -> list[tuple[str, float]]:
        told: list[tuple[str, float]] = []
        clock, queue = virtual_clock(seed=7), asyncio.Queue[str]()

        async def teller(name: str) -> None:
            for _ in range(20):
                await clock.sleep(clock.random_bits(4) / 4)
                if clock.random_bits(1):
                    told.append((name.upper(), now()))
                await queue.put(name)

        async def listener() -> None:
            while True:
                told.append((await queue.get(), now()))

        listening = asyncio.create_task(listener())
        await asyncio.gather(*(teller(name) for name in "abc"))
        listening.cancel()
        return told

    first = run_virtual(story)
    assert len(first) > 60
    assert [run_virtual(story) for _ in range(5)] == [first] * 5


# Threads


def test_work_on_threads_takes_no_time() -> None:
    async def main() -> tuple[list[str], float]:
        ticking = asyncio.create_task(asyncio.sleep(0.001))
        async with asyncio.timeout(0.001):
            found = await asyncio.gather(*(asyncio.to_thread(slowly, str(number)) for number in range(3)))
        assert not ticking.done()
        await ticking
        return found, now()

    assert run_virtual(main) == (["0", "1", "2"], 0.001)


def test_callbacks_run_while_a_thread_works() -> None:
    async def main() -> list[int]:
        loop, seen = asyncio.get_running_loop(), []

        def work() -> None:
            for number in range(3):
                loop.call_soon_threadsafe(seen.append, number)
                slowly()

        await loop.run_in_executor(None, work)
        return seen

    assert run_virtual(main) == [0, 1, 2]


@pytest.mark.parametrize("own", [False, True])
def test_a_cancelled_call_is_waited_for_as_long_as_its_thread_works(own: bool) -> None:
    ended: list[float] = []

    async def main(executor: ThreadPoolExecutor | None) -> float:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            loop.call_soon_threadsafe(begun.set)
            ended.append(float(len(slowly())))

        call = loop.run_in_executor(executor, work)
        await begun.wait()
        call.cancel()
        await asyncio.sleep(10)
        assert ended
        return now()

    with ThreadPoolExecutor(1) as executor:
        assert run_virtual(main(executor if own else None)) == 10.0


def test_a_call_that_fails_or_never_begins_is_over() -> None:
    async def main(executor: ThreadPoolExecutor) -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, lambda: 1 // 0)
        first, second = (loop.run_in_executor(executor, slowly) for _ in range(2))
        second.cancel()  # the one thread is busy with the first
        assert await first == "done"
        await asyncio.sleep(5)
        executor.shutdown()
        with pytest.raises(RuntimeError):
            await loop.run_in_executor(executor, slowly)
        await asyncio.sleep(5)
        return now()

    with ThreadPoolExecutor(1) as executor:
        assert run_virtual(main(executor)) == 10.0


def test_a_thread_may_outlive_the_loop() -> None:
    release = threading.Event()

    async def main(executor: ThreadPoolExecutor) -> None:
        asyncio.get_running_loop().run_in_executor(executor, release.wait).cancel()

    with ThreadPoolExecutor(1) as executor:
        run_virtual(main(executor))
        release.set()


def test_a_thread_of_ones_own_is_waited_for_where_that_is_asked() -> None:
    async def main(held: bool) -> str:
        loop, answer = the_loop(), asyncio.get_running_loop().create_future()

        def work() -> None:
            loop.call_soon_threadsafe(answer.set_result, slowly("answered"))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            async with asyncio.timeout(60):
                if not held:
                    return str(await asyncio.shield(answer))
                with loop.hold(), loop.hold():
                    return str(await answer)
        except TimeoutError:
            with loop.hold():
                await answer
            return "timed out"
        finally:
            thread.join()

    assert run_virtual(main(True)) == "answered"
    assert run_virtual(main(False)) == "timed out"


def test_without_a_timer_a_strange_thread_may_take_as_long_as_grace() -> None:
    async def main() -> str:
        loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(answer.set_result, slowly("answered")))
        thread.start()
        try:
            return str(await answer)
        finally:
            thread.join()

    assert run_virtual(main, grace=30.0) == "answered"


# Sockets


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        await asyncio.sleep(1)
        writer.write(await asyncio.to_thread(lambda: slowly("") + line.decode().upper()) and line.upper())
    writer.close()


def test_sockets_within_the_loop_and_virtual_time_go_together() -> None:
    async def main() -> tuple[bytes, float]:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async with asyncio.timeout(1.5):
            writer.write(b"hello\n")
            answer = await reader.readline()
        await asyncio.sleep(3600)  # an idle connection does not stop the clock
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return answer, now()

    assert run_virtual(main, grace=0.3) == (b"HELLO\n", 3601.0)


def test_a_real_server_gets_its_time_to_answer(valkey_server: Valkey) -> None:
    from redis.asyncio import Redis

    async def main() -> tuple[Any, float]:
        async with Redis(port=valkey_server.port, socket_timeout=1) as client:
            await client.set("virtual", "time")
            await asyncio.sleep(600)
            async with asyncio.timeout(0.001):
                found = await client.get("virtual")
        return found, now()

    assert run_virtual(main, grace=2.0) == (b"time", 600.0)


# Deadlock


async def waits_for_ever() -> None:
    await asyncio.Event().wait()


def locked() -> Any:
    async def main() -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        await lock.acquire()

    return main()


def endless_timer() -> Any:
    async def main() -> None:
        asyncio.get_running_loop().call_later(math.inf, print)
        await waits_for_ever()

    return main()


def after_a_thread() -> Any:
    async def main() -> None:
        await asyncio.to_thread(slowly)
        await waits_for_ever()

    return main()


def after_a_cancelled_timer() -> Any:
    async def main() -> None:
        asyncio.get_running_loop().call_later(1, print).cancel()
        await waits_for_ever()

    return main()


@pytest.mark.parametrize("made", [waits_for_ever, locked, endless_timer, after_a_thread, after_a_cancelled_timer])
def test_a_deadlock_is_said_instead_of_waited_out(made: Callable[[], Any]) -> None:
    with pytest.raises(DeadlockError, match="nothing is ready, no timer is set") as caught:
        run_virtual(made(), grace=0.01)
    assert isinstance(caught.value, LocusTieredError)


def test_a_deadlock_says_who_waits_where_and_lets_them_clean_up() -> None:
    cleaned = []

    async def inner() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(1)
            cleaned.append(now())

    async def main() -> None:
        await asyncio.sleep(3)
        second = asyncio.create_task(inner(), name="the second")
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait([second]))

    with pytest.raises(DeadlockError) as caught:
        run_virtual(main, grace=0.01)
    message = str(caught.value)
    assert message.startswith("deadlock: at virtual time 3 s")
    assert "  the second: Event" not in message
    assert f"inner ({__file__}:" in message.partition("  the second: ")[2]
    assert "TaskGroup.__aexit__" in message
    assert cleaned == [4.0]


def test_a_loop_goes_on_after_a_deadlock() -> None:
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(grace=0.01)) as runner:
        with pytest.raises(DeadlockError):
            runner.run(waits_for_ever())
        runner.run(asyncio.sleep(2))
        assert runner.get_loop().time() == 2.0


# The clock for layers


def test_the_clock_is_the_running_loops() -> None:
    async def main(clock: Clock) -> None:
        assert (clock.monotonic(), clock.wall()) == (10.0, EPOCH + 10.0)
        await clock.sleep(90)
        assert (clock.monotonic(), clock.wall()) == (100.0, EPOCH + 100.0)
        assert await asyncio.to_thread(clock.monotonic) == 100.0

    clock = virtual_clock()
    with pytest.raises(RuntimeError, match="before its first running event loop"):
        clock.wall()
    for _ in range(2):
        run_virtual(main(clock), start=10.0)
        assert clock.wall() == EPOCH + 100.0  # also afterwards


def test_a_clock_made_in_a_loop_is_known_on_its_threads_at_once() -> None:
    async def main() -> float:
        return await asyncio.to_thread(virtual_clock(epoch=1000.0).wall)

    assert run_virtual(main, start=5.0) == 1005.0


def test_its_randomness_is_seeded() -> None:
    def bits(seed: int) -> list[int]:
        clock = virtual_clock(seed=seed)
        return [clock.random_bits(size) for size in (0, 1, 8, 64, 200)]

    assert bits(1) == bits(1) != bits(2)
    assert all(found < 1 << size for found, size in zip(bits(3), (0, 1, 8, 64, 200), strict=True))


def test_stamps_of_a_virtual_clock_are_repeatable() -> None:
    async def main() -> list[str]:
        stamps, found = StampClock(virtual_clock(seed=3)), []
        for _ in range(5):
            found.append(stamps.issue("thread"))
            await asyncio.sleep(0.5)
        return found

    first = run_virtual(main)
    assert first == sorted(first) == run_virtual(main)
