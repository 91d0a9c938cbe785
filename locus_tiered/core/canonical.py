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
_REWRITABLE = re.compile(r"(?:^|[:,\[])-?(?:\d{16}|\d+(?:\.\d+)?e[+-]?\d)|(?:^|[:,\[])-0\.0(?!\d)")


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
    text = _ENCODER.encode(value)
    if _REWRITABLE.search(text):
        text = _ENCODER.encode(_settled(value))
    return text.encode()


def digest_steps(data: Mapping[str, Any], leave_out: Collection[str] = ()) -> Iterator[str | None]:
    """Yield ``None`` after every small piece of work and the digest at the end.

    A caller that must not hold the interpreter for long pauses at each ``None``. Fields named in ``leave_out``
    do not count: what a backend's normaliser touches.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"locus-tiered")
    for name in sorted(data):
        value = data[name]
        if name in leave_out:
            continue
        digest.update(b"\n" + name.encode() + b":")
        if name in SET_FIELDS and isinstance(value, list):
            digest.update(_canonical(sorted(value, key=str)))
        elif isinstance(value, list):
            for element in value:
                digest.update(_canonical(element) + b",")
                yield None
        else:
            digest.update(_canonical(value))
        yield None
    yield digest.hexdigest()


def digest_of(data: Mapping[str, Any], leave_out: Collection[str] = ()) -> str:
    """The digest of a state in the form that ``AgentState.to_checkpoint()`` gives."""
    result = ""
    for step in digest_steps(data, leave_out):
        result = step or result
    return result
