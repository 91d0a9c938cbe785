"""The same agent on other homes: PostgreSQL (with tenants), Redis, files, and the PostgreSQL adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.pg_checkpointer import PgCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import ReplicatedCheckpointer, TieredCheckpointer
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey
from tests.integration.agents import (
    agent_on,
    die_in_mid_turn,
    drain,
    ids_in_every_tier,
    said,
    state_saying,
    take_turn,
    three_tiers,
    tool_results,
)


def make_home(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> BaseCheckpointer:
    if kind == "file":
        return FileCheckpointer(base_dir=tmp_path / "home")
    if kind == "redis":
        valkey: Valkey = request.getfixturevalue("valkey_server")
        return valkey.checkpointer()
    if kind == "s3":
        s3: SeaweedFS = request.getfixturevalue("s3_server")
        return s3.backend()
    server: Postgres = request.getfixturevalue("postgres_server")
    return server.checkpointer() if kind == "pg" else server.adapter()


@pytest.fixture(params=["pg", "pg adapter", "redis", "file", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> BaseCheckpointer:
    return make_home(request.param, request, tmp_path)


@pytest.fixture
async def stack(home: BaseCheckpointer, tmp_path: Path) -> AsyncIterator[TieredCheckpointer]:
    async with three_tiers(home, tmp_path / "near") as made:
        yield made


async def test_a_conversation_leaves_its_final_checkpoints_and_is_remembered(stack: TieredCheckpointer) -> None:
    for number in range(3):
        await take_turn(stack, "anon:t", f"question {number}", f"answer {number}", "one", "two")
    ids = await stack.list_checkpoints("anon:t")
    memory, directory, _ = await ids_in_every_tier(stack, "anon:t")
    assert memory == directory == ids and len(ids) == 3
    history = await agent_on(stack).get_state_history("anon:t")
    assert [said(state)[-1] for _, state in history] == ["answer 2", "answer 1", "answer 0"]
    assert await stack.list_threads() == ["anon:t"]


async def test_a_fork_an_edit_and_a_delete_do_what_they_say(stack: TieredCheckpointer) -> None:
    await take_turn(stack, "t", "a", "first", "one")
    await take_turn(stack, "t", "b", "second", "two")
    agent = agent_on(stack)
    newest, oldest = await stack.list_checkpoints("t")
    await agent.fork("t", oldest, new_thread_id="branch")
    await agent.update_state("t", metadata={"seen": True})
    assert said(await agent.get_state("branch")) == ["a", "first"]
    assert (await agent.get_state("t")).metadata["seen"] is True
    assert (await stack.list_checkpoints("t"))[1:] == [newest, oldest]
    assert await stack.delete("t", newest)
    assert [said(state)[-1] for _, state in await agent.get_state_history("t")] == ["second", "first"]
    assert await stack.delete("t") and await stack.load("t") is None and not await stack.delete("t")
    assert said(await agent.get_state("branch")) == ["a", "first"]


async def test_a_turn_that_died_is_continued_by_a_process_that_starts_with_nothing(
    stack: TieredCheckpointer, home: BaseCheckpointer, tmp_path: Path
) -> None:
    await take_turn(stack, "t", "a", "first")
    await die_in_mid_turn(stack, "t", "go", "one", "two")
    assert len(await stack.list_checkpoints("t")) == 3
    await stack.close()
    async with three_tiers(home, tmp_path / "elsewhere") as elsewhere:
        assert tool_results(await elsewhere.load("t")) == ["one means eno", "two means owt"]
        await drain(agent_on(elsewhere, "here we are").continue_turn("t"))
    assert said(await stack.load("t")) == ["a", "first", "go", "here we are"]
    assert len(await stack.list_checkpoints("t")) == 2


async def test_two_stacks_on_one_home_see_each_others_newest(
    stack: TieredCheckpointer, home: BaseCheckpointer, tmp_path: Path
) -> None:
    other = three_tiers(home, tmp_path / "elsewhere")
    expected: list[str] = []
    for number, who in enumerate([stack, other, stack, other]):
        await take_turn(who, "t", f"question {number}", f"answer {number}", "one")
        expected += [f"question {number}", f"answer {number}"]
        assert said(await stack.load("t")) == said(await other.load("t")) == expected


@pytest.mark.parametrize("kind", ["redis", "pg adapter"])
async def test_saves_of_two_stacks_at_once_are_all_loadable_and_the_newest_is_the_last_on_a_lossy_index(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    # The adapter's index of ids is read, changed and written back: two processes lose each other's rows.
    ours, theirs = make_home(kind, request, tmp_path), None
    if kind == "redis":
        theirs = request.getfixturevalue("valkey_server").checkpointer(prefix=ours._backend.config.prefix)  # type: ignore[attr-defined]
    else:
        table = ours._backend.config.table_name  # type: ignore[attr-defined]
        theirs = request.getfixturevalue("postgres_server").adapter(table_name=table)
    async with three_tiers(ours, tmp_path / "a") as one, three_tiers(theirs, tmp_path / "b") as two:
        await one.save(state_saying("the table exists"), "other")
        saved = await asyncio.gather(*(who.save(state_saying(f"{n}"), "t") for n in range(10) for who in (one, two)))
        for checkpoint_id in saved:
            assert await one.load("t", checkpoint_id) is not None
        last = await two.save(state_saying("the last word"), "t")
        assert said(await one.load("t")) == ["the last word"]
        assert (await one.list_checkpoints("t"))[0] == last


# -- tenants ------------------------------------------------------------------------------------------------------


Tenants = tuple[TieredCheckpointer, PgCheckpointer]


@pytest.fixture
async def tenants(
    postgres_server: Postgres, tmp_path: Path
) -> AsyncIterator[tuple[TieredCheckpointer, PgCheckpointer]]:
    home = postgres_server.checkpointer()
    async with three_tiers(home, tmp_path / "near") as stack:
        yield stack, home


async def test_two_tenants_with_the_same_thread_id_never_see_each_others_conversation(
    tenants: Tenants,
) -> None:
    stack, home = tenants
    for number in range(2):
        for tenant in ("acme", "globex"):
            with home.tenant_scope(tenant):
                await take_turn(stack, "t", f"{tenant} asks {number}", f"{tenant} hears {number}", tenant)
    await take_turn(stack, "t", "nobody asks", "nobody hears")

    ids: dict[str, list[str]] = {}
    for tenant in ("acme", "globex"):
        with home.tenant_scope(tenant):
            assert said(await stack.load("t")) == [
                f"{tenant} {verb} {number}" for number in range(2) for verb in ("asks", "hears")
            ]
            ids[tenant] = await stack.list_checkpoints("t")
            assert len(ids[tenant]) == 2 and await stack.list_threads() == ["t"]
    assert said(await stack.load("t")) == ["nobody asks", "nobody hears"]

    with home.tenant_scope("globex"):
        for foreign in ids["acme"]:
            assert await stack.load("t", foreign) is None
            assert not await stack.exists("t", foreign)
            assert not await stack.delete("t", foreign)
    with home.tenant_scope("initech"):
        assert await stack.load("t") is None
        assert await stack.list_checkpoints("t") == await stack.list_threads() == []
        assert not await stack.exists("t")
    with home.tenant_scope("acme"):
        assert await stack.list_checkpoints("t") == ids["acme"]


async def test_two_tenants_who_use_the_same_checkpoint_id_keep_their_own_content(
    tenants: Tenants,
) -> None:
    stack, home = tenants
    for tenant in ("acme", "globex"):
        with home.tenant_scope(tenant):
            await stack.save(state_saying(f"{tenant}'s draft"), "t", "draft")
    for tenant in ("acme", "globex"):
        with home.tenant_scope(tenant):
            assert said(await stack.load("t", "draft")) == said(await stack.load("t")) == [f"{tenant}'s draft"]


async def test_one_tenant_deleting_a_thread_leaves_the_others(
    tenants: Tenants,
) -> None:
    stack, home = tenants
    for tenant in ("acme", "globex"):
        with home.tenant_scope(tenant):
            await take_turn(stack, "t", f"{tenant} asks", f"{tenant} hears", "one")
    with home.tenant_scope("acme"):
        assert await stack.delete("t")
        assert await stack.load("t") is None
    with home.tenant_scope("globex"):
        assert said(await stack.load("t")) == ["globex asks", "globex hears"]
        assert await agent_on(stack).fork("t", new_thread_id="branch") == "branch"
    with home.tenant_scope("acme"):
        assert await stack.load("branch") is None


async def test_tenants_whose_turns_run_side_by_side_never_meet(
    tenants: Tenants,
) -> None:
    stack, home = tenants
    names = [f"tenant {number}" for number in range(6)]

    async def as_tenant(name: str) -> list[str]:
        with home.tenant_scope(name):
            for turn in ("one", "two"):
                await take_turn(stack, "t", f"{name} asks {turn}", f"{name} hears {turn}", "word")
            return said(await stack.load("t"))

    heard = await asyncio.gather(*map(as_tenant, names))
    assert heard == [
        [f"{name} {verb} {turn}" for turn in ("one", "two") for verb in ("asks", "hears")] for name in names
    ]

    async def loads_as(name: str) -> list[str]:
        with home.tenant_scope(name):
            return said(await stack.load("t"))

    assert await asyncio.gather(*(loads_as(name) for name in names * 4)) == heard * 4


@pytest.mark.parametrize("latest", ["validate", "exclusive", 60.0])
async def test_tenants_are_kept_apart_after_a_restart_over_the_same_directory_and_without_validation(
    latest: str | float, postgres_server: Postgres, tmp_path: Path
) -> None:
    home = postgres_server.checkpointer()
    for _ in range(2):
        async with three_tiers(home, tmp_path / "near", latest=latest) as stack:
            for tenant in ("acme", "globex"):
                with home.tenant_scope(tenant):
                    before = await stack.load("t")
                    assert before is None or {line.split()[0] for line in said(before)} == {tenant}
                    await take_turn(stack, "t", f"{tenant} asks", f"{tenant} hears", "one")
            with home.tenant_scope("initech"):
                assert await stack.load("t") is None


async def test_tenants_named_by_the_thread_id_keep_their_threads_apart(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    home = postgres_server.checkpointer(tenant_of=lambda thread: thread.split("/")[0])
    async with three_tiers(home, tmp_path / "near") as stack:
        for tenant in ("acme", "globex"):
            await take_turn(stack, f"{tenant}/t", f"{tenant} asks", f"{tenant} hears", "one")
        assert said(await stack.load("acme/t")) == ["acme asks", "acme hears"]
        with home.tenant_scope("acme"):
            assert await stack.list_threads() == ["acme/t"]
            assert await stack.load("globex/t") is None
        assert said(await stack.load("globex/t")) == ["globex asks", "globex hears"]


async def test_a_thread_id_too_long_for_the_table_is_still_filed_under_its_tenant(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    home = postgres_server.checkpointer(tenant_of=lambda thread: thread.split("/")[0])
    thread = "acme/" + "x" * 1000
    async with three_tiers(home, tmp_path / "near") as stack:
        await stack.save(state_saying("filed"), thread)
        assert said(await stack.load(thread)) == ["filed"]
        with home.tenant_scope("acme"):
            assert await stack.list_threads() == [thread]


@pytest.mark.filterwarnings(r"ignore:Call to deprecated setex\.:DeprecationWarning")  # by the SDK, which works still
@pytest.mark.parametrize("shape", ["tiers", "replicas by one", "replicas by quorum"])
async def test_a_named_checkpoint_that_redis_let_go_is_not_the_newest_until_it_is_saved_again(
    shape: str, valkey_server: Valkey, tmp_path: Path
) -> None:
    # Each key expires by itself, or is evicted; replicas may have no ttl_seconds.
    alone = shape == "tiers"
    homes = [valkey_server.checkpointer(ttl_seconds=600 if alone else None) for _ in range(1 if alone else 3)]

    def make(name: str) -> TieredCheckpointer | ReplicatedCheckpointer:
        if alone:
            return three_tiers(homes[0], tmp_path / name)
        return ReplicatedCheckpointer(*homes, read="quorum" if shape.endswith("quorum") else "one")

    def let_go(*names: str) -> None:
        with valkey_server.client() as client:
            for home in homes:
                client.delete(*(f"{home._backend.config.prefix}t:{name}" for name in names))

    async with make("one") as one, make("other") as other:
        before = await one.save(state_saying("before"), "t")
        await one.save(state_saying("draft"), "t", "draft")
        deleted = await one.save(state_saying("deleted"), "t")
        assert await one.delete("t", deleted)  # which prolongs the index of ids, and nothing else
        assert said(await one.load("t")) == said(await other.load("t")) == ["draft"]
        let_go("draft", "latest")
        for _ in range(2):
            assert said(await one.load("t")) == said(await other.load("t")) == ["before"]
        let_go(before)
        for _ in range(2):
            assert await one.load("t") is None and await other.load("t") is None
            assert await one.load("t", "draft") is None and not await other.exists("t", "draft")
        assert await homes[0].list_checkpoints("t") == ["draft", before]
        await other.save(state_saying("draft again"), "t", "draft")
        assert said(await one.load("t")) == said(await other.load("t")) == ["draft again"]
