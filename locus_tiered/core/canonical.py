"""The canonical form of a state, and its digest.

A state does not come back from a store byte for byte: sets come out in any order, JSONB reorders keys and
rewrites numbers. The digest is taken over a form that all of these share, so that it tells damage from
harmless rewriting: keys sorted, the state's sets sorted, numbers from 1e15 up as floats, no negative zero.
BLAKE2b (RFC 7693) with 16 bytes: against accidents, not against an attacker.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

__all__ = ["SET_FIELDS", "digest_of", "digest_steps"]

SET_FIELDS = frozenset({"tool_loop_read_only_tools", "terminal_tools"})
"""The fields of ``AgentState`` that are sets, whose order means nothing."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
# What a JSONB round trip may rewrite: long integers, exponents, negative zero, where a value can stand. Inside a
# string a match is harmless: it only takes the slow way, which answers the same.
_NUMBER = r"(?:-?(?:\d{16}|\d+(?:\.\d+)?e[+-]?\d)|-0\.0(?!\d))"
_AT_START, _INSIDE = re.compile(_NUMBER), re.compile(r"[:,\[]" + _NUMBER)


def _settled(value: Any) -> Any:
    """``value`` with every number that a store may rewrite in one form."""
    if isinstance(value, dict):
        return {key: _settled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_settled(inner) for inner in value]
    if isinstance(value, float) and value == 0:
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) >= 1e15:
        try:
            return float(value)
        except OverflowError:
            return str(value)
    return value


def _canonical(value: Any) -> bytes:
    if value is None:
        return b"null"
    text = _ENCODER.encode(value)
    if _AT_START.match(text) or _INSIDE.search(text):
        text = _ENCODER.encode(_settled(value))
    return text.encode()


def digest_steps(data: Mapping[str, Any], leave_out: Collection[str] = ()) -> Iterator[str | None]:
    """Yield ``None`` after every small piece of work and the digest at the end.

    A caller that must not hold the interpreter for long pauses at each ``None``. Fields named in ``leave_out``
    do not count: what a backend's normaliser touches.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"locus-tiered")
    for name, value in _fields(data, leave_out):
        digest.update(b"\n" + name.encode() + b":")
        if isinstance(value, list) and name not in SET_FIELDS:
            for element in value:
                digest.update(_canonical(element) + b",")
                yield None
        else:
            digest.update(_canonical(value))
        yield None
    yield digest.hexdigest()


def _fields(data: Mapping[str, Any], leave_out: Collection[str]) -> Iterator[tuple[str, Any]]:
    """The fields that count, in their order; sets in one order of their own."""
    for name in sorted(data):
        if name not in leave_out:
            value = data[name]
            is_set = name in SET_FIELDS and isinstance(value, list)
            yield name, sorted(value, key=str) if is_set else value


def digest_of(data: Mapping[str, Any], leave_out: Collection[str] = ()) -> str:
    """The digest of a state in the form that ``AgentState.to_checkpoint()`` gives, in one go."""
    parts: list[bytes] = []
    for name, value in _fields(data, leave_out):
        text = _canonical(value)
        if isinstance(value, list) and name not in SET_FIELDS:
            text = text[1:-1] + b"," if value else b""  # each element followed by a comma, as above
        parts.append(b"\n" + name.encode() + b":" + text)
    return hashlib.blake2b(b"".join(parts), digest_size=16, person=b"locus-tiered").hexdigest()
