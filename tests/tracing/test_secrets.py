"""Secrets are planted everywhere; no span, metric, event or log line has one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from locus.core.state import AgentState
from locus.memory.backends import HTTPCheckpointer, MemoryCheckpointer, redis_checkpointer
from locus.memory.backends.pg_checkpointer import PgCheckpointer
from locus.memory.backends.s3 import S3Backend
from locus.observability import get_event_bus, reset_event_bus, run_context
from locus.tools import tool

from locus_tiered import (
    BoundedMemoryCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    turn_span,
)
from locus_tiered.layers.vocabulary import ATTRIBUTES
from tests.integration.agents import agent_on, calls
from tests.tracing.kit import QUICK, FlakyBackend, Seen, saying

SECRET = "hunter2"
DSN = f"postgresql://admin:{SECRET}@db.internal:5432/agents"


class Leaky(FlakyBackend):
    """A backend whose errors say everything that it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def _maybe(self) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            raise ConnectionResetError(f"lost {DSN} with key {SECRET}")

    async def save(self, state: AgentState, *args: Any, **kwargs: Any) -> str:
        try:
            return await super().save(state, *args, **kwargs)
        except ConnectionResetError as error:
            raise OSError(111, f"{error}: could not send {state.messages}") from error


@tool
async def log_in(word: str) -> str:
    """Log in with a password."""
    return f"welcome {word}, your token is {SECRET}"


def everything(seen: Seen, events: list[Any], records: list[logging.LogRecord]) -> dict[str, str]:
    """All outputs as text."""
    formatter = logging.Formatter("%(levelname)s %(name)s %(trace_id)s %(message)s")
    return {
        "spans": "\n".join(span.to_json() for span in seen.spans),
        "metrics": str(seen.points()) + str(seen._reader.get_metrics_data()),
        "events": json.dumps([event.to_dict() for event in events], default=str),
        "logs": "\n".join(
            formatter.format(record) + str(record.args) for record in records if record.name.startswith("locus_tiered")
        ),
    }


async def test_no_secret_leaves_by_any_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reset_event_bus()
    seen, home = Seen(), Leaky()
    stack = TieredCheckpointer(
        BoundedMemoryCheckpointer("16KiB"),
        DirectoryCheckpointer(tmp_path),
        Tier(Leaky(), name="shared"),
        Tier(RetryingCheckpointer(GuardedCheckpointer(home, breaker=None), clock=QUICK), name="far"),
        on_outage="stale",
    )
    checkpointer = seen.traced(stack)
    with caplog.at_level(logging.DEBUG, "locus_tiered"):
        async with run_context() as run:
            for number in range(6):
                agent = agent_on(
                    checkpointer,
                    *calls(SECRET, f"{SECRET} again", name="log_in"),
                    f"Your password is {SECRET}.",
                    tools=(log_in,),
                    system_prompt=f"The key is {SECRET}.",
                )
                with contextlib.suppress(Exception):
                    async with turn_span(agent, f"thread-{number % 2}"):
                        await agent.arun(f"My password is {SECRET}.", thread_id=f"thread-{number % 2}")
            await checkpointer.save(saying("x", api_key=SECRET), "meta", metadata={SECRET: DSN, "dsn": DSN})
            await checkpointer.query_by_metadata(SECRET, DSN) if checkpointer.capabilities.metadata_query else None
            with contextlib.suppress(Exception):
                await checkpointer.search(SECRET)
            with contextlib.suppress(Exception):
                await checkpointer.list_threads(pattern=SECRET)
            with contextlib.suppress(Exception):
                await checkpointer.save(saying("x", weird=object(), key=SECRET), "meta")
        bus = get_event_bus()
        await bus.close_stream(run)
        events = [event async for event in bus.subscribe(run) if event.data.get("stack")]
        await checkpointer.close()
    outputs = everything(seen, events, caplog.records)
    assert len(seen.spans) > 100
    assert events
    assert outputs["logs"]
    assert "error.type" in outputs["spans"]
    known = {attribute.name for attribute in ATTRIBUTES}
    for span in seen.spans:
        assert (span.attributes or {}).keys() <= known
        assert all((event.attributes or {}).keys() <= known for event in span.events)
    for where, text in outputs.items():
        for secret in (SECRET, "db.internal", "admin:", "password", "welcome"):
            assert secret not in text, f"{secret!r} in the {where}"


@pytest.mark.parametrize(
    "home",
    [
        lambda: redis_checkpointer(f"redis://user:{SECRET}@127.0.0.1:1/0"),
        lambda: PgCheckpointer(f"postgresql://user:{SECRET}@127.0.0.1:1/db"),
        lambda: HTTPCheckpointer(f"http://user:{SECRET}@127.0.0.1:1", headers={"Authorization": SECRET}),
        lambda: S3Backend(
            "agents",
            endpoint_url=f"http://127.0.0.1:1/{SECRET}",
            region_name="us-east-1",
            aws_access_key_id=SECRET,
            aws_secret_access_key=SECRET,
        ),
    ],
    ids=["redis", "pg", "http", "s3"],
)
async def test_a_backend_that_cannot_be_reached_is_not_named_by_its_address(
    home: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    seen = Seen()
    checkpointer = seen.traced(TieredCheckpointer(BoundedMemoryCheckpointer(), home()))
    with caplog.at_level(logging.DEBUG, "locus_tiered"), contextlib.suppress(Exception):
        await asyncio.wait_for(checkpointer.save(saying(SECRET), "t"), 30)
    with contextlib.suppress(Exception):
        await checkpointer.close()
    assert any("error.type" in (span.attributes or {}) for span in seen.spans)
    for where, text in everything(seen, [], caplog.records).items():
        assert SECRET not in text, where


async def test_a_repr_in_a_trace_is_never_needed() -> None:
    seen = Seen()
    checkpointer = seen.traced(MemoryCheckpointer(), name="plain")
    await checkpointer.save(saying(SECRET), "t", "one")
    assert SECRET not in seen.spans[0].to_json()
