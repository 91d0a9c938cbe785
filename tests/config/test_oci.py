"""OCI Object Storage as a tier: Oracle's own client, against a stand-in for the server (none can run here)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from locus.agent import Agent
from locus.core.state import AgentState
from locus.testing import ScriptedModel, tool_call
from locus.tools import tool

from locus_tiered import Layer, load_stack
from locus_tiered.core.errors import BackendError, CapabilityMissing
from locus_tiered.testing import check_checkpointer_conformance
from locus_tiered.testing.checks import all_checks
from tests.config.oci_stand_in import OciStandIn, oci_stand_in

STACK = """
tiers:
  - memory: {max_bytes: 16MiB}
  - oci:
      bucket_name: ${BUCKET}
      namespace: mytenancy
      compartment_id: ocid1.compartment.oc1..aaaa
      config_file: oci_config
    write: ${WRITE:-through}
    retry: {attempts: 2, deadline: 20s}
    guard: {timeout: 10s}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciStandIn]:
    folder = tmp_path_factory.mktemp("oci")
    with oci_stand_in(folder) as server:
        server.config_file()
        (folder / "stack.yaml").write_text(STACK, encoding="utf-8")
        (folder / "behind.yaml").write_text(f"journal: ./journal\n{STACK}", encoding="utf-8")
        yield server


def stack(server: OciStandIn, bucket: str, file: str = "stack.yaml", **env: str) -> Layer:
    found = load_stack(server.folder / file, env={"BUCKET": bucket, **env})
    server.reach(found)
    return found


async def test_a_stack_over_oci_keeps_what_it_is_given(server: OciStandIn) -> None:
    async with stack(server, "first") as checkpointer:
        ids = [await checkpointer.save(AgentState(run_id=f"{n}"), "a/b") for n in range(3)]
        await checkpointer.save(AgentState(run_id="x"), "other", "draft", {"k": "v"})
    async with stack(server, "first") as another:
        state = await another.load("a/b")
        assert state is not None
        assert state.run_id == "2"
        assert await another.list_checkpoints("a/b") == ids[::-1]
        assert sorted(await another.list_threads()) == ["a/b", "other"]
        assert await another.delete("a/b", ids[2]) is True
        state = await another.load("a/b")
        assert state is not None
        assert state.run_id == "1"
        # Its rows are one per thread, not one per checkpoint: a stack does not pass that off as the real thing.
        with pytest.raises(CapabilityMissing, match="one row per thread"):
            await another.list_with_metadata()
        assert await another.delete("a/b") is True
        assert await another.load("a/b") is None
    assert {name.split("/")[2] for name in server.buckets["first"]} == {"other"}


async def test_a_bucket_that_may_not_be_made_is_a_clear_error(server: OciStandIn, tmp_path: Path) -> None:
    text = STACK.replace("      compartment_id: ocid1.compartment.oc1..aaaa\n", "").replace(
        "oci_config", str(server.folder / "oci_config")
    )
    checkpointer = load_stack(text, env={"BUCKET": "nowhere"})
    server.reach(checkpointer)
    with pytest.raises(BackendError, match="oci failed during"):
        await checkpointer.load("thread")
    await checkpointer.close()


async def test_a_key_that_is_not_the_users_is_refused(server: OciStandIn, tmp_path: Path) -> None:
    with oci_stand_in(tmp_path) as stranger:
        config = stranger.config_file()
        text = STACK.replace("oci_config", str(config))
        checkpointer = load_stack(text, env={"BUCKET": "first"})
        server.reach(checkpointer)
        with pytest.raises(BackendError) as raised:
            await checkpointer.load("thread")
        assert raised.value.temporary is False
        await checkpointer.close()


async def test_a_turn_written_behind_costs_one_save(server: OciStandIn) -> None:
    @tool
    async def look_up(order: str) -> str:
        """Where an order is."""
        return f"order {order} leaves today"

    checkpointer = stack(server, "behind", "behind.yaml", WRITE="behind")
    model = ScriptedModel([tool_call("look_up", order="1"), tool_call("look_up", order="2"), "Both leave today."])
    agent = Agent(model=model, tools=[look_up], checkpointer=checkpointer, context_window=8_000)
    await agent.arun("Where are my orders?", thread_id="ada")
    await checkpointer.close()
    saved = [name for name in server.buckets["behind"] if name.startswith("locus/checkpoints/ada/")]
    assert len(saved) == 3, "state, metadata and pointer of the final save; no iteration save arrived"
    async with stack(server, "behind") as another:
        state = await another.load("ada")
        assert state is not None
        assert state.messages[-1].content == "Both leave today."


async def test_the_contract_holds_over_oci(server: OciStandIn) -> None:
    count = 0

    def fresh() -> Layer:
        nonlocal count
        count += 1
        return stack(server, f"contract-{count}")

    names = [check.name for check in all_checks()]
    report = await check_checkpointer_conformance(fresh, only=names[::8])
    assert report.ok
    assert len(report.checks) > 10
