"""Options of a tier type, from the signature of what makes it."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, create_model

from locus_tiered.config.fields import Duration, Location, Real, Section, Span, Whole

__all__ = ["options_of", "strict"]

_PLAIN: Mapping[Any, Any] = {
    int: Whole,
    float: Real,
    timedelta: Span,
    Path: Location,
    SecretStr: str,
    str: str,
    bool: bool,
}


def _written(annotation: Any, seconds: bool) -> Any:
    """What a file may hold for a parameter of this type; ``None`` when it can hold nothing that fits."""
    if annotation is float and seconds:
        return Duration
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin = get_origin(annotation)
    if annotation is Any or origin is Literal:
        return annotation
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        if Path in kinds:
            written: Any = Location
        elif SecretStr in kinds:
            written = str
        else:
            forms = [form for form in (_written(kind, seconds) for kind in kinds) if form is not None]
            written = forms[0] if len(forms) == 1 else Any if forms else None
        return written if written is None or len(kinds) == len(get_args(annotation)) else written | None
    if (origin or annotation) in (list, tuple, dict, set, frozenset):
        return annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


_NEEDED = inspect.Parameter.empty
_SHOWN = (str, int, float, bool, list)


class Open(Section):
    """Options that nobody can check: whatever makes the checkpointer takes any."""

    model_config = ConfigDict(extra="allow")


def _hints(made_by: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(made_by.__init__ if isinstance(made_by, type) else made_by)  # type: ignore[misc]
    except Exception:  # noqa: BLE001 - a name that exists for type checkers only
        return {}


def options_of(
    name: str,
    made_by: Callable[..., Any],
    *,
    more: type[BaseModel] | None = None,
    without: Collection[str] = (),
    paths: Collection[str] = (),
) -> type[Section]:
    """The options that ``made_by`` takes by keyword, as a model.

    Args:
        name: The type's name in a file.
        made_by: A class or a function.
        more: The model that its ``**kwargs`` go to; without one, a ``**kwargs`` takes anything.
        without: Parameters that no file can give.
        paths: Parameters that are paths in the file system.

    A parameter that begins with an underscore, or whose type no file can hold, is left out.
    """
    hints, anything = _hints(made_by), False
    found: dict[str, tuple[Any, Any]] = {}
    try:
        parameters = list(inspect.signature(made_by).parameters.values())
    except (TypeError, ValueError):  # something written in C
        parameters, anything = [], True
    for each in parameters:
        if each.kind is each.VAR_KEYWORD:
            anything = more is None
            for option, field in (more.model_fields if more else {}).items():
                default = _NEEDED if field.is_required() else field.get_default(call_default_factory=True)
                found.setdefault(option, (field.annotation, default))
        elif each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            found[each.name] = (hints.get(each.name, Any), each.default)
    fields: dict[str, tuple[Any, Any]] = {}
    for option, (annotation, default) in found.items():
        written = _written(annotation, seconds="timeout" in option)
        if option in paths:
            written = Location | None if default is None else Location
        if written is None or option.startswith("_") or option in without:
            continue
        default = default.get_secret_value() if isinstance(default, SecretStr) else default
        # Shown in tables and to editors; what a file does not give is not passed on.
        shown = default if isinstance(default, _SHOWN) else None
        # Under a name of our own: one like "schema" or "copy" is a method of every model.
        option_field: Any = Field(alias=option) if default is _NEEDED else Field(default=shown, alias=option)
        fields[f"option_{len(fields)}"] = (written, option_field)
    base = Open if anything else Section
    return create_model(f"{name} options", __base__=base, __doc__=f"Options of `{name}`.", **fields)  # type: ignore[call-overload, no-any-return]


def strict(options: type[BaseModel]) -> type[BaseModel]:
    """A user's model, for which unknown keys are mistakes unless it says that it takes them."""
    if options.model_config.get("extra") == "allow":
        return options
    config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    return type(
        options.__name__,
        (options,),
        {"model_config": config, "__doc__": options.__doc__, "__module__": options.__module__},
    )
