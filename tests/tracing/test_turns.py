"""Real turns of real agents, as an OpenTelemetry SDK sees them."""

from __future__ import annotations

import asyncio

import pytest
from locus.hooks.builtin.telemetry import TelemetryHook
from opentelemetry import metrics, trace

from locus_tiered import TracedCheckpointer, turn_span
from tests.integration.agents import agent_on, calls, settle
from tests.tracing.kit import Seen, two_tiers

LOAD = ["checkpoint.load", "  checkpoint.head [memory-2]"]
SAVE = ["checkpoint.save", "  checkpoint.save [memory-2]", "  checkpoint.save [memory]"]
DELETE = ["checkpoint.delete", "  checkpoint.delete [memory-2]", "  checkpoint.delete [memory]"]


def indented(lines: list[str], depth: int) -> list[str]:
    return ["  " * depth + line for line in lines]


def text(*parts: list[str]) -> str:
    return "\n".join(line for part in parts for line in part)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """An SDK that is configured globally, as an application does it: the SDK's hook knows no other."""
    seen = Seen()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", seen.tracers)
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", seen.meters)
    return seen


async def test_a_turn_with_three_tool_calls_is_this_tree(seen: Seen) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), *calls("a", "b", "c"), "done")
    async with turn_span(agent, "thread-1"):
        await agent.arun("Look them up.", thread_id="thread-1")
    assert seen.tree == text(
        ["agent.turn"],
        *[indented(each, 1) for each in (LOAD, SAVE, SAVE, SAVE, SAVE, DELETE, DELETE, DELETE)],
    )
    assert {span.context.trace_id for span in seen.spans} == {seen.named("agent.turn")[0].context.trace_id}
    assert all((span.attributes or {})["locus.thread.id"] == "thread-1" for span in seen.spans)


async def test_with_the_hook_of_the_sdk_iteration_saves_are_inside_its_spans(seen: Seen) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), *calls("a", "b", "c"), "done", hooks=[TelemetryHook()])
    async with turn_span(agent, "thread-1"):
        await agent.arun("Look them up.", thread_id="thread-1")
    iterations = [
        indented([f"agent.iteration.{number}", *indented(["tool.look_up", *SAVE], 1)], 2) for number in (0, 1, 2)
    ]
    last = ["    agent.iteration.3"]
    assert seen.tree == text(
        ["agent.turn"],
        indented(LOAD, 1),
        ["  agent.invocation"],
        *iterations,
        last,
        *[indented(each, 1) for each in (SAVE, DELETE, DELETE, DELETE)],
    )


async def test_without_a_turn_span_what_the_agent_does_around_its_own_spans_is_traces_of_its_own(seen: Seen) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), *calls("a"), "done", hooks=[TelemetryHook()])
    await agent.arun("Look it up.", thread_id="thread-1")
    assert [tree.splitlines()[0] for tree in seen.trees()] == [
        "checkpoint.load",
        "agent.invocation",
        "checkpoint.save",
        "checkpoint.delete",
    ]


async def test_twenty_turns_at_once_never_mix(seen: Seen) -> None:
    checkpointer = TracedCheckpointer(two_tiers())

    async def turn(number: int) -> None:
        agent = agent_on(checkpointer, *calls("a", "b", "c"), "done", hooks=[TelemetryHook()])
        async with turn_span(agent, f"thread-{number}"):
            await agent.arun("Look them up.", thread_id=f"thread-{number}")

    await asyncio.gather(*map(turn, range(20)))
    trees = seen.trees()
    assert len(trees) == 20
    assert len(set(trees)) == 1, "every turn looks the same"
    threads: dict[int, set[object]] = {}
    for span in seen.spans:
        if "locus.thread.id" in (span.attributes or {}):
            threads.setdefault(span.context.trace_id, set()).add((span.attributes or {})["locus.thread.id"])
    assert sorted(map(len, threads.values())) == [1] * 20
    assert len(set().union(*threads.values())) == 20


async def test_the_next_turn_finds_the_state_in_memory(seen: Seen) -> None:
    checkpointer = TracedCheckpointer(two_tiers(latest="exclusive"))
    for _ in range(2):
        agent = agent_on(checkpointer, "done")
        await agent.arun("Hello.", thread_id="thread-1")
    first, second = seen.named("checkpoint.load")[0], seen.named("checkpoint.load")[-2]
    assert "locus.cache.hit" not in (first.attributes or {})
    assert (second.attributes or {})["locus.cache.hit"] is True
    assert (second.attributes or {})["locus.tier"] == "memory"
    assert seen.value("locus.checkpoint.hits", locus_tier="memory") == 1


def test_run_sync_keeps_the_parent(seen: Seen) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), "done")
    with seen.tracers.get_tracer("application").start_as_current_span("request"):
        agent.run_sync("Hello.", thread_id="thread-1")
    assert seen.tree == text(["request"], *[indented(each, 1) for each in (LOAD, SAVE)])


async def test_run_sync_while_a_loop_runs_loses_the_context_but_finds_the_turn(seen: Seen) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), "done", hooks=[TelemetryHook()])
    async with turn_span(agent, "thread-1"):
        agent.run_sync("Hello.", thread_id="thread-1")
    turn, invocation = seen.trees()
    assert turn == text(["agent.turn"], *[indented(each, 1) for each in (LOAD, SAVE)])
    assert invocation.splitlines()[0] == "agent.invocation", "the SDK's own spans lose it: documented"


async def test_a_turn_whose_consumer_leaves_early_still_saves_in_its_trace(
    seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), *calls("a", "b"), "done")
    async with turn_span(agent, "thread-1"):
        async for event in agent.run("Look them up.", thread_id="thread-1"):
            if event.event_type == "tool_complete":
                break
        await settle()  # the generator is closed by the loop, in a task of its own
    assert len(seen.trees()) == 1
    assert seen.named("checkpoint.save")
    assert not caplog.records, "no context was detached where it was not attached"


async def test_two_turns_of_one_thread_are_not_guessed_apart(seen: Seen) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), "done")
    async with turn_span(agent, "thread-1"), turn_span(agent, "thread-1"):
        agent.run_sync("Hello.", thread_id="thread-1")
    assert [tree.splitlines()[0] for tree in seen.trees()] == ["agent.turn", "checkpoint.load", "checkpoint.save"]


async def test_a_turn_that_fails_says_what_but_not_why(seen: Seen) -> None:
    agent = agent_on(TracedCheckpointer(two_tiers()), "done")
    with pytest.raises(LookupError):
        async with turn_span(agent, "thread-1"):
            raise LookupError("SECRET")
    (turn,) = seen.spans
    assert (turn.attributes or {})["error.type"] == "LookupError"
    assert not turn.events
    assert "SECRET" not in turn.to_json()


async def test_a_turn_span_shows_the_thread_as_the_checkpointer_does() -> None:
    seen = Seen()
    for how in ("plain", "hash", "off"):
        agent = agent_on(seen.traced(two_tiers(), thread_id=how), "done")
        async with turn_span(agent, "thread-1"):
            pass
    plain, hashed, off = [(span.attributes or {}).get("locus.thread.id") for span in seen.named("agent.turn")]
    assert (plain, off) == ("thread-1", None)
    assert len(str(hashed)) == 16
    assert hashed != plain
