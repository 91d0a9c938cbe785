"""Damage to a state that only a digest can see.

It makes real, valid states. It does not damage how a store keeps them: truncated files are for that store's
tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from locus.core.state import AgentState
from pydantic import ValidationError

__all__ = ["damaged"]


def _leaves(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below ``node`` that holds a value one could flip."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(pairs):
        if isinstance(value, dict | list):
            yield from _leaves(value)
        elif (isinstance(value, str) and value) or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield node, key


def _flipped(value: Any, random: Random) -> Any:
    if not isinstance(value, str):
        # Never the same number again, also where one more is below the precision of a float.
        return value + 1 if value + 1 != value else 0
    position = random.randrange(len(value))
    return value[:position] + chr(ord(value[position]) ^ 1) + value[position + 1 :]


def damaged(state: AgentState, random: Random) -> AgentState:
    """``state`` with one value changed: a number, or one bit of one character, anywhere in it.

    The result loads as a state without complaint and is not equal to the original.
    """
    original = AgentState.from_checkpoint(state.to_checkpoint())
    data = original.to_checkpoint()
    # Sets come out in an order that no seed governs, so they are left alone.
    sets = {name: data.pop(name) for name, value in original if isinstance(value, frozenset)}
    places = list(_leaves(data))
    for container, key in random.sample(places, len(places)):
        before = container[key]
        container[key] = _flipped(before, random)
        try:
            candidate = AgentState.from_checkpoint({**data, **sets})
        except ValidationError:
            candidate = original
        if candidate != original:
            return candidate
        container[key] = before
    return original.model_copy(update={"iteration": original.iteration + 1})
