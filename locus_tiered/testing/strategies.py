"""Hypothesis strategies: real agent states, metadata, and ids that have broken a backend before.

:func:`agent_states` promises states that any faithful checkpointer gives back equal: each survives
``to_checkpoint`` and a trip through JSON text. Within that it is as nasty as the SDK allows: lone surrogates,
``NUL``, ``-0.0``, ``1e16``, integers beyond 64 bits, dates before the epoch, empty and nested containers.

It does not make states that change by themselves on the way (tuples and dates in ``metadata``, ``nan``):
those are for a contract to speak about.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from hypothesis import strategies as st
from locus.core.messages import Message, Role, ToolCall
from locus.core.state import AgentState, ReasoningStep, ToolExecution

from locus_tiered.testing.model import brief

__all__ = [
    "HOSTILE_IDS",
    "PLAIN_IDS",
    "agent_states",
    "few_ids",
    "json_values",
    "metadata_dicts",
    "metadata_of_seed",
    "quick_metadata",
    "quick_states",
    "state_of_seed",
    "texts",
]

HOSTILE_IDS: tuple[str, ...] = (
    # What careless backends confuse: sanitised, nested, joined by a colon...
    "a/b",
    "a_b",
    "a:b",
    "a b",
    "a%2Fb",
    "A_B",
    "a",
    "a#1",
    "a_1",
    "u",
    "u:v",
    "w",
    "v:w",
    # ... meaning something to a file system, an object store or a key-value adapter,
    ".",
    "..",
    "../a",
    "/",
    "_latest",
    "latest",
    "_checkpoints",
    "x",
    "x.meta",
    "x.json",
    ":",
    "*",
    " ",
    # ... cut off somewhere, or normalised.
    "long-" * 819 + "x",
    "long-" * 819 + "y",
    "nul\0",
    "nul",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{CYRILLIC SMALL LETTER A}",
    "\N{FULLWIDTH LATIN SMALL LETTER A}",
    "\N{KELVIN SIGN}",
    "K",
    "k",
    "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}/1",
    "\N{SPOOL OF THREAD}\N{ZERO WIDTH JOINER}\N{WAVING WHITE FLAG}",
)
"""Ids that were mixed up, refused or escaped a directory somewhere. Any two of them are different ids."""

PLAIN_IDS: tuple[str, ...] = ("t1", "t2", "t3", "t-4", "thread_5", "Thread6", "7", "a1b2c3d4")
"""Ids that every backend keeps apart, for those that do not promise more."""


_NASTY = ("", "\ud800", "a\udfffb", "nul\0")
_WORDS = ("source", "step", "tags", "\u2028", '"\\', "\N{PILE OF POO}", "\N{RIGHT-TO-LEFT OVERRIDE}abc")
_NUMBERS: tuple[float | int, ...] = (0.0, -0.0, 1e16, 1e-7, 0.1, 1.5e300, 2**53 + 1, 10**30, -1)
_EPOCH = datetime.fromtimestamp(0, UTC)

_CARELESS: tuple[Callable[[str], str], ...] = (
    lambda name: re.sub(r"\W", "_", name),
    lambda name: name[:255],
    lambda name: name.casefold(),
    lambda name: unicodedata.normalize("NFKC", name),
    lambda name: name.split("/")[0],
    lambda name: name.split(":")[0],
    lambda name: name.split(":")[-1],
    lambda name: name.split("\0")[0],
    lambda name: name.split(".")[0],
    lambda name: name.strip("_"),
)
"""What backends have done to ids, each of which makes some of them one."""


def _confusable(pool: Sequence[str]) -> list[list[str]]:
    """The groups of ids in ``pool`` that one of the careless ways would mix up."""
    groups: dict[tuple[int, str], list[str]] = {}
    for number, careless in enumerate(_CARELESS):
        for name in pool:
            groups.setdefault((number, careless(name)), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


class _Few(list[str]):
    """A few ids, printed so that a long one does not fill the screen."""

    def __repr__(self) -> str:
        return brief(list(self))


def few_ids(pool: Sequence[str]) -> st.SearchStrategy[list[str]]:
    """Two to four different ids of ``pool``, often such as are easily confused."""

    def some(names: Sequence[str]) -> st.SearchStrategy[list[str]]:
        return st.lists(st.sampled_from(names), min_size=min(2, len(names)), max_size=4, unique=True).map(_Few)

    groups = _confusable(pool)
    return st.sampled_from(groups).flatmap(some) | some(pool) if groups else some(pool)


def _has_no_surrogate(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _keys(*, hostile: bool) -> st.SearchStrategy[str]:
    # Pydantic writes a lone surrogate in a value, but not in a key: ``to_checkpoint`` raises, or at the top
    # of ``metadata`` silently replaces it.
    return st.sampled_from(_WORDS) | texts(hostile=hostile).filter(_has_no_surrogate)


def _survives(text: str) -> bool:
    # Two lone surrogates that stand side by side come out of JSON as one character.
    return bool(json.loads(json.dumps(text)) == text)


def texts(*, hostile: bool = True, max_size: int = 12) -> st.SearchStrategy[str]:
    """Short texts; ``hostile=False``: without what PostgreSQL's ``jsonb`` refuses, ``NUL`` and surrogates."""
    if not hostile:
        return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=max_size)
    return st.sampled_from(_NASTY + _WORDS) | st.text(st.characters(), max_size=max_size).filter(_survives)


def _numbers() -> st.SearchStrategy[float | int]:
    finite = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    return st.sampled_from(_NUMBERS) | st.integers() | finite


def json_values(*, hostile: bool = True, max_leaves: int = 6) -> st.SearchStrategy[Any]:
    """Values that JSON text gives back as they were, nested."""
    words, keys = texts(hostile=hostile), _keys(hostile=hostile)
    leaves = st.none() | st.booleans() | _numbers() | words
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=max_leaves,
    )


def metadata_dicts(*, hostile: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """What a user passes as ``metadata=`` or keeps in a state's own."""
    return st.dictionaries(_keys(hostile=hostile), json_values(hostile=hostile, max_leaves=4), max_size=3)


def agent_states(*, hostile: bool = True) -> st.SearchStrategy[AgentState]:
    """Varied states as an agent would save them.

    ``hostile=False`` leaves out the texts that PostgreSQL's ``jsonb`` refuses (``NUL``, lone surrogates).
    """
    words, arguments = texts(hostile=hostile), metadata_dicts(hostile=hostile)
    moments = st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
    optional_words = st.none() | words
    calls = st.builds(ToolCall, id=words, name=words, arguments=arguments)
    messages = st.builds(
        Message,
        role=st.sampled_from(Role),
        content=optional_words,
        tool_calls=st.lists(calls, max_size=2),
        metadata=arguments,
    )
    executions = st.builds(
        ToolExecution,
        tool_name=words,
        tool_call_id=words,
        arguments=arguments,
        result=optional_words,
        error=optional_words,
        duration_ms=st.none() | st.floats(0, 1e16),
        timestamp=moments,
    )
    steps = st.builds(
        ReasoningStep,
        iteration=st.integers(0, 50),
        thought=optional_words,
        tool_calls=st.lists(calls, max_size=1),
        confidence_delta=st.sampled_from([0.0, -0.0, 0.1, -0.25]),
        timestamp=moments,
    )
    return st.builds(
        AgentState,
        run_id=words,
        agent_id=optional_words,
        messages=st.lists(messages, max_size=3).map(tuple),
        iteration=st.integers(0, 50),
        tool_executions=st.lists(executions, max_size=2).map(tuple),
        reasoning_steps=st.lists(steps, max_size=2).map(tuple),
        confidence=st.floats(0, 1),
        confidence_history=st.lists(st.floats(0, 1), max_size=3).map(tuple),
        tool_history=st.lists(words, max_size=3).map(tuple),
        tool_loop_read_only_tools=st.frozensets(words, max_size=4),
        tool_loop_warnings=st.lists(st.tuples(words, st.integers(0, 9)), max_size=2).map(tuple),
        terminal_tools=st.frozensets(words, max_size=4),
        total_tokens_used=st.integers(0, 2**70),
        cost_usd_used=st.sampled_from([0.0, -0.0, 1e-9, 1e16, 0.30000000000000004]),
        errors=st.lists(words, max_size=2).map(tuple),
        provider_state=st.none() | arguments,
        metadata=arguments,
        started_at=moments,
        updated_at=moments,
    )


def quick_metadata(*, hostile: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """As :func:`metadata_dicts`, from one number each: poorer, and far cheaper to draw."""
    return st.builds(metadata_of_seed, st.integers(0, 2**16), hostile=st.just(hostile))


def quick_states(*, hostile: bool = True) -> st.SearchStrategy[AgentState]:
    """As :func:`agent_states`, from one number each: for programs with many saves."""
    return st.builds(state_of_seed, st.integers(0, 2**16), hostile=st.just(hostile))


def metadata_of_seed(seed: int, hostile: bool = True) -> dict[str, Any]:
    """The metadata that :func:`quick_metadata` draws for ``seed``; none for 0."""
    return _Quick(seed, hostile).metadata()


def state_of_seed(seed: int, hostile: bool = True) -> AgentState:
    """The state that :func:`quick_states` draws for ``seed``; the plainest for 0."""
    return _Quick(seed, hostile).state()


class _Quick:
    def __init__(self, seed: int, hostile: bool) -> None:
        self._seed = seed
        self._random = Random(seed)
        self._words = [*_WORDS, *(_NASTY if hostile else ())]

    def _value(self, depth: int = 2) -> Any:
        kind = self._random.randrange(8 if depth else 5)
        if kind < 2:
            return self._random.choice(self._words)
        if kind < 5:
            return self._random.choice([None, True, False, *_NUMBERS])
        values = [self._value(depth - 1) for _ in range(self._random.randrange(3))]
        return values if kind == 5 else dict(zip(_WORDS, values, strict=False))

    def metadata(self) -> dict[str, Any]:
        if self._seed == 0:
            return {}
        keys = self._random.sample(_WORDS, self._random.randrange(1, 4))
        return {key: self._value() for key in keys}

    def state(self) -> AgentState:
        if self._seed == 0:
            return AgentState(run_id="", started_at=_EPOCH, updated_at=_EPOCH)
        word = self._random.choice(self._words)
        call = ToolCall(id="call", name="tool", arguments=self.metadata())
        message = Message(role=Role.ASSISTANT, content=word, tool_calls=[call], metadata=self.metadata())
        execution = ToolExecution(
            tool_name="tool", tool_call_id="call", arguments=self.metadata(), result=word, timestamp=_EPOCH
        )
        return AgentState(
            run_id=f"{self._seed}",
            messages=(message, Message.user(word)),
            tool_executions=(execution,),
            confidence_history=(0.0, 1e-7),
            terminal_tools=frozenset(self._random.sample(_WORDS, 3)),
            cost_usd_used=self._random.choice([0.0, -0.0, 1e16]),
            provider_state=self.metadata() if self._seed % 2 else None,
            metadata=self.metadata(),
            started_at=_EPOCH + timedelta(microseconds=self._random.getrandbits(50)),
            updated_at=_EPOCH,
        )
