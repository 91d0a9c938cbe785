"""Context variables reach the far store from the background: every row ends in the tenant that it was saved for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from locus.memory.backends.pg_checkpointer import PgCheckpointer

from locus_tiered import BoundedMemoryCheckpointer, TieredCheckpointer, WriteBehindCheckpointer
from locus_tiered.testing.services import Postgres
from tests.behind.kit import Hands, behind, crashed, eventually, said, step, words

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def far(postgres_server: Postgres) -> AsyncIterator[PgCheckpointer]:
    made = postgres_server.checkpointer()
    yield made
    await made.close()


async def rows(far: PgCheckpointer, tenant: str | None, thread: str = "t") -> list[str | None]:
    """What the far store itself holds for a tenant, oldest first."""

    async def look() -> list[str | None]:
        names = await far.list_checkpoints(thread, 100)
        return [words(await far.load(thread, name)) for name in reversed(names)]

    if tenant is None:
        return await look()
    with far.tenant_scope(tenant):
        return await look()


async def test_rows_of_two_tenants_on_one_thread_end_where_they_belong(far: PgCheckpointer, tmp_path: Path) -> None:
    hands = Hands()
    async with behind(far, tmp_path / "j", ack="journal", clock=hands.clock) as stack:
        for number in range(3):
            for tenant in ("ann", "bob"):
                with far.tenant_scope(tenant):
                    await stack.save(said(f"{tenant} {number}"), "t")
            await stack.save(said(f"nobody {number}"), "t")
        assert stack.pending().rows == 9
        hands.turn(5)
        await eventually(lambda: stack.pending().rows == 0)
        for tenant in ("ann", "bob", None):
            assert await rows(far, tenant) == [f"{tenant or 'nobody'} {number}" for number in range(3)]


async def test_steps_that_linger_are_flushed_for_their_tenant(far: PgCheckpointer, tmp_path: Path) -> None:
    hands = Hands()
    stack = TieredCheckpointer(
        BoundedMemoryCheckpointer(), behind(far, tmp_path / "j", linger=10.0, clock=hands.clock), clock=hands.clock
    )
    assert isinstance(stack.home, WriteBehindCheckpointer)
    for tenant in ("ann", "bob"):
        with far.tenant_scope(tenant):
            state, name = step([], f"step of {tenant}")
            await stack.save(state, "t", name)
    assert await rows(far, "ann") == await rows(far, "bob") == await rows(far, None) == []
    hands.turn(11)
    await eventually(lambda: stack.home.pending().rows == 0)
    assert (await rows(far, "ann"), await rows(far, "bob"), await rows(far, None)) == (
        ["step of ann"],
        ["step of bob"],
        [],
    )
    with far.tenant_scope("bob"):
        assert await stack.delete("t")
        assert await stack.load("t") is None
    with far.tenant_scope("ann"):
        assert words(await stack.load("t")) == "step of ann"
    await stack.close()


async def test_what_a_tenant_has_pending_is_not_another_ones_to_read_list_or_delete(
    far: PgCheckpointer, tmp_path: Path
) -> None:
    async with behind(far, tmp_path / "j", ack="journal") as stack:
        with far.tenant_scope("ann"):
            name = await stack.save(said("hers"), "t")
        for other in ("bob", "an"):
            with far.tenant_scope(other):
                assert await stack.load("t") is None and await stack.load("t", name) is None
                assert await stack.list_threads() == [] and await stack.list_checkpoints("t") == []
                assert not await stack.delete("t", name)
                assert not await stack.delete("t")
        assert await stack.load("t") is None
        with far.tenant_scope("ann"):
            assert await stack.list_threads() == ["t"]
        await stack.flush()
        assert await rows(far, "ann") == ["hers"]


async def test_after_a_crash_a_tenants_rows_wait_for_a_call_of_that_tenant(far: PgCheckpointer, tmp_path: Path) -> None:
    hands = Hands()
    async with behind(far, tmp_path / "j", ack="journal", clock=hands.clock, exclusive=True) as stack:
        for tenant in ("ann", "bob"):
            with far.tenant_scope(tenant):
                for thread in ("t", "u"):
                    await stack.save(said(f"{tenant} {thread}"), thread)
        await stack.save(said("nobody t"), "t")
        copy = crashed(tmp_path / "j")
        with far.tenant_scope("ann"):
            await stack.delete("t")
            await stack.delete("u")
        with far.tenant_scope("bob"):
            await stack.delete("t")
            await stack.delete("u")
        await stack.delete("t")
    far_clean = [await rows(far, tenant, thread) for tenant in ("ann", "bob", None) for thread in ("t", "u")]
    assert far_clean == [[]] * 6

    survivor = behind(far, copy, ack="journal", clock=Hands(ahead=0).clock)
    assert (await survivor.recover()).rows == 5
    await eventually(lambda: survivor.pending().rows == 4)  # the usual tenant's needs no context
    assert survivor.pending().waiting_for_tenant == 4
    await survivor.flush()
    await survivor.close()  # and does not wait for what it could not send: nobody turns its clock
    assert await survivor.recover() and survivor.pending().waiting_for_tenant == 4
    assert await rows(far, None) == ["nobody t"] and await rows(far, "ann") == await rows(far, "bob") == []

    with far.tenant_scope("bob"):
        assert words(await survivor.load("u")) == "bob u"
    # One call is enough, on whatever thread: all that is his is sent now.
    await eventually(lambda: survivor.pending().rows == 2)
    assert (await rows(far, "bob"), await rows(far, "bob", "u")) == (["bob t"], ["bob u"])
    assert survivor.pending().waiting_for_tenant == 2 and await rows(far, "ann") == []
    with far.tenant_scope("ann"):
        await survivor.flush("elsewhere")
    await eventually(lambda: survivor.pending().rows == 0)
    assert (await rows(far, "ann"), await rows(far, "ann", "u")) == (["ann t"], ["ann u"])
    assert await rows(far, None) == ["nobody t"]
    await survivor.close()


async def test_rows_that_wait_for_a_tenant_do_not_make_others_wait(far: PgCheckpointer, tmp_path: Path) -> None:
    hands = Hands()
    async with behind(far, tmp_path / "j", ack="journal", clock=hands.clock) as stack:
        with far.tenant_scope("ann"):
            await stack.save(said("hers"), "t")
        copy = crashed(tmp_path / "j")
    later = Hands()
    later.now += 3600
    async with behind(far, copy, ack="journal", clock=later.clock, max_lag=60.0) as survivor:
        for number in range(3):
            await survivor.save(said(f"{number}"), "u")  # its clock stands still: it would wait for ever
        assert survivor.pending().rows == 4
        await survivor.flush()
    assert await rows(far, None, "u") == ["0", "1", "2"]


async def test_a_killed_process_leaves_rows_for_the_right_tenants(postgres_server: Postgres, tmp_path: Path) -> None:
    far = postgres_server.checkpointer()
    setup = {"dsn": postgres_server.dsn, "table": far._table_name, "journal": str(tmp_path / "j")}
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.behind.test_tenants", json.dumps(setup)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout:
        assert (await asyncio.to_thread(child.stdout.readline)).strip() == "saved"
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.to_thread(child.wait)
    async with behind(far, tmp_path / "j", ack="journal") as survivor:
        assert (await survivor.recover()).waiting_for_tenant == 2
        for tenant in ("bob", "ann"):
            with far.tenant_scope(tenant):
                assert words(await survivor.load("t")) == tenant
                await survivor.flush()
        assert survivor.pending().rows == 0
    assert await rows(far, "ann") == ["ann"] and await rows(far, "bob") == ["bob"] and await rows(far, None) == []
    await far.close()


async def _save_and_wait(dsn: str, table: str, journal: str) -> None:
    far = PgCheckpointer(dsn=dsn, table=table)
    stack = WriteBehindCheckpointer(far, journal=journal, ack="journal", clock=Hands().clock)
    for tenant in ("ann", "bob"):
        with far.tenant_scope(tenant):
            await stack.save(said(tenant), "t")
    print("saved", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_save_and_wait(**json.loads(sys.argv[1])))
