"""One process of the proof: agents that save, read and delete through three real replicas, on command.

``python -m tests.replication_real.worker '{...}'`` takes an order per line from its input (``load``, ``slow``,
``fast``, ``stop``, ``deliver``, ``scrub``, ``scrubbed``, ``end``) and answers each with a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from random import Random
from typing import Any
from uuid import UUID

import boto3
from botocore.config import Config
from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.backends.adapters import redis_checkpointer
from locus.memory.backends.pg_checkpointer import PgCheckpointer
from locus.memory.backends.s3 import S3Backend
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import GuardedCheckpointer, ReplicatedCheckpointer, RetryingCheckpointer
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.signals import Signal, listen
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.testing.history import RecordingCheckpointer

SAVES_PER_TURN = 4
MOST_TURNS = 8
"""Turns under way at once; at more than that the load waits, as a server's queue would."""
MOST_MISSED = 5.0
"""Seconds of waiting that the load makes up for afterwards."""
THREADS, SHARED = 10, 2
TIMEOUT, DEADLINE = 1.5, 3.0


def shared_threads() -> list[str]:
    """Threads that both processes save to."""
    return [f"shared-{number}" for number in range(SHARED)]


def leg(backend: BaseCheckpointer) -> RetryingCheckpointer:
    policy = BreakerPolicy(in_a_row=5, open_for=0.5, longest=1.0)
    guard = GuardedCheckpointer(backend, timeout=TIMEOUT, breaker=policy, max_concurrency=32)
    return RetryingCheckpointer(guard, attempts=2, deadline=DEADLINE, base=0.02, throttled_base=0.05)


def backends(options: dict[str, Any]) -> dict[str, BaseCheckpointer]:
    """The replicas by name, as the options of the rig say."""
    s3 = dict(options["s3"])
    config = Config(connect_timeout=1, read_timeout=1, retries={"total_max_attempts": 1}, proxies={})
    client = boto3.session.Session().client("s3", config=config, **s3["client"])
    return {
        "s3": S3Backend(bucket=s3["bucket"], _client=client, **s3["client"]),
        "pg": PgCheckpointer(**options["pg"]),
        "valkey": redis_checkpointer(**options["valkey"]),
    }


class Agents:
    """Many agents of one process: turns on its own threads, looks at everybody's, now and then a delete."""

    def __init__(
        self, checkpointer: BaseCheckpointer, name: str, process: str, seed: int, rate: float, since: float | None
    ) -> None:
        self.checkpointer, self.process, self.rate = checkpointer, process, rate
        self.since = since
        """The load makes up for what was missed since then, at most ``MOST_MISSED``."""
        self.random = Random(f"{process}/{seed}")
        self.own = [f"{name}-{number}" for number in range(THREADS)]
        self.others = [f"{other}-{number}" for other in "ab" if other != name for number in range(THREADS)]
        self.busy: set[str] = set()
        self.known: dict[str, list[str]] = {}
        self.marks = 0
        self.saves = 0
        self.raised: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}

    def state(self, iterations: list[str]) -> AgentState:
        self.marks += 1
        text = f"this is {self.process}/{self.marks} {'and what came of it ' * 40}"
        metadata = {ITERATION_KEY: list(iterations)} if iterations else {}
        return AgentState(
            agent_id=self.process, messages=(Message.user(text),), metadata=metadata, total_tokens_used=self.marks
        )

    async def call(self, name: str, work: Awaitable[Any]) -> Any:
        began = time.monotonic()
        try:
            return await work
        except LocusTieredError as error:
            self.raised[type(error).__name__] += 1
            return None
        finally:
            self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - began)

    async def save(self, thread: str, name: str | None, iterations: list[str]) -> str | None:
        self.saves += 1
        saved: str | None = await self.call(
            "save", self.checkpointer.save(self.state(iterations), thread, checkpoint_id=name)
        )
        if saved is not None and not iterations:
            self.known.setdefault(thread, []).append(saved)
        return saved

    async def load(self, thread: str, name: str | None = None) -> None:
        await self.call("load", self.checkpointer.load(thread, name))

    async def delete(self, thread: str, name: str | None = None) -> None:
        await self.call("delete", self.checkpointer.delete(thread, name))

    async def turn(self, thread: str) -> None:
        """As an agent's: load, save an iteration and the end, delete the iteration; then some short turns."""
        await self.load(thread)
        name = str(UUID(int=self.random.getrandbits(128), version=4))
        await self.save(thread, name, [name])
        await self.save(thread, None, [])
        await self.delete(thread, name)
        for _ in range(SAVES_PER_TURN - 2):
            await self.save(thread, None, [])
        await self.aside(thread)

    async def aside(self, thread: str) -> None:
        """What people do beside the agents."""
        dice, known = self.random.random(), self.known.get(thread, [])
        if dice < 0.15:
            await self.load(self.random.choice(self.others))
        elif dice < 0.25:
            await self.call("list", self.checkpointer.list_checkpoints(thread, self.random.choice((10, 1000))))
        elif dice < 0.35 and known:
            await self.load(thread, self.random.choice(known))
        elif dice < 0.40 and known:
            await self.call("exists", self.checkpointer.exists(thread, self.random.choice(known)))
        elif dice < 0.48 and known:
            await self.delete(thread, known.pop(self.random.randrange(len(known))))
        elif dice < 0.58:
            await self.delete(thread)
            known.clear()
            await self.load(thread)
        elif dice < 0.64:
            await self.save(thread, "draft", [])
            await self.load(thread, "draft")

    async def meeting(self, thread: str) -> None:
        """A save to a thread that the other process saves to as well."""
        await self.save(thread, None, [])
        await self.load(thread)

    async def run(self, stop: asyncio.Event) -> None:
        """Turns, begun at such a pace that ``rate`` saves a second come of them; see ``MOST_MISSED``."""
        tasks: set[asyncio.Task[None]] = set()
        now = time.monotonic()
        due = now if self.since is None else max(self.since, now - MOST_MISSED)
        while not stop.is_set():
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            if len(tasks) >= MOST_TURNS:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                due = max(due, time.monotonic() - MOST_MISSED)
                continue
            if self.random.random() < 0.1:
                work, saves = self.meeting(self.random.choice(shared_threads())), 1
            else:
                free = [thread for thread in self.own if thread not in self.busy]
                if not free:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    continue
                work, saves = self.alone(self.random.choice(free)), SAVES_PER_TURN
            due += saves / self.rate
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    async def alone(self, thread: str) -> None:
        self.busy.add(thread)
        try:
            await self.turn(thread)
        finally:
            self.busy.discard(thread)


class Worker:
    """Does what it is told; see the module."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.replicated = ReplicatedCheckpointer(
            *(leg(backend) for backend in backends(options["replicas"]).values()),
            names=list(options["replicas"]),
            read=options["read"],
            journal=options["journal"],
        )
        self.checkpointer = RecordingCheckpointer(
            self.replicated,
            options["history"],
            process=options["process"],
            # Not strict, although "a" reads by quorum: when both processes write to a thread (and each mends what the
            # other saved), the SDK's key-value adapter forgets what it has acknowledged, until the next comparison.
            strict=False,
        )
        self.agents = Agents(
            self.checkpointer,
            options["agents"],
            options["process"],
            options["seed"],
            options["rate"],
            options["since"],
        )
        self.signals: Counter[str] = Counter()
        self.stop = asyncio.Event()
        self.load: asyncio.Task[None] | None = None
        self.scrubbing: asyncio.Task[dict[str, Any]] | None = None

    def hear(self, signal: Signal) -> None:
        self.signals[signal.kind] += 1

    async def on_load(self) -> dict[str, Any]:
        self.load = asyncio.create_task(self.agents.run(self.stop))
        return {}

    async def on_slow(self) -> dict[str, Any]:
        """A fifth of the load."""
        self.agents.rate = self.options["rate"] / 5
        return {}

    async def on_fast(self) -> dict[str, Any]:
        self.agents.rate = self.options["rate"]
        return {}

    async def on_stop(self) -> dict[str, Any]:
        self.stop.set()
        assert self.load is not None
        await self.load
        agents = self.agents
        return {"saves": agents.saves, "raised": agents.raised, "slowest": agents.slowest, "signals": self.signals}

    async def on_deliver(self) -> dict[str, Any]:
        try:
            await self.replicated.deliver()
        except LocusTieredError as error:
            return self._waiting() | {"error": str(error)}
        return self._waiting()

    def _waiting(self) -> dict[str, Any]:
        """Hints that were not sent, and threads to be looked at because a write may have been carried out late."""
        late = sum(len(replica.far.given_up) for replica in self.replicated._replicas)
        return {"waiting": sum(count() for count in self.replicated.hints_waiting), "late": late}

    async def on_scrub(self) -> dict[str, Any]:
        """Begin to; ``scrubbed`` tells how it went."""
        self.scrubbing = asyncio.create_task(self.scrub())
        return {}

    async def on_scrubbed(self) -> dict[str, Any]:
        assert self.scrubbing is not None
        return await self.scrubbing if self.scrubbing.done() else {"running": True}

    async def scrub(self) -> dict[str, Any]:
        try:
            report = await self.replicated.scrub()
        except LocusTieredError as error:
            return {"error": str(error)}
        return asdict(report) | {"unreachable": sorted(report.unreachable), "in_step": report.in_step}

    async def on_end(self) -> dict[str, Any]:
        await self.checkpointer.close()
        return {"signals": self.signals}


async def main(options: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(16))
    worker = Worker(options)
    with listen(worker.hear):
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            order: Callable[[], Awaitable[dict[str, Any]]] = getattr(worker, f"on_{line}")
            print(json.dumps(await order()), flush=True)
            if line == "end":
                return


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
