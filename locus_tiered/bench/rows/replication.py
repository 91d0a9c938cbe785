"""What three replicas cost: time of a save, time of anything while one hangs, requests in an outage, and a scrub.

The times are those of three real Valkey servers behind proxies that answer 5 ms late, as servers in another zone do:
on the machine itself the processor would be all that is measured, three times. The requests of an outage are counted
in virtual time, at replicas in memory that refuse everything, through retries and guards as in production.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.states import conversation, text_state
from locus_tiered.bench.timing import interleave, percentile, turns
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.ids import RESERVED
from locus_tiered.layers.guarded import GuardedCheckpointer
from locus_tiered.layers.replicated import ReplicatedCheckpointer
from locus_tiered.layers.retrying import RetryingCheckpointer
from locus_tiered.testing.proxy import FaultProxy
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.services import Valkey, valkey
from locus_tiered.testing.virtual_time import run_virtual, virtual_clock

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["Counted", "measure"]

_LATE = 0.005
_OUTAGE = 60.0
_PER_SECOND = 10
_NAMES = ("a", "b", "c")


def _leg(backend: BaseCheckpointer, clock: Clock = SYSTEM) -> RetryingCheckpointer:
    return RetryingCheckpointer(GuardedCheckpointer(backend, clock=clock), clock=clock)


async def measure(settings: Settings) -> list[Figure]:
    """All figures of replication."""
    logger = logging.getLogger("locus_tiered")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # a replica hangs, another is down: that is meant
    try:
        return await _measure(settings)
    finally:
        logger.setLevel(before)


async def _measure(settings: Settings) -> list[Figure]:
    async with _far_replicas() as (hanging, backends):
        alone = {name: _leg(backend) for name, backend in backends().items()}
        healthy = ReplicatedCheckpointer(*(_leg(each) for each in backends().values()), names=_NAMES)
        figures = [await _save(settings, alone, healthy)]
        calm, hung = (
            ReplicatedCheckpointer(*(_leg(each) for each in backends(may_hang).values()), names=_NAMES, read="hedged")
            for may_hang in (False, True)
        )
        figures += await _one_hangs(settings, calm, hung, hanging)
        for layer in (*alone.values(), healthy, calm, hung):
            await layer.close()
    figures.append(await asyncio.to_thread(run_virtual, lambda: _outage(settings)))
    figures.append(await _scrub(settings))
    return figures


Backends = Callable[..., dict[str, BaseCheckpointer]]


@contextlib.asynccontextmanager
async def _far_replicas() -> AsyncIterator[tuple[FaultProxy, Backends]]:
    """Three servers, a few milliseconds away, a maker of checkpointers for them with data of their own, and a second
    way to the first server, which may hang.
    """
    with contextlib.ExitStack() as exits:
        servers: dict[str, Valkey] = {name: exits.enter_context(valkey()) for name in _NAMES}
        proxies = {name: exits.enter_context(FaultProxy(server.port)) for name, server in servers.items()}
        hanging = exits.enter_context(FaultProxy(servers[_NAMES[0]].port))
        for proxy in (*proxies.values(), hanging):
            proxy.slow(_LATE)

        def backends(may_hang: bool = False) -> dict[str, BaseCheckpointer]:
            ways = proxies | ({_NAMES[0]: hanging} if may_hang else {})
            return {
                name: server.checkpointer(url=f"redis://127.0.0.1:{ways[name].port}/0")
                for name, server in servers.items()
            }

        yield hanging, backends


# -- a healthy save --------------------------------------------------------------------------------------------------


async def _save(
    settings: Settings, alone: dict[str, RetryingCheckpointer], replicated: ReplicatedCheckpointer
) -> Figure:
    state = conversation(24)
    numbers = iter(range(1_000_000))

    def saves(checkpointer: BaseCheckpointer) -> Callable[[], Awaitable[object]]:
        return lambda: checkpointer.save(state, f"thread-{next(numbers) % 20}")

    async def settled() -> None:
        await replicated.deliver()

    calls = {name: saves(leg) for name, leg in alone.items()} | {"all": saves(replicated)}
    rounds = await interleave(calls, rounds=settings.pick(21, 2), calls=settings.pick(10, 2), between=settled)
    second = [sorted(each)[1] for each in zip(*(rounds.seconds[name] for name in alone), strict=True)]
    pairs = list(zip(rounds.seconds["all"], second, strict=True))
    return Figure(
        what="save : 2nd fastest alone",
        unit="ms",
        against="the second fastest of the three replicas alone",
        sdk=median(second) * 1e3,
        stack=rounds.median("all") * 1e3,
        ratio=median(one / other for one, other in pairs),
        difference=median(one - other for one, other in pairs) * 1e3,
        budget=Budget("ratio", 1.3),
        details={"late": _LATE * 1e3},
    )


# -- one replica hangs -----------------------------------------------------------------------------------------------


async def _one_hangs(
    settings: Settings, calm: ReplicatedCheckpointer, other: ReplicatedCheckpointer, hanging: FaultProxy
) -> list[Figure]:
    """The slowest 1 % of saves and loads of two stacks side by side, one of which has a replica that says nothing.

    It is the replica that was asked first. The very slowest are in the details: on a busy machine they are its own.
    """
    state = conversation(24)
    threads = [f"thread-{number}" for number in range(20)]
    seconds: dict[tuple[str, str], list[float]] = {}

    async def batch(stack: str, name: str) -> None:
        checkpointer = calm if stack == "calm" else other
        for thread in threads:
            began = perf_counter()
            await (checkpointer.save(state, thread) if name == "save" else checkpointer.load(thread))
            seconds.setdefault((stack, name), []).append(perf_counter() - began)

    for _ in range(2):
        for stack in ("calm", "hung"):
            for name in ("save", "load"):
                await batch(stack, name)
    await calm.deliver()
    await other.deliver()
    first = other._replicas[0]
    for replica in other._replicas[1:]:
        replica.latency.overtaken(2 * first.latency.usual)
    delay = {"save": 0.0, "load": first.latency.p95("head")}
    seconds.clear()
    hanging.black_hole()
    for stack in turns(("hung", "calm"), settings.pick(20, 2)):
        for name in ("load", "save"):
            await batch(stack, name)
    hanging.slow(_LATE)
    return [_hung(name, seconds["calm", name], seconds["hung", name], delay[name]) for name in ("save", "load")]


def _hung(name: str, calm: list[float], hung: list[float], delay: float) -> Figure:
    usual, slow = percentile(calm, 0.99), percentile(hung, 0.99)
    return Figure(
        what=f"{name}, p99, one hangs : none",
        unit="ms",
        against="the same while all answer",
        sdk=usual * 1e3,
        stack=slow * 1e3,
        ratio=slow / usual,
        difference=(slow - usual) * 1e3,
        budget=Budget("difference", round(delay * 1e3, 1)),
        details={
            "calls": float(len(hung)),
            "slowest": max(hung) * 1e3,
            "calm_slowest": max(calm) * 1e3,
            "median": median(hung) * 1e3,
            "calm_median": median(calm) * 1e3,
        },
    )


# -- an outage -------------------------------------------------------------------------------------------------------


class Counted(ReferenceCheckpointer):
    """A replica in memory that counts what it is asked, and refuses everything while it is ``down``."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.reserved = 0
        self.down = False

    def _count(self, kind: str, thread_id: str) -> None:
        self.asked[kind] += 1
        self.reserved += thread_id.startswith(RESERVED)
        if self.down:
            raise ConnectionError("down")

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        self._count("save", thread_id)
        return await super().save(state, thread_id, checkpoint_id, metadata)

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        self._count("load", thread_id)
        return await super().load(thread_id, checkpoint_id)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        self._count("list", thread_id)
        return await super().list_checkpoints(thread_id, limit)

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        self._count("delete", thread_id)
        return await super().delete(thread_id, checkpoint_id)

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        self._count("exists", thread_id)
        return await super().exists(thread_id, checkpoint_id)


async def _outage(settings: Settings) -> Figure:
    """Calls that reach the replicas in a minute in which one refuses everything, against a minute in which none does.

    Each second some turns end: the newest is loaded, a state is saved.
    """
    stores = {name: Counted() for name in _NAMES}
    clock = virtual_clock()
    legs = [_leg(store, clock) for store in stores.values()]
    replicated = ReplicatedCheckpointer(*legs, names=_NAMES, read="hedged", clock=clock)
    seconds = settings.pick(int(_OUTAGE), 10)

    async def minute() -> int:
        before = sum(store.asked.total() for store in stores.values())
        for number in range(seconds * _PER_SECOND):
            thread = f"thread-{number % 50}"
            await replicated.load(thread)
            await replicated.save(text_state(1000, number), thread)
            await clock.sleep(1 / _PER_SECOND)
        return sum(store.asked.total() for store in stores.values()) - before

    await minute()
    calm = await minute()
    stores["a"].down = True
    broken = await minute()
    stores["a"].down = False
    await clock.sleep(120)
    sent = sum(store.asked.total() for store in stores.values())
    await replicated.close()
    return Figure(
        what=f"calls, {seconds} s outage : none",
        unit="requests",
        against="as long without an outage",
        sdk=calm,
        stack=broken,
        ratio=broken / calm,
        budget=Budget("ratio", 1.1),
        details={"operations": 2.0 * seconds * _PER_SECOND, "all": float(sent)},
    )


# -- a scrub ---------------------------------------------------------------------------------------------------------


async def _scrub(settings: Settings) -> Figure:
    """Calls per thread of a scrub that finds nothing: one list per replica, hence not a single state."""
    stores = [Counted() for _ in _NAMES]
    replicated = ReplicatedCheckpointer(*stores, names=_NAMES)
    threads, each = settings.pick(100, 10), settings.pick(100, 10)
    for number in range(threads * each):
        await replicated.save(text_state(200, number), f"thread-{number % threads}")
    await replicated.deliver()
    before = [(store.asked.total() - store.reserved, store.asked["load"]) for store in stores]
    began = perf_counter()
    report = await replicated.scrub()
    seconds = perf_counter() - began
    asked = sum(store.asked.total() - store.reserved for store in stores) - sum(calls for calls, _ in before)
    await replicated.close()
    if not (report.in_step and report.threads == threads and report.differed == report.copied == 0):
        raise RuntimeError(f"replicas that were in step were found to differ: {report}")
    return Figure(
        what=f"scrub of {threads * each:,}, per thread",
        unit="requests",
        stack=asked / threads,
        budget=Budget("value", len(stores)),
        details={"threads": float(threads), "checkpoints": float(threads * each), "seconds": seconds},
    )
