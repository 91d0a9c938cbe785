"""Agent states of a wanted size, as a real agent with a tool leaves them."""

from __future__ import annotations

from locus.core.messages import Message, ToolCall, ToolResult
from locus.core.state import AgentState, ToolExecution

__all__ = ["conversation", "encoded_size", "text_state", "texts"]

_WORDS = "the parcel left the depot in Lisbon and is expected on Thursday before noon "


def _text(size: int, number: int) -> str:
    head = f"{number:06d} "
    return (head + _WORDS * (size // len(_WORDS) + 1))[:size]


def conversation(messages: int, *, text: int = 200) -> AgentState:
    """A state of exactly so many messages: questions, tool calls with their results, answers.

    ``text`` is the length of each message's text. One turn has five calls, hence twelve messages.
    """
    told: list[Message] = []
    calls: list[ToolExecution] = []
    while len(told) < messages:
        told.append(Message.user(_text(text, len(told))))
        for _ in range(5):
            call_id = f"call_{len(calls):06d}"
            arguments = {"order": f"ord-{len(calls)}", "fields": ["status", "eta"]}
            answer = _text(text, len(told))
            told.append(Message.assistant(None, [ToolCall(id=call_id, name="look_up", arguments=arguments)]))
            told.append(Message.tool(ToolResult(tool_call_id=call_id, name="look_up", content=answer)))
            calls.append(
                ToolExecution(
                    tool_name="look_up", tool_call_id=call_id, arguments=arguments, result=answer, duration_ms=12.5
                )
            )
        told.append(Message.assistant(_text(text, len(told))))
    kept = tuple(told[:messages])
    answered = {message.tool_call_id for message in kept if message.tool_call_id is not None}
    return AgentState(
        agent_id="bench",
        messages=kept,
        tool_executions=tuple(call for call in calls if call.tool_call_id in answered),
        metadata={"customer": {"name": "Ada", "tags": ["new", "priority"]}},
    )


def texts(messages: int, *, text: int = 200) -> AgentState:
    """A state of so many messages, questions and answers in turn, without any tool."""
    makers = (Message.user, Message.assistant)
    told = tuple(makers[number % 2](_text(text, number)) for number in range(messages))
    return AgentState(agent_id="bench", messages=told)


def text_state(size: int, number: int) -> AgentState:
    """A state of about ``size`` bytes of JSON in one message; its text is its own for every ``number``."""
    return AgentState(agent_id="bench", messages=(Message.user(_text(max(1, size - _BARE), number)),))


def encoded_size(state: AgentState) -> int:
    """The bytes of its JSON text."""
    return len(state.model_dump_json().encode())


_BARE = encoded_size(AgentState(agent_id="bench", messages=(Message.user(""),)))
