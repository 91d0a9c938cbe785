"""What travels inside a stack: :class:`Checkpoint`, one saved state with its identity and its order.

The state inside a :class:`Body` is frozen as JSON bytes the moment it enters, is encoded at most once for all
stores of a stack, and is decoded anew for every caller: nobody's later changes reach anybody else (law 5).

Large states are encoded, digested and decoded on a thread that gives the interpreter back every millisecond or
so, because the C code underneath holds it for as long as one call lasts.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar, cast

from locus.core.messages import Message
from locus.core.state import AgentState, ReasoningStep, ToolExecution
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_jsonable_python

from locus_tiered.core.canonical import digest_of, digest_steps
from locus_tiered.core.errors import UnserialisableState
from locus_tiered.core.threads import in_thread

__all__ = ["LARGE", "Body", "Checkpoint", "Entry", "in_pieces", "plain_metadata", "state_digest"]

ITERATION_KEY = "_locus_iteration_checkpoints"
"""Where the SDK's agent lists the iteration saves of a turn, inside ``state.metadata``."""

LARGE = 128 * 1024
"""Bytes from which a state is worked on in small pieces, off the event loop."""

_DEEPEST = 200  # levels of metadata=; the SDK's states hold about 250
_SLICE = 0.001  # seconds of work between two pauses
_PAUSE = 0.00005
_SEQUENCES: Mapping[str, type[BaseModel]] = {
    "messages": Message,
    "tool_executions": ToolExecution,
    "reasoning_steps": ReasoningStep,
}

T = TypeVar("T")


def plain_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The caller's ``metadata=`` as JSON values of our own, or :class:`UnserialisableState`."""
    if not metadata:
        return {}
    try:
        plain = to_jsonable_python(dict(metadata), inf_nan_mode="null")
        json.dumps(plain, allow_nan=False)
        if _depth(plain) > _DEEPEST:
            raise ValueError("nested too deeply")
    except (TypeError, ValueError, RecursionError) as error:
        raise UnserialisableState(
            f"metadata= has no JSON form ({type(error).__name__}); nothing was saved: use strings, numbers, "
            "lists and dicts"
        ) from error
    return cast("dict[str, Any]", plain)


def _depth(value: Any) -> int:
    """How deeply containers are nested, counted up to just above what is allowed."""
    depth, level = 0, [value]
    while level and depth <= _DEEPEST:
        containers = (each for each in level if isinstance(each, dict | list))
        level = [inner for each in containers for inner in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    return depth


def _to_data(state: Any) -> dict[str, Any]:
    """``state.to_checkpoint()``, with any failure told as what it is."""
    try:
        data = state.to_checkpoint()
    except Exception as error:
        raise UnserialisableState(
            f"this state has no JSON form ({type(error).__name__}: see the cause); nothing was saved"
        ) from error
    if not isinstance(data, dict):
        raise UnserialisableState(f"to_checkpoint() gave a {type(data).__name__}, not a dict; nothing was saved")
    return data


def _dumps(data: Mapping[str, Any]) -> bytes:
    """JSON text that also holds lone surrogates, which UTF-8 cannot."""
    try:
        return json.dumps(data, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UnserialisableState(
            f"this state has no JSON form ({type(error).__name__}: see the cause); nothing was saved"
        ) from error


def _loads(encoded: bytes) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", from_json(encoded))
    except ValueError:  # a lone surrogate, which only the standard library reads
        return cast("dict[str, Any]", json.loads(encoded))


def _encode(state: Any) -> bytes:
    if type(state) is AgentState:
        try:
            return state.model_dump_json().encode()
        except (PydanticSerializationError, UnicodeEncodeError, ValueError, RecursionError):
            pass  # a lone surrogate, or no JSON form at all: the slow way tells which
        return _dumps(_to_data(state))
    # A subclass, or whatever has to_checkpoint(): what a load will give is a plain AgentState.
    data = _to_data(state)
    try:
        return _encode(AgentState.from_checkpoint(data))
    except ValidationError as error:
        raise UnserialisableState(
            f"to_checkpoint() of this {type(state).__name__} is no agent's state; nothing was saved"
        ) from error


def _encode_steps(state: AgentState) -> Iterator[bytes | None]:
    """:func:`_encode`, one element of a long sequence at a time; the last thing yielded is the result."""
    try:
        shell = state.model_dump_json(exclude=set(_SEQUENCES))
        yield None
        parts = [shell[:-1]]
        for name in _SEQUENCES:
            separator = f',"{name}":['
            for element in getattr(state, name):
                parts.append(separator + element.model_dump_json())
                separator = ","
                yield None
            parts.append(f"{separator}]" if separator != "," else "]")
        yield ("".join(parts) + "}").encode()
    except (PydanticSerializationError, UnicodeEncodeError, ValueError, RecursionError):
        yield _encode(state)


def _decode(encoded: bytes) -> AgentState:
    try:
        return AgentState.model_validate_json(encoded)
    except ValidationError:
        return AgentState.from_checkpoint(json.loads(encoded))


def _decode_steps(encoded: bytes) -> Iterator[AgentState | None]:
    data = _loads(encoded)
    yield None
    for name, kind in _SEQUENCES.items():
        elements = data.get(name, ())
        for place, element in enumerate(elements):
            elements[place] = kind.model_validate(element)  # in place: nothing large is freed at once
            yield None
    yield AgentState.from_checkpoint(data)


def _in_slices(steps: Iterator[T | None]) -> T:
    """Run ``steps`` to the end on this thread, letting others run in between."""
    result: T | None = None
    began = time.perf_counter()
    for step in steps:
        result = step
        if time.perf_counter() - began > _SLICE:
            time.sleep(_PAUSE)
            began = time.perf_counter()
    assert result is not None
    return result


def _looks_large(state: Any) -> bool:
    if type(state) is not AgentState:
        return False
    size = 512 * (len(state.messages) + len(state.tool_executions) + len(state.reasoning_steps))
    if state.metadata or state.provider_state:
        size += _weight((state.metadata, state.provider_state))
    for message in state.messages:
        size += len(message.content or "")
        if size > LARGE:
            return True
    return size > LARGE


def _weight(value: Any) -> int:
    """About how many bytes a free-form value takes as JSON; stops counting once that is large."""
    total, pending = 0, [value]
    while pending and total <= LARGE:
        value = pending.pop()
        if isinstance(value, dict):
            total += 8 * len(value)
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            total += 4 * len(value)
            pending.extend(value)
        else:
            total += len(value) if isinstance(value, str) else 8
    return total


class Body:
    """One state, as bytes and as objects, each made when first needed.

    A body is either frozen bytes, or a state that a backend handed over and that is encoded only when somebody
    needs the bytes. Whatever is given to a caller is his alone.
    """

    __slots__ = ("_digests", "_encoded", "_plain", "_state", "_taken")

    def __init__(self, encoded: bytes | None = None, *, state: AgentState | None = None) -> None:
        assert encoded is not None or state is not None
        self._encoded = encoded
        self._state = state  # nobody else's: for the first caller who asks
        self._taken = False
        self._plain: _Plain | None = None
        self._digests: dict[frozenset[str], str] = {}

    @classmethod
    async def of(cls, state: Any) -> Body:
        """Freeze a caller's state. Raises :class:`UnserialisableState`; nothing else is touched."""
        if _looks_large(state):
            # The caller waits for the save, so the values stand still meanwhile.
            return cls(await in_thread(_in_slices, _encode_steps(state)))
        return cls(_encode(state))

    @property
    def encoded(self) -> bytes:
        """The state as JSON text."""
        if self._encoded is None:
            self._encoded = _encode(self._state)
        return self._encoded

    @property
    def size(self) -> int | None:
        """Bytes of the JSON text, where it was made already."""
        return None if self._encoded is None else len(self._encoded)

    async def encode(self) -> bytes:
        """:attr:`encoded`, made off the event loop when the state is large."""
        if self._encoded is None and self._state is not None and _looks_large(self._state):
            encoded = await in_thread(_in_slices, _encode_steps(self._state))
            if self._encoded is None:  # else somebody was faster, and the state may be somebody's by now
                self._encoded = encoded
        return self.encoded

    async def digest(self, state: AgentState, leave_out: Collection[str] = ()) -> str:
        """The canonical digest, made once for all that are to hold it, of ``state``, which was taken from this body."""
        key = frozenset(leave_out)
        if key not in self._digests:
            self._digests[key] = await state_digest(state, leave_out)
        return self._digests[key]

    def hand_over(self) -> AgentState:
        """The state, where nobody else will ask this body for anything."""
        return self._state if self._state is not None else _decode(self.encoded)

    async def take(self) -> AgentState:
        """The state for one caller: shares nothing with what is stored or with what others are given.

        Made off the event loop when it is large.
        """
        encoded = self._encoded
        if encoded is None:
            encoded = await self.encode()  # before the state leaves: its new owner may change it
        if self._state is not None:
            state, self._state = self._state, None
            return state
        if self._plain is not None:
            return self._plain.state()
        if len(encoded) > LARGE:
            return await in_thread(_decode_slowly, encoded)
        if self._taken and len(encoded) <= _HOT_BYTES:
            _keep_plain(self, encoded)
        self._taken = True
        return _decode(encoded)


# A state that is asked for again and again is validated from JSON values, which is faster than from JSON text.
# Validation passes nested containers of free-form values on as they are, so those are copied first, every time.
# Only a few states are kept so: it costs memory that nobody's budget counts.
_HOT_BYTES, _HOT_BODIES = 64 * 1024, 32
_hot: deque[Body] = deque()


class _Plain:
    """A state as JSON values, and where in them containers stand that must not be shared."""

    __slots__ = ("_data", "_lock", "_nested")

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data
        self._lock = Lock()
        self._nested = [
            (free, key, value)
            for free in _free_form(data)
            for key, value in free.items()
            if isinstance(value, dict | list)
        ]

    def state(self) -> AgentState:
        if not self._nested:
            return AgentState.model_validate(self._data)
        with self._lock:
            for free, key, master in self._nested:
                free[key] = _copied(master)
            return AgentState.model_validate(self._data)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value


def _free_form(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every dictionary in a state whose values validation takes as they are."""
    for found in (data.get("metadata"), data.get("provider_state")):
        if found is not None:
            yield found
    for message in data.get("messages", ()):
        yield message.get("metadata", {})
        for call in message.get("tool_calls", ()):
            yield call.get("arguments", {})
    steps = data.get("reasoning_steps", ())
    for calls in (data.get("tool_executions", ()), *(step.get(name, ()) for step in steps for name in _CALLS)):
        for call in calls:
            yield call.get("arguments", {})


_CALLS = ("tool_calls", "tool_results")


def _keep_plain(body: Body, encoded: bytes) -> None:
    body._plain = _Plain(_loads(encoded))
    _hot.append(body)
    if len(_hot) > _HOT_BODIES:
        _hot.popleft()._plain = None


def _decode_slowly(encoded: bytes) -> AgentState:
    try:
        return _in_slices(_decode_steps(encoded))
    except ValidationError:
        return _decode(encoded)


def _data_steps(state: AgentState) -> Iterator[dict[str, Any] | None]:
    """``state.to_checkpoint()``, one element of a long sequence at a time."""
    data = state.model_dump(mode="json", exclude=set(_SEQUENCES))
    yield None
    for name in _SEQUENCES:
        data[name] = []
        for element in getattr(state, name):
            data[name].append(element.model_dump(mode="json"))
            yield None
    yield data


async def in_pieces(steps: Iterator[T | None], state: AgentState) -> T:
    """The last thing that ``steps`` yields; worked out off the event loop when ``state`` is large."""
    if _looks_large(state):
        return await in_thread(_in_slices, steps)
    return [step for step in steps if step is not None][-1]


async def state_digest(state: AgentState, leave_out: Collection[str] = ()) -> str:
    """The canonical digest of a state (see ``canonical.py``), made off the event loop when it is large.

    Taken over the state itself, so that it is the same however a store encodes it.
    """
    if not _looks_large(state):
        return digest_of(state.to_checkpoint(), leave_out)

    def slowly() -> str:
        return _in_slices(digest_steps(_in_slices(_data_steps(state)), leave_out))

    return await in_thread(slowly)


@dataclass(frozen=True, slots=True)
class Entry:
    """A checkpoint's place in its thread: its id and its stamp (``None``: saved before there were stamps)."""

    id: str
    stamp: str | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One saved state: whose it is, its order, what the caller said about it, and the state itself.

    ``stamp`` is ``None`` for a checkpoint that no ordering layer has saved. ``metadata`` is the caller's
    ``metadata=`` argument, already JSON.
    """

    thread_id: str
    id: str
    stamp: str | None
    metadata: Mapping[str, Any]
    body: Body

    @property
    def entry(self) -> Entry:
        """Its place in the thread."""
        return Entry(self.id, self.stamp)

    def moved(self, **changes: Any) -> Checkpoint:
        """The same state under another thread, id or stamp; the bytes are shared."""
        return replace(self, **changes)
