"""The types of tiers that a stack file can name: ours, the SDK's, and those of users.

Light on purpose: it is imported with the package. What needs a backend is looked up when a stack is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from locus.memory.checkpointer import BaseCheckpointer
from pydantic import BaseModel

from locus_tiered.core.errors import StackConfigError, shorten

__all__ = ["TierType", "register_tier_type", "tier_types"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED = frozenset(
    {"name", "write", "ack", "retry", "guard", "trace", "type", "replicated", "replicas", "tiered", "options"}
)


@dataclass(frozen=True, eq=False)
class TierType:
    """A type of tier.

    ``make`` takes the options by keyword; ``describe`` answers their model. ``example`` is how one is written.
    """

    name: str
    make: Callable[..., Any]
    describe: Callable[[], type[BaseModel]]
    summary: str = ""
    example: str | None = None
    foreign: bool = True
    """Whether it is a user's own, whose options keep their Python types."""

    @cached_property
    def options(self) -> type[BaseModel]:
        """The model of its options."""
        return self.describe()


_own: dict[str, TierType] = {}


def own_type(name: str, factory: Callable[..., Any], options: type[BaseModel] | None) -> TierType:
    """A type of a user."""

    def describe() -> type[BaseModel]:
        from locus_tiered.config.options import options_of, strict

        return options_of(name, factory, without=("config_hint",)) if options is None else strict(options)

    lines = (factory.__doc__ or "").strip().splitlines()
    return TierType(name, factory, describe, lines[0] if lines else "")


def register_tier_type(
    name: str, factory: Callable[..., BaseCheckpointer], *, options: type[BaseModel] | None = None
) -> None:
    """Make ``- name: {...}`` a tier of stack files.

    Args:
        name: A word: letters, digits, ``-`` and ``_``. Registering it again replaces it; a name that comes with the
            package cannot be taken.
        factory: Called with the options as keyword arguments whenever such a tier is built. It answers a
            checkpointer and should not connect yet.
        options: A pydantic model of the options, whose fields become the arguments, defaults included. By default
            the options are the parameters of ``factory``, and only those that a file gives are passed.

    Raises :class:`StackConfigError` when one of them cannot be used.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StackConfigError(f"{shorten(name)} is not a name for a type of tier", hint="letters, digits, - and _")
    from locus_tiered.config.kinds import built_in

    if name in _RESERVED or name in built_in():
        raise StackConfigError(f"the type {name!r} comes with locus-tiered", hint="take another name")
    if not callable(factory):
        raise StackConfigError(f"the factory of {name!r} cannot be called", hint="pass a function or a class")
    if options is not None and not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise StackConfigError(f"the options of {name!r} are not a pydantic model", hint="pass a class, or None")
    _own[name] = own_type(name, factory, options)


def tier_types() -> dict[str, TierType]:
    """Every type there is, by name: those of users, those that users gave to the SDK's registry, and ours."""
    from locus.memory import registry

    from locus_tiered.config.kinds import built_in

    known = built_in()
    # The SDK has no public way to a factory without calling it.
    for name, factory in registry._CHECKPOINTERS.items():
        if name not in known and name not in _RESERVED and name not in _own:
            known[name] = _from_sdk(name, factory)
    return {**known, **_own}


_seen: dict[str, TierType] = {}


def _from_sdk(name: str, factory: Callable[..., Any]) -> TierType:
    if name not in _seen or _seen[name].make is not factory:
        _seen[name] = own_type(name, factory, None)
    return _seen[name]
