"""On real servers: what a tier is called, and a turn on three of them at once."""

from __future__ import annotations

from locus.memory.backends.pg_checkpointer import PgCheckpointer
from locus.memory.backends.s3 import S3Backend
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import BoundedMemoryCheckpointer, TieredCheckpointer, turn_span
from tests.integration.agents import agent_on, calls
from tests.tracing.kit import Seen, saying


async def save_on(home: BaseCheckpointer, system: str) -> None:
    """Save once, and see what the tier is called."""
    seen = Seen()
    await seen.traced(TieredCheckpointer(BoundedMemoryCheckpointer(), home)).save(saying("hello"), "t")
    systems = {(span.attributes or {})["db.system.name"] for span in seen.spans}
    assert systems == {"locus_tiered", "memory", system}
    assert seen.value("db.client.operation.duration", db__system__name=system, db__operation__name="save") == 1


async def test_a_bucket_is_called_what_it_is(s3_backend: S3Backend) -> None:
    await save_on(s3_backend, "aws.s3")


async def test_redis_is_called_what_the_conventions_call_it(redis_checkpointer: BaseCheckpointer) -> None:
    await save_on(redis_checkpointer, "redis")


async def test_postgres_is_called_what_the_conventions_call_it(pg_checkpointer: PgCheckpointer) -> None:
    await save_on(pg_checkpointer, "postgresql")


async def test_a_turn_on_memory_postgres_and_s3_is_one_trace(
    pg_checkpointer: PgCheckpointer, s3_backend: S3Backend
) -> None:
    seen = Seen()
    checkpointer = seen.traced(TieredCheckpointer(BoundedMemoryCheckpointer(), pg_checkpointer, s3_backend))
    agent = agent_on(checkpointer, *calls("a", "b", "c"), "done")
    async with turn_span(agent, "thread-1"):
        await agent.arun("Look them up.", thread_id="thread-1")
    assert len(seen.trees()) == 1
    (turn,) = seen.named("agent.turn")
    inside = [span for span in seen.spans if span.parent and span.parent.span_id == turn.context.span_id]
    assert [span.name for span in inside] == [
        "checkpoint.load",
        *["checkpoint.save"] * 4,
        *["checkpoint.delete"] * 3,
    ]
    for save in (span for span in inside if span.name == "checkpoint.save"):
        below = [span for span in seen.spans if span.parent and span.parent.span_id == save.context.span_id]
        assert [(span.attributes or {})["locus.tier"] for span in below] == ["s3", "pg", "memory"]
        assert all((span.end_time or 0) <= (save.end_time or 0) for span in below)
