"""What pydantic found, in the words of a stack file."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from locus_tiered.config.fields import Short
from locus_tiered.config.mistakes import Mistakes, Path, did_you_mean
from locus_tiered.config.variables import Variables

__all__ = ["note"]

_MISSING = object()
_SECRET = re.compile(r"pass|secret|token|key|dsn|url|auth|header|credential|wallet|connection", re.I)
_MAPPING = ("model_type", "model_attributes_type", "dict_type", "mapping_type")
_LIST = ("list_type", "tuple_type", "set_type", "frozen_set_type")


def _locate(loc: tuple[int | str, ...], data: Any) -> Path:
    """Where in the file ``loc`` is: without what pydantic adds for the forms that a value may have."""
    path: list[int | str] = []
    here = data
    for place, part in enumerate(loc):
        inside = (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if inside:
            here = here[part]
            path.append(part)
        elif place == len(loc) - 1 and isinstance(here, dict):
            path.append(part)  # a key that is missing
    return tuple(path)


def _at(path: Path, data: Any) -> Any:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return data


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, list, tuple):
        return [model for each in get_args(annotation) for model in _models(each)]
    return []


def _sections(field: FieldInfo) -> list[type[BaseModel]]:
    """The models that a field may hold."""
    named = [each.of for each in field.metadata if isinstance(each, Short) and each.of is not None]
    return named or _models(field.annotation)


def _allowed(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that may stand at ``path``."""
    here = [model]
    for part in path:
        if isinstance(part, str):
            fields = [
                field for each in here for name, field in each.model_fields.items() if (field.alias or name) == part
            ]
            here = [found for field in fields for found in _sections(field)]
    return [field.alias or name for each in here for name, field in each.model_fields.items()]


def note(
    error: ValidationError, data: Mapping[str, Any], model: type[BaseModel], mistakes: Mistakes, variables: Variables
) -> None:
    """Note everything that ``error`` holds, except where a mistake is noted already."""
    for each in error.errors(include_url=False, include_input=False):
        path = _locate(each["loc"], data)
        if mistakes.full:
            mistakes.more = True
            return
        if not mistakes.knows(path):
            message, hint = _words(each, path, data, model, variables)
            mistakes.add(message, path, hint, key=each["type"] == "extra_forbidden")


def _words(error: Any, path: Path, data: Any, model: type[BaseModel], variables: Variables) -> tuple[str, str | None]:
    kind, context, value = error["type"], error.get("ctx", {}), _at(path, data)
    name = str(path[-1]) if path else "this"
    if path and value is not _MISSING and not isinstance(value, dict | list) and not _SECRET.search(name):
        shown = variables.show(value, path)
    else:
        shown = f"the value of {variables.shown[path]}" if path in variables.shown else "the value"
    if kind == "extra_forbidden":
        return f"unknown key {name[:60]!r}", did_you_mean(name, _allowed(model, path[:-1]))
    if kind == "missing":
        if path in variables.empty:
            return f"{name} is needed, and {variables.empty[path]} is empty", None
        return f"{name} is missing", None
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context.get("expected", "")) or [str(context.get("expected"))]
        if len(choices) == 1:
            return f"{shown} is not what this version reads", f"write {choices[0]}"
        near = did_you_mean(value, choices) if isinstance(value, str) else None
        return f"{shown} is not one of {', '.join(choices)}", near if near and near.startswith("did") else None
    if kind == "stack":
        return f"{shown} {context['message']}", context.get("hint")
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{shown} is a number, not text" if not isinstance(value, bool) else f"{shown} is not text", (
            "put it in quotes"
        )
    if value is None:
        return f"{name} has no value", "write one, or leave the key out"
    if kind in _MAPPING:
        return "a mapping belongs here", f"write {name}: {{...}}, with one of {', '.join(_allowed(model, path)[:20])}"
    if kind in _LIST:
        return "a list belongs here", "begin each item with a dash"
    message = variables.scrub(str(error["msg"]))
    message = re.sub(r"^(Input should be|Value error,|Assertion failed,) ", "", message)
    return f"{shown} is wrong: it should be {message}" if error["msg"].startswith("Input should be") else message, None
