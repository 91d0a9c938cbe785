"""Retry and guard over real servers behind a proxy that breaks connections, and over servers that are killed.

Each story is the same: a save that works, a fault, what the caller sees, the fault is over, everything works again,
and nothing is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from locus.memory.backends import redis_checkpointer
from locus.memory.backends.pg_checkpointer import PgCheckpointer
from locus.memory.backends.s3 import S3Backend
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import BoundedMemoryCheckpointer, GuardedCheckpointer, RetryingCheckpointer, TieredCheckpointer
from locus_tiered.core.errors import BackendError
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.testing.proxy import FaultProxy
from locus_tiered.testing.services import postgres, seaweedfs, valkey
from tests.laws.parts import latest, state

SERVERS = ["valkey", "postgres", "s3"]
FAULTS = ["refuse", "reset", "black_hole", "half_open"]
POLICY = BreakerPolicy(in_a_row=4, open_for=0.2, longest=0.4)
HANGS = 20.0  # seconds after which a call that should have ended long ago counts as hanging


def leg(backend: BaseCheckpointer, **options) -> RetryingCheckpointer:
    guard = GuardedCheckpointer(backend, timeout=0.6, breaker=POLICY)
    return RetryingCheckpointer(guard, attempts=2, deadline=3.0, base=0.01, **options)


@pytest.fixture
def proxied(request, valkey_server, postgres_server, s3_server):
    """A backend of the server named in the parameter, behind a proxy."""
    kind = request.param
    port = {"valkey": valkey_server, "postgres": postgres_server, "s3": s3_server}[kind].port
    with FaultProxy(port) as proxy:
        if kind == "valkey":
            backend = redis_checkpointer(f"redis://127.0.0.1:{proxy.port}", prefix=f"{uuid4().hex}:")
        elif kind == "postgres":
            dsn = postgres_server.fresh_database().replace(f":{port}/", f":{proxy.port}/")
            assert str(proxy.port) in dsn
            backend = PgCheckpointer(dsn)
        else:
            client = s3_server.client(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=2)
            client.meta.events.register("before-send.s3", lambda request, **_: _through(request, port, proxy.port))
            backend = S3Backend(bucket=s3_server.bucket_name(), _client=client)
        yield backend, proxy


def _through(request, port: int, other: int) -> None:
    """Send a signed request to the proxy: the signature covers the Host header, which stays."""
    request.headers.setdefault("Host", f"127.0.0.1:{port}")
    request.url = request.url.replace(f":{port}/", f":{other}/", 1)


async def within(call):
    async with asyncio.timeout(HANGS):
        return await call


async def until_it_works(checkpointer: BaseCheckpointer, number: int) -> str:
    """Save until the breaker has let a probe through and the server answers."""
    deadline = time.monotonic() + HANGS
    while True:
        try:
            return await within(checkpointer.save(state(number), "t"))
        except BackendError:
            assert time.monotonic() < deadline, "it never came back"
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def closing(checkpointer: BaseCheckpointer) -> AsyncIterator[BaseCheckpointer]:
    try:
        yield checkpointer
    finally:
        with contextlib.suppress(BackendError):
            await checkpointer.close()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("proxied", SERVERS, indirect=True)
async def test_a_server_that_goes_away_is_named_left_alone_and_found_again(proxied, fault):
    backend, proxy = proxied
    retry = leg(backend)
    guard = retry.inner
    async with closing(TieredCheckpointer(BoundedMemoryCheckpointer(), retry)) as checkpointer:
        first = await within(checkpointer.save(state(1), "t"))
        getattr(proxy, fault)()
        failed = 0
        for number in range(5):
            with pytest.raises(BackendError) as caught:
                await within(checkpointer.save(state(100 + number), "t", f"lost-{number}"))
            failed += 1
            assert caught.value.member
            assert caught.value.operation
        assert guard.breaker.state != "closed"
        assert guard.stats.opened >= 1
        assert (await checkpointer.load("t", first)).iteration == 1  # a near tier goes on answering by id
        proxy.pass_through()
        last = await until_it_works(checkpointer, 2)
        assert guard.breaker.state == "closed"
        assert await within(latest(checkpointer)) == 2
        ids = await within(checkpointer.list_checkpoints("t", limit=50))
        assert ids[0] == last
        assert len(ids) == len(set(ids))
        assert set(ids) - {f"lost-{number}" for number in range(failed)} == {first, last}


@pytest.mark.parametrize("proxied", SERVERS, indirect=True)
async def test_a_save_whose_answer_was_cut_off_is_made_once(proxied):
    backend, proxy = proxied
    events = []
    async with closing(leg(backend, on_retry=events.append)) as checkpointer:
        await within(checkpointer.save(state(1), "t"))
        proxy.cut_after_request(1)
        saved = await within(checkpointer.save(state(2), "t"))
        assert [event.operation for event in events] == ["save"]
        assert len(await within(checkpointer.list_checkpoints("t"))) == 2
        assert (await within(checkpointer.load("t", saved))).iteration == 2


@pytest.mark.parametrize("proxied", SERVERS, indirect=True)
async def test_a_slow_server_is_waited_for_within_the_timeout(proxied):
    backend, proxy = proxied
    async with closing(leg(backend)) as checkpointer:
        await within(checkpointer.save(state(1), "t"))
        proxy.slow(0.05)
        await within(checkpointer.save(state(2), "t"))
        assert checkpointer.stats.retries == 0
        assert checkpointer.inner.breaker.state == "closed"


@pytest.mark.parametrize("how", ["pause", "kill"])
@pytest.mark.parametrize("server", [valkey, postgres, seaweedfs])
async def test_a_server_that_is_stopped_or_killed_and_comes_back(server, how):
    with server() as mine:
        retry = leg(mine.backend() if server is seaweedfs else mine.checkpointer())
        async with closing(TieredCheckpointer(BoundedMemoryCheckpointer(), retry)) as checkpointer:
            first = await within(checkpointer.save(state(1), "t"))
            getattr(mine, how)()
            for number in range(4):
                with pytest.raises(BackendError):
                    await within(checkpointer.save(state(9), "t", f"lost-{number}"))
            assert retry.inner.stats.opened >= 1
            if how == "pause":
                mine.resume()
            else:
                mine.restart()
            last = await until_it_works(checkpointer, 2)
            assert retry.inner.breaker.state == "closed"
            ids = await within(checkpointer.list_checkpoints("t", limit=50))
            assert ids[0] == last
            assert first in ids  # acknowledged before, and still there
            assert await within(latest(checkpointer)) == 2


@pytest.mark.parametrize("proxied", SERVERS, indirect=True)
async def test_an_outage_sends_a_dead_server_hardly_anything(proxied):
    backend, proxy = proxied
    checkpointer = leg(backend)
    async with closing(checkpointer):
        await within(checkpointer.save(state(1), "t"))
        proxy.reset()
        proxy.reset_counters()
        for number in range(60):
            with pytest.raises(BackendError):
                await within(checkpointer.save(state(number), "t", "x"))
        # One save of these backends is at most a handful of requests, of which a dead server sees the first.
        assert proxy.counts().connections <= 60 * 1.1 + 10
        assert checkpointer.stats.retries <= 0.1 * 60 + 10
