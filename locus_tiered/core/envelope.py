"""The envelope: a checkpoint's identity and order, carried inside the state that a backend stores.

It rides in the saved state's ``metadata["_locus_tiered"]`` and in the ``metadata=`` argument::

    {"v": 1, "stamp": ..., "thread": ..., "id": ..., "digest": ..., "sdk": ..., "check": ...}

``check`` is over the envelope itself, in the same way in every version. ``thread`` and ``id`` unmask a backend
that answers with somebody else's state, ``digest`` unmasks damage. The digest is compared only by the version
of the SDK that wrote it: another one may add or drop fields. The caller's own ``metadata=`` is folded in as
``metadata``, because few backends give it back. A state that already carries an envelope (a stack inside a
stack) keeps it, folded in as ``outer``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered.core.canonical import digest_of
from locus_tiered.core.checkpoint import Body, Checkpoint, in_pieces, state_digest
from locus_tiered.core.errors import CorruptCheckpoint, shorten
from locus_tiered.core.ids import IdRule, plain_text
from locus_tiered.core.logs import logger_for
from locus_tiered.core.stamp import is_stamp
from locus_tiered.core.traits import Traits

__all__ = ["KEY", "VERSION", "Envelope", "corrupt", "seal", "unseal", "user_metadata"]

logger = logger_for(__name__)

KEY = "_locus_tiered"
VERSION = 1
SDK = version("locus-sdk")
_TEXT = IdRule(plain_text)  # some databases keep no NUL and no lone surrogate inside JSON either


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one envelope says."""

    stamp: str
    thread: str
    id: str
    digest: str | None
    sdk: str | None

    @classmethod
    def read(cls, metadata: Any) -> Envelope | None:
        """The envelope in a metadata mapping; ``None`` when there is none that makes sense."""
        found = metadata.get(KEY) if isinstance(metadata, Mapping) else None
        if not isinstance(found, Mapping) or not isinstance(found.get("v"), int):
            return None
        stamp, thread, checkpoint_id = found.get("stamp"), found.get("thread"), found.get("id")
        if not (isinstance(stamp, str) and isinstance(thread, str) and isinstance(checkpoint_id, str)):
            return None
        if not is_stamp(stamp) or found.get("check") != _check(found):
            return None
        digest, sdk = found.get("digest"), found.get("sdk")
        return cls(
            stamp,
            _TEXT.decode(thread) or thread,
            _TEXT.decode(checkpoint_id) or checkpoint_id,
            digest if isinstance(digest, str) else None,
            sdk if isinstance(sdk, str) else None,
        )

    def names(self, thread_id: str, checkpoint_id: str | None) -> bool:
        """Whether it belongs to this thread and id (``None``: to any id of the thread)."""
        return self.thread == thread_id and checkpoint_id in (None, self.id)


def _check(envelope: Mapping[str, Any]) -> str:
    """The check over everything else that an envelope holds."""
    held = {key: value for key, value in envelope.items() if key != "check"}
    return digest_of(held)[:16]


def user_metadata(metadata: Any) -> dict[str, Any]:
    """The caller's own part of a metadata mapping."""
    return {key: value for key, value in metadata.items() if key != KEY} if isinstance(metadata, Mapping) else {}


async def seal(checkpoint: Checkpoint, traits: Traits) -> tuple[AgentState, dict[str, Any]]:
    """The state and the metadata that a backend is to store for a stamped checkpoint."""
    assert checkpoint.stamp is not None
    state = await checkpoint.body.take()
    envelope: dict[str, Any] = {
        "v": VERSION,
        "stamp": checkpoint.stamp,
        "thread": _TEXT.encode(checkpoint.thread_id),
        "id": _TEXT.encode(checkpoint.id),
        "digest": await checkpoint.body.digest(state, traits.digest_leaves_out),
        "sdk": SDK,
    }
    inside = dict(envelope)
    if checkpoint.metadata:
        inside["metadata"] = dict(checkpoint.metadata)
    if KEY in state.metadata:
        inside["outer"] = state.metadata[KEY]
    inside["check"], envelope["check"] = _check(inside), _check(envelope)
    sealed = state.model_copy(update={"metadata": {**state.metadata, KEY: inside}})
    return sealed, {**checkpoint.metadata, KEY: envelope}


async def unseal(
    state: AgentState, thread_id: str, checkpoint_id: str | None, member: str, traits: Traits
) -> Checkpoint:
    """The checkpoint in a state that a backend answered with, checked against what was asked for.

    Raises :class:`CorruptCheckpoint` for damage and for somebody else's state. A state whose envelope fits
    neither its content nor the question was saved by someone who had loaded it without the stack and carried
    the envelope along: it counts as saved without a stack.
    """
    envelope = Envelope.read(state.metadata) if KEY in state.metadata else None
    if envelope is None:
        if KEY in state.metadata:
            raise corrupt(member, thread_id, checkpoint_id, "its envelope is not one that was written")
        return Checkpoint(thread_id, checkpoint_id or "", None, {}, await _body(state, traits))
    inside = state.metadata[KEY]
    own = user_metadata(state.metadata)
    if "outer" in inside:
        own[KEY] = inside["outer"]
    bare = state.model_copy(update={"metadata": own})
    intact = True
    if envelope.digest is not None and envelope.sdk == SDK:
        intact = await state_digest(bare, traits.digest_leaves_out) == envelope.digest
    body = await _body(bare, traits)
    if envelope.names(thread_id, checkpoint_id):
        if not intact:
            raise corrupt(member, thread_id, envelope.id, "what it holds is not what was saved (digest)")
        return Checkpoint(thread_id, envelope.id, envelope.stamp, user_metadata(inside.get("metadata")), body)
    if intact:
        raise corrupt(
            member,
            thread_id,
            checkpoint_id,
            f"it answered with {envelope.id!r} of thread {shorten(envelope.thread)}",
        )
    logger.debug("%s: a checkpoint of thread %s carries another one's envelope", member, shorten(thread_id))
    return Checkpoint(thread_id, checkpoint_id or "", None, {}, body)


async def _body(state: AgentState, traits: Traits) -> Body:
    if traits.shares_values and isinstance(state, AgentState):
        state = await in_pieces(_unshared_steps(state), state)
    return Body(state=state)


def _unshared_steps(state: AgentState) -> Iterator[AgentState | None]:
    """``state`` with every value copied that a backend's copy may share with it."""
    changes: dict[str, Any] = {"metadata": deepcopy(state.metadata), "provider_state": deepcopy(state.provider_state)}
    yield None
    for name in ("messages", "tool_executions", "reasoning_steps"):
        elements = getattr(state, name)
        if any(_holds_values(element) for element in elements):
            copies = []
            for element in elements:
                copies.append(deepcopy(element))
                yield None
            changes[name] = tuple(copies)
    yield state.model_copy(update=changes)


def _holds_values(element: Any) -> bool:
    return not isinstance(element, Message) or bool(element.metadata) or bool(element.tool_calls)


def corrupt(member: str, thread_id: str, checkpoint_id: str | None, what: str) -> CorruptCheckpoint:
    """The error for damage, and for somebody else's state."""
    return CorruptCheckpoint(
        f"{member}, thread {shorten(thread_id)}, checkpoint {shorten(checkpoint_id)}: {what}. Nothing was changed; "
        "other checkpoints of the thread can still be loaded by id",
        member=member,
        thread_id=thread_id,
        checkpoint_id=checkpoint_id,
    )
