"""Replicas that keep tenants apart, by a context variable, as ``PgCheckpointer`` does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from locus_tiered.core.errors import QuorumError, StackConfigError
from locus_tiered.core.ids import RESERVED
from tests.replication.rig import OwnLatest, Rig, scenario

TENANT: ContextVar[str | None] = ContextVar("tenant", default=None)


@contextmanager
def of(tenant: str | None, scope: ContextVar[str | None] = TENANT) -> Iterator[None]:
    token = scope.set(tenant)
    try:
        yield
    finally:
        scope.reset(token)


class Tenanted(OwnLatest):
    """Everything that it keeps is the tenant's of the context."""

    def __init__(self, scope: ContextVar[str | None] = TENANT) -> None:
        self._scope = scope
        self._kept: dict[tuple[str, str | None], Any] = defaultdict(dict)
        super().__init__()

    def partition(self, thread_id: str) -> str | None:
        return self._scope.get()

    @staticmethod
    def _mine(what: str) -> Any:
        def get(self: Tenanted) -> Any:
            return self._kept[what, self._scope.get()]

        return property(get, lambda self, value: None)

    stored, _arrivals, latest = _mine("stored"), _mine("arrivals"), _mine("latest")

    def wipe(self) -> None:
        self._kept.clear()


def tenants(rig: Rig) -> Rig:
    rig.stores = [Tenanted() for _ in range(3)]
    return rig


@scenario
async def test_a_scope_of_one_replica_alone_is_refused(rig: Rig) -> None:
    scopes: list[ContextVar[str | None]] = [ContextVar(f"tenant {number}", default=None) for number in range(3)]
    rig.stores = [Tenanted(scope) for scope in scopes]
    p = rig.process()
    for number in range(3):
        with of("acme", scopes[number]):
            with pytest.raises(StackConfigError, match="are in the scopes of different tenants; nothing was done"):
                await p.save(1)
            with pytest.raises(StackConfigError):
                await p.load()
            assert await rig.stores[number].list_threads() == []
    assert await p.load() is None
    with of("acme", scopes[0]), of("acme", scopes[1]), of("acme", scopes[2]):
        await p.save(2)
        assert await p.load() == 2
    assert await p.load() is None


@scenario
async def test_hints_of_a_tenant_go_out_after_a_restart_as_soon_as_he_calls(rig: Rig) -> None:
    p = tenants(rig).process(journal="p")
    with of("acme"):
        await p.save(1, thread="gone")
        await p.save(2)
        await p.rest()
        p.cut(2)
        await p.stack.delete("gone")
        await p.save(3)
        await p.forget()
    q = rig.process(journal="p")
    with of("globex"):
        assert await q.load() is None
        await q.rest()
        assert [count() for count in q.stack.hints_waiting][2] > 0, "nobody knows how to call for acme"
        assert await rig.everywhere() == [[]] * 3
    with of("acme"):
        assert await q.load() == 3
        await q.rest()
        assert [count() for count in q.stack.hints_waiting] == [0] * 3
        assert await rig.everywhere() == [[3, 2]] * 3
        assert await rig.everywhere("gone") == [[]] * 3


@scenario
async def test_heartbeats_are_about_the_store_and_not_about_a_tenant(rig: Rig) -> None:
    p = tenants(rig).process(journal="p")
    for tenant in ("acme", "globex"):
        with of(tenant):
            await p.save(1)
    await p.rest()
    for link in p.links[1:]:
        link.partition()
    with of("initech"):
        with pytest.raises(QuorumError):
            await p.load()
        p.heal()
        await p.rest()
        assert await p.load() is None
    q = rig.process()
    with of("hooli"):
        assert await q.load() is None
    for stack in (p.stack, q.stack):
        assert not any(replica.fenced for replica in stack._replicas)
    for store in rig.stores:
        assert await store.list_checkpoints(f"{RESERVED}heartbeat") == ["heartbeat"]


@scenario
async def test_a_wiped_replica_is_found_out_whoever_calls_first(rig: Rig) -> None:
    p = tenants(rig).process(journal="p")
    with of("acme"):
        await p.save(1)
    await p.rest()
    store = rig.stores[1]
    assert isinstance(store, Tenanted)
    store.wipe()
    q = rig.process()
    with of("globex"):
        assert await q.load() is None
    assert [replica.fenced for replica in q.stack._replicas] == [False, True, False]
    with of("acme"):
        assert (await q.stack.scrub()).copied == 1
        assert await rig.everywhere() == [[1]] * 3


@scenario
async def test_a_scrub_that_was_stopped_goes_on_for_its_tenant_only(rig: Rig) -> None:
    p = tenants(rig).process()
    for tenant in ("acme", "globex"):
        with of(tenant):
            for thread in "abcdef":
                await p.save(1, thread=thread)
    await p.rest()

    def stop(progress: Any) -> None:
        if progress.done == 4:
            raise KeyError("stop")

    with of("acme"):
        with pytest.raises(KeyError):
            await p.stack.scrub(progress=stop, rate=100)
        with of("globex"):
            assert (await p.stack.scrub()).threads == 6
        assert (await p.stack.scrub()).threads == 2


@scenario
async def test_the_look_after_a_delete_is_each_tenants_own(rig: Rig) -> None:
    p = tenants(rig).process()
    for tenant in ("acme", "globex"):
        with of(tenant):
            await p.save(1)
            await p.save(2)
    await p.rest()
    for tenant in ("acme", "globex"):
        with of(tenant):
            newest = (await p.stack.list_checkpoints("t"))[0]
            await p.stack.delete("t", newest)
    await p.rest()
    for tenant in ("acme", "globex"):
        with of(tenant):
            assert [await rig.latest(number) for number in range(3)] == [1] * 3, "which the store itself does not tell"


@scenario
async def test_what_a_replica_missed_too_much_of_is_compared_for_whom_it_is(rig: Rig) -> None:
    p = tenants(rig).process(journal="p", hint_window="4KiB")
    with of("acme"):
        await p.save(1)
        p.cut(2)
        for mark in range(2, 10):
            await p.save(mark)
    p.heal()
    with of("globex"):
        await p.rest(0.5)
        assert await p.load() is None
        await p.rest()
    with of("acme"):
        assert await p.load() == 9
        await p.rest()
        assert await rig.everywhere() == [list(range(9, 0, -1))] * 3
        assert not p.stack._replicas[2].marked
