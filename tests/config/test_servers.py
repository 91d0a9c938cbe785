"""The example files against real servers: an agent works on each, and whoever loads the file next goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from locus.agent import Agent
from locus.testing import ScriptedModel, tool_call
from locus.tools import tool

from locus_tiered import Layer, Leaf, WriteBehindCheckpointer, load_stack
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/stacks"


@pytest.fixture
def env(
    s3_server: SeaweedFS,
    valkey_server: Valkey,
    postgres_server: Postgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Mapping[str, str]]:
    """What the example files ask for, and what boto3 finds by itself."""
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name, value in {
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.bucket_name()
    yield {
        "S3_BUCKET": bucket,
        "S3_ENDPOINT": s3_server.endpoint_url,
        "REDIS_URL": valkey_server.url,
        "POSTGRES_DSN": postgres_server.dsn,
        "ENCRYPTED_VOLUME": str(tmp_path / "volume"),
    }
    s3_server.drop_bucket(bucket)


@tool
async def look_up(order: str) -> str:
    """Where an order is."""
    return f"order {order} leaves today"


async def turn(checkpointer: Layer, thread: str, answer: str) -> int:
    """One turn with two tool calls; answers how many messages the thread has then."""
    model = ScriptedModel([tool_call("look_up", order="1"), tool_call("look_up", order="2"), answer])
    agent = Agent(model=model, tools=[look_up], checkpointer=checkpointer, context_window=8_000)
    await agent.arun("Where are my orders?", thread_id=thread)
    state = await checkpointer.load(thread)
    assert state is not None
    assert state.messages[-1].content == answer
    return len(state.messages)


@pytest.mark.parametrize("example", ["single-machine", "s3-write-behind", "redis-s3", "three-replicas"])
async def test_an_agent_goes_on_where_another_process_ended(
    example: str, env: Mapping[str, str], tmp_path: Path
) -> None:
    file = Path(shutil.copy(EXAMPLES / f"{example}.yaml", tmp_path))
    thread = f"{example}-{env['S3_BUCKET']}"
    async with load_stack(file, env=env) as first:
        before = await turn(first, thread, "Both leave today.")
    async with load_stack(file, env=env) as second:
        assert await turn(second, thread, "Still today.") > before
        assert await second.delete(thread) is True
        assert await second.load(thread) is None


async def test_written_behind_s3_sees_one_save_of_a_turn(env: Mapping[str, str], tmp_path: Path) -> None:
    file = Path(shutil.copy(EXAMPLES / "s3-write-behind.yaml", tmp_path))
    async with load_stack(file, env=env) as stack:
        await turn(stack, "ada", "Both leave today.")
        (behind,) = [layer for layer in stack.walk() if isinstance(layer, WriteBehindCheckpointer)]
        assert Path(behind.journal) == tmp_path / "journal"
        await behind.flush()
        (s3,) = [layer.backend for layer in behind.walk() if isinstance(layer, Leaf)]
        assert len(await s3.list_checkpoints("ada", limit=100)) == 1
