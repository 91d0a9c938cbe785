"""The states that the checks save, and how two states are compared.

A state is told apart by its ``run_id``, which is what messages of failed checks name. Every value in these
states survives JSON: a backend that changes one of them lost something. All of them carry the same times, so
that no order can come from a state itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from locus.core.messages import Message, Role, ToolCall, ToolResult
from locus.core.state import AgentState, ReasoningStep, ToolExecution

__all__ = ["difference", "large_state", "nested_state", "plain_state", "rich_state", "without_message_times"]


_WHEN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def plain_state(label: str, **metadata: Any) -> AgentState:
    """A small state, known by its label."""
    return AgentState(
        run_id=label,
        messages=(Message.user(f"this is {label}"),),
        metadata=metadata,
        started_at=_WHEN,
        updated_at=_WHEN,
    )


def nested_state(label: str) -> AgentState:
    """A small state with a mutable value in every place where a state can have one."""
    call = ToolCall(id="call-1", name="lookup", arguments={"filters": ["open"]})
    return AgentState(
        run_id=label,
        messages=(
            Message(role=Role.USER, content="hello", metadata={"tags": ["first"]}),
            Message.assistant(content=None, tool_calls=[call]),
        ),
        tool_executions=(
            ToolExecution(tool_name="lookup", tool_call_id="call-1", arguments={"filters": ["open"]}, timestamp=_WHEN),
        ),
        provider_state={"cursor": {"pages": [1]}},
        started_at=_WHEN,
        updated_at=_WHEN,
        metadata={"graph_state": {"visited": ["start"]}, "plan": ["one", "two"]},
    )


def rich_state() -> AgentState:
    """A state with something in every corner: nested values, every kind of text, numbers near the edges."""
    call = ToolCall(
        id="call-7", name="search_orders", arguments={"ids": [1, 2, 3], "where": {"open": True, "by": None}}
    )
    failed = ToolExecution(
        tool_name="refund", tool_call_id="call-8", arguments={"usd": 49.5}, error="timed out", duration_ms=12.25
    )
    worked = ToolExecution(
        tool_name="search_orders", tool_call_id="call-7", arguments=dict(call.arguments), result="3 orders"
    )
    return AgentState(
        run_id="rich",
        agent_id="contract",
        messages=(
            Message.system("You are terse.\nLine two\u2028and three."),
            Message.user('Grüße, 世界 \U0001f30d — "quoted" \\ back/slash \t tab'),
            Message.assistant(content=None, tool_calls=[call]),
            Message.tool(ToolResult(tool_call_id="call-7", name="search_orders", content="3 orders")),
            Message(role=Role.ASSISTANT, content="", metadata={"cache_control": {"type": "ephemeral"}}),
        ),
        iteration=7,
        max_iterations=12,
        tool_executions=(worked, failed),
        reasoning_steps=(
            ReasoningStep(iteration=1, thought="look first", tool_calls=[call], tool_results=[worked]),
            ReasoningStep(iteration=2, reflection="it failed", confidence_delta=-0.1),
        ),
        confidence=0.1 + 0.2,
        confidence_history=(0.5, 0.30000000000000004, 1e-9),
        tool_history=("search_orders", "refund"),
        tool_loop_warnings=(("refund", 2),),
        tool_loop_read_only_tools=frozenset({"search_orders", "read"}),
        terminal_tools=frozenset({"submit", "done"}),
        total_tokens_used=2**53 + 1,
        token_budget=100_000,
        cost_usd_used=0.000125,
        completion_mode="explicit",
        errors=("timed out", ""),
        provider_state={"previous_response_id": "resp_1", "opaque": [{"a": [None, False]}]},
        metadata={
            "graph_state": {"visited": ["start", "loop"], "depth": {"of": {"nesting": [[], {}, [[1]]]}}},
            "a.b": 1,
            "$set": {"x y": "z"},
            "": "empty key",
            "ключ": "значение",
            "numbers": [0, -1, 2**53 + 1, 0.1, -1.5, 1e-9],
            "nothing": None,
            "yes": True,
        },
    )


def large_state() -> AgentState:
    """About half a megabyte of conversation."""
    return AgentState(
        run_id="large",
        messages=tuple(Message.user(f"{number}: " + "all work and no play " * 120) for number in range(200)),
    )


def without_message_times(state: AgentState) -> AgentState:
    """``state`` without ``locus_at`` in its messages' metadata.

    ``PgCheckpointer`` and ``RetainedCheckpointer`` note there when a message was first saved.
    """
    if not any("locus_at" in message.metadata for message in state.messages):
        return state
    messages = tuple(
        message.model_copy(
            update={"metadata": {key: value for key, value in message.metadata.items() if key != "locus_at"}}
        )
        for message in state.messages
    )
    return state.model_copy(update={"messages": messages})


def difference(got: AgentState, wanted: AgentState) -> str:
    """Where two states differ, in a line."""
    if got.run_id != wanted.run_id:
        return f"got the state {got.run_id!r}, expected {wanted.run_id!r}"
    places = list(_places(got.model_dump(), wanted.model_dump(), ""))
    more = f" and in {len(places) - 2} more places" if len(places) > 2 else ""
    return f"state {wanted.run_id!r} differs: " + "; ".join(places[:2]) + more


def _places(got: Any, wanted: Any, path: str) -> Iterator[str]:
    if got == wanted:
        return
    steps: Iterable[Any] = ()
    if isinstance(got, dict) and isinstance(wanted, dict) and got.keys() == wanted.keys():
        steps = wanted
    elif isinstance(got, list | tuple) and isinstance(wanted, list | tuple) and len(got) == len(wanted):
        steps = range(len(wanted))
    else:
        yield f"{path or 'it'} is {_cut(got)}, expected {_cut(wanted)}"
    for step in steps:
        yield from _places(got[step], wanted[step], f"{path}.{step}" if path else str(step))


def _cut(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
