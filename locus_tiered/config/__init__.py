"""Stacks from YAML: ``load_stack``, and what belongs to it.

``text.py`` makes values of a text, with their places; ``variables.py`` replaces references; ``models.py`` is the
schema, ``rules.py`` and ``traps.py`` what it cannot say; ``builders.py`` builds. ``registry.py`` knows the types of
tiers. Nothing but the registry is imported before the first stack is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from locus.memory.registry import register_checkpointer

from locus_tiered.config.registry import register_tier_type
from locus_tiered.core.errors import StackConfigError

if TYPE_CHECKING:
    from locus_tiered.core.layer import Layer

__all__ = ["json_schema", "load_stack", "register_tier_type"]


def load_stack(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    env: Mapping[str, str] | None = None,
    allow_import: bool = False,
) -> Layer:
    """The checkpointer that a stack file describes; see the page on configuration.

    Args:
        source: A path, or the YAML text itself (a string with a line break or a ``": "`` in it), or a mapping of what
            such a file would say.
        env: What ``${NAME}`` is looked up in; by default the process's environment.
        allow_import: Whether a tier's type may be a dotted path, which is then imported. Only for files that you
            would also run.

    Relative paths are relative to the file; in a text or a mapping, to the working directory. Nothing connects, and
    no directory is made, before the first call.

    Raises :class:`StackConfigError` with every mistake there is, each with file, line, column and path; ``mistakes``
    holds them one by one. No message shows what came from a variable or a file.
    """
    from locus_tiered.config.loader import load

    return load(source, env=env, allow_import=allow_import)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of stack files (draft 2020-12), with the types that were registered so far."""
    from locus_tiered.config.schema import schema

    return schema()


def _tiered(config_hint: str | None = None, **options: Any) -> Layer:
    """For the SDK: ``get_checkpointer("tiered:stack.yaml")``."""
    if config_hint is None:
        raise StackConfigError("which stack?", hint='write "tiered:stack.yaml"')
    unknown = options.keys() - {"env", "allow_import"}
    if unknown:
        raise StackConfigError(f"unknown option {min(unknown)!r}", hint="there is env, allow_import")
    return load_stack(config_hint, **options)


register_checkpointer("tiered", _tiered)
