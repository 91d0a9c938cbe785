"""Real servers behind a fault proxy, and the stack that is to bear what happens to them.

A :class:`Rig` is one backend of the SDK whose connections go through a :class:`FaultProxy`, wrapped as the docs say
(``RetryingCheckpointer(GuardedCheckpointer(backend))``, alone or as the home of tiers), a second handle on the same
data that goes past the proxy, and a clock whose hands can be moved: nobody waits for an open breaker.

Only a server is waited for. As long as all is well it has 10 s to answer, however slow the machine; in an outage, in
which nobody will answer, the stack gives up after 0.15 s (:meth:`Rig.hurry`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import boto3
from botocore.config import Config
from locus.memory.checkpointer import BaseCheckpointer
from tenacity import AsyncRetrying, stop_after_attempt

from locus_tiered import BoundedMemoryCheckpointer, GuardedCheckpointer, RetryingCheckpointer, TieredCheckpointer
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.budget import RetryBudget
from locus_tiered.layers.guarded import Timeouts
from locus_tiered.testing.proxy import FaultProxy
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey

__all__ = ["DEADLINE", "LIMIT", "PATIENCE", "Rig", "Server", "rig", "until"]

TIMEOUT, DEADLINE, ATTEMPTS = 0.15, 1.0, 2
PATIENCE = 10.0
LIMIT = 3 * DEADLINE
"""A call that takes longer than this in an outage hangs. The stack itself keeps the deadline; machines are slow."""

Server = Valkey | Postgres | SeaweedFS


@dataclass(slots=True)
class Rig:
    """See the module."""

    server: Server
    proxy: FaultProxy
    guard: GuardedCheckpointer
    leg: RetryingCheckpointer
    stack: BaseCheckpointer
    direct: BaseCheckpointer
    """The same data, past the proxy and past the stack."""
    skip: list[float] = field(default_factory=list)
    """By how much the clock of the stack was moved."""
    hurried: bool = False

    @property
    def attempts(self) -> int:
        """How many calls were let through to the backend."""
        return self.guard.stats.calls - self.guard.stats.refused - self.guard.stats.overloaded

    @property
    def breaker(self) -> str:
        assert self.guard.breaker is not None
        return self.guard.breaker.state

    def hurry(self) -> None:
        """Give up soon from now on."""
        self.guard.timeouts, self.leg.deadline, self.hurried = Timeouts.of(TIMEOUT), DEADLINE, True

    def relax(self) -> None:
        """Wait for as long as it takes again; pass everything through."""
        self.proxy.pass_through()
        self.guard.timeouts, self.leg.deadline, self.hurried = Timeouts.of(PATIENCE), 3 * PATIENCE, False

    def forward(self, seconds: float) -> None:
        """Let the stack's clock jump: an open breaker is ready for its probe."""
        self.skip.append(seconds)

    async def ids(self, thread: str) -> list[str]:
        """What is stored of a thread, newest first as the backend has it, without the stack's own markers."""
        async for attempt in AsyncRetrying(stop=stop_after_attempt(5)):  # its connections die with the server, too
            with attempt:
                listed = await self.direct.list_checkpoints(thread, 1000)
        return [each for each in listed if not each.startswith("lt-again-")]


async def until(condition: Callable[[], bool], what: str, within: float = 10.0) -> None:
    """Wait for a server, or for what depends on one."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {within:g} s"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def rig(
    server: Server,
    stack: str = "leg",
    *,
    attempts: int = ATTEMPTS,
    breaker: BreakerPolicy | None = BreakerPolicy(in_a_row=3),  # noqa: B008 - frozen
    budget: RetryBudget | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A rig on a running server: ``stack`` is ``"leg"`` or ``"tiers"``; ``options`` are those of the tiers."""
    skip: list[float] = []
    clock = replace(SYSTEM, monotonic=lambda: time.monotonic() + sum(skip))
    async with AsyncExitStack() as exits:
        proxy = exits.enter_context(FaultProxy(server.port))
        backend, direct = _backends(server, proxy, exits)
        exits.push_async_callback(direct.close)
        guard = GuardedCheckpointer(backend, timeout=PATIENCE, breaker=breaker, clock=clock)
        leg = RetryingCheckpointer(
            guard,
            attempts=attempts,
            deadline=3 * PATIENCE,
            base=0.01,
            throttled_base=0.02,
            budget=RetryBudget() if budget is None else budget,
            clock=clock,
        )
        whole = leg if stack == "leg" else _tiers(leg, clock, options)
        exits.push_async_callback(whole.close)
        exits.callback(proxy.pass_through)  # before anything is closed
        yield Rig(server, proxy, guard, leg, whole, direct, skip)


def _tiers(leg: RetryingCheckpointer, clock: Clock, options: dict[str, Any]) -> TieredCheckpointer:
    return TieredCheckpointer(BoundedMemoryCheckpointer("8MiB"), leg, clock=clock, **options)


def _backends(server: Server, proxy: FaultProxy, exits: AsyncExitStack) -> tuple[BaseCheckpointer, BaseCheckpointer]:
    """A backend through the proxy and one past it, on data of their own."""
    match server:
        case Valkey():
            prefix = f"locus:{secrets.token_hex(8)}:"
            through = server.checkpointer(url=f"redis://127.0.0.1:{proxy.port}/0", prefix=prefix)
            return through, server.checkpointer(prefix=prefix)
        case Postgres():
            table = f"checkpoints_{secrets.token_hex(8)}"
            dsn = server.dsn.replace(f":{server.port}/", f":{proxy.port}/")
            return server.checkpointer(dsn=dsn, table=table), server.checkpointer(table=table)
        case SeaweedFS():
            bucket = server.bucket_name()
            exits.callback(server.drop_bucket, bucket)
            client = _s3_client(server, proxy)
            exits.callback(client.close)
            return server.backend(bucket=bucket, _client=client), server.backend(bucket=bucket)


def _s3_client(server: SeaweedFS, proxy: FaultProxy) -> Any:
    """boto3 without retries of its own."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{proxy.port}",
        region_name="us-east-1",
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
    )
