"""What the command line wants to know of a state: its size, its digest, whether a turn in it waits for somebody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from locus.core.messages import Message, Role
from locus.core.state import AgentState

from locus_tiered.core.canonical import SET_FIELDS, digest_of
from locus_tiered.core.checkpoint import ITERATION_KEY, Checkpoint
from locus_tiered.core.stamp import stamp_seconds
from locus_tiered.core.traits import Traits

__all__ = [
    "as_kept",
    "changes_between",
    "digest",
    "is_iteration_save",
    "same_message",
    "saved_at",
    "size_of",
    "state_of",
    "waits_for",
]


_NOTED = "locus_at"


def saved_at(checkpoint: Checkpoint, state: AgentState | None = None) -> float | None:
    """When it was saved, in seconds since the epoch: by its stamp, else by what the state says of itself."""
    if checkpoint.stamp is not None:
        return stamp_seconds(checkpoint.stamp)
    return None if state is None else state.updated_at.timestamp()


async def state_of(checkpoint: Checkpoint) -> AgentState:
    """The state, which may be asked for again."""
    await checkpoint.body.encode()
    return await checkpoint.body.take()


async def size_of(checkpoint: Checkpoint) -> int:
    """The bytes of the state's JSON text."""
    return len(await checkpoint.body.encode())


def digest(state: AgentState) -> str:
    """The canonical digest of a state, without the time that ``PgCheckpointer`` notes in every message."""
    data = state.to_checkpoint()
    for message in data.get("messages", ()):
        message.get("metadata", {}).pop(_NOTED, None)
    return digest_of(data)


def as_kept(state: AgentState, traits: tuple[Traits, ...]) -> AgentState:
    """The state as those backends change it before they store it (retention, redaction)."""
    for each in traits:
        if each.normalise is not None:
            state = each.normalise(state)
    return state


def waits_for(state: AgentState) -> str | None:
    """What a paused turn waits for, or ``None``.

    A graph writes its interrupt into the state's metadata. An agent that is interrupted saves the call that asks
    without a result; a turn that was cancelled inside a call looks the same, and is treated the same.
    """
    metadata = state.metadata
    if metadata.get("interrupt") is not None or metadata.get("interrupted_node") is not None:
        return f"an answer at the graph's node {metadata.get('interrupted_node')!r}"
    answered = {message.tool_call_id for message in state.messages if message.role == Role.TOOL}
    for message in reversed(state.messages):
        if message.role == Role.ASSISTANT and message.tool_calls:
            names = [call.name for call in message.tool_calls if call.id not in answered]
            return f"a result of {', '.join(names)}()" if names else None
    return None


def is_iteration_save(state: AgentState, checkpoint_id: str) -> bool:
    """Whether the agent made this checkpoint inside a turn, and deletes it when the turn ends."""
    listed = state.metadata.get(ITERATION_KEY)
    return isinstance(listed, list | tuple) and checkpoint_id in listed


def changes_between(before: AgentState, after: AgentState) -> Iterator[tuple[str, Any, Any]]:
    """What differs, as ``(path, before, after)``; ``None`` stands for what is not there.

    The time that ``PgCheckpointer`` notes in every message that it stores is no difference.
    """
    yield from _differences("", _plain(before), _plain(after))


def same_message(one: Message, two: Message) -> bool:
    """Whether two messages differ in nothing but the time that ``PgCheckpointer`` notes in them."""
    bare = [
        each.model_copy(update={"metadata": {k: v for k, v in each.metadata.items() if k != _NOTED}})
        for each in (one, two)
    ]
    return bare[0] == bare[1]


def _plain(state: AgentState) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(state.to_checkpoint()))
    for name in SET_FIELDS:
        if isinstance(data.get(name), list):
            data[name] = sorted(data[name], key=str)
    for message in data.get("messages", ()):
        message.get("metadata", {}).pop(_NOTED, None)
    return data


def _differences(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if before == after and isinstance(before, bool) == isinstance(after, bool):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            yield from _differences(f"{path}.{key}" if path else key, before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list):
        for place in range(max(len(before), len(after))):
            pair = (items[place] if place < len(items) else None for items in (before, after))
            yield from _differences(f"{path}[{place}]", *pair)
    else:
        yield path, before, after
