"""The kinds of values that options have: sizes, durations, whole numbers, and sections with a short form.

Each says in its error what is wrong and what to write, and never what was written: that may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, core_schema

from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.units import parse_bytes, parse_seconds

__all__ = [
    "TIME_SCHEMA",
    "Duration",
    "Latest",
    "Location",
    "Name",
    "Real",
    "Section",
    "Short",
    "Size",
    "Span",
    "Wait",
    "Whole",
    "toggle",
    "wrong",
]


class Section(BaseModel):
    """A part of a stack file: unknown keys are mistakes, values do not show in a ``repr``."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True, protected_namespaces=()
    )

    def __repr_args__(self) -> Any:
        return [(name, ...) for name in sorted(self.model_fields_set)]


def wrong(message: str, hint: str | None = None) -> PydanticCustomError:
    """An error of a validator: how ``message`` reads after "the value"."""
    return PydanticCustomError("stack", "{message}", {"message": message, "hint": hint})


def _unit(parse: Callable[[Any, str], float], is_not: str, hint: str, *, zero: bool = False) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value is None:
            raise wrong(is_not, hint)
        number: float | None
        try:
            number = parse(value, "")
        except StackConfigError:
            number = None  # raised below: its text has the value
        if number is None:
            raise wrong(is_not, hint)
        if not zero and number == 0:
            raise wrong("must be more than 0", hint)
        return number

    return read


_SECONDS = 'write seconds, or like "250ms", "15s", "10m", "1h30m"'
_duration = _unit(parse_seconds, "is not a duration", _SECONDS)
_wait = _unit(parse_seconds, "is not a duration", _SECONDS, zero=True)
_size = _unit(parse_bytes, "is not a size", 'write bytes, or like "256MiB", "10GiB"')

TIME_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": r"^\s*(\d+(\.\d+)?\s*(ms|s|sec|m|min|h|d|w)?\s*)+$|\$\{"},
    ],
    "examples": ["15s", "10m"],
}
_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*([kKmMgGtT]?i?[bB])?\s*$|\$\{"},
    ],
    "examples": ["256MiB", "10GiB"],
}

Duration = Annotated[float, PlainValidator(_duration), WithJsonSchema(TIME_SCHEMA)]
"""Seconds above 0."""

Wait = Annotated[float, PlainValidator(_wait), WithJsonSchema(TIME_SCHEMA)]
"""Seconds, 0 or more."""

Size = Annotated[int, PlainValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
"""Bytes, more than 0."""

Span = Annotated[
    timedelta, PlainValidator(lambda value: timedelta(seconds=_duration(value))), WithJsonSchema(TIME_SCHEMA)
]
"""A duration, for a constructor that takes a ``timedelta``."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise wrong("is not a number")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise wrong("is not a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
"""A whole number; YAML's ``true`` is none."""

Real = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_finite)]
"""A number."""


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > 200:
        raise wrong("is not a name", "write a word")
    return value


Name = Annotated[str, PlainValidator(_name), WithJsonSchema({"type": "string", "minLength": 1})]
"""What something is called in errors, spans and ``explain()``."""


def _location(value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise wrong("is not a path", "write the path in quotes")
    return Path(value)


Location = Annotated[Path, PlainValidator(_location), WithJsonSchema({"type": "string", "minLength": 1})]
"""A path in the file system; a relative one is relative to the stack file."""


def _latest(value: Any) -> Literal["validate", "exclusive"] | float:
    if value in ("validate", "exclusive"):
        return value  # type: ignore[no-any-return]
    try:
        return parse_seconds(value, "")
    except StackConfigError:
        pass
    raise wrong(
        "is not a way to read the newest checkpoint",
        'write validate, exclusive, or the staleness that you allow, like "5s"',
    )


Latest = Annotated[
    Literal["validate", "exclusive"] | float,
    PlainValidator(_latest),
    WithJsonSchema({"anyOf": [{"enum": ["validate", "exclusive"]}, TIME_SCHEMA]}),
]
"""``latest=`` of a stack."""


class Short:
    """A section that has a short form: what is no mapping goes through ``read``.

    ``read(value, section)`` answers the value itself, or ``section({...})`` for what it is short for. ``of`` is the
    section, where the annotation says more than that.
    """

    def __init__(
        self, read: Callable[[Any, Callable[[Any], Any]], Any], *schemas: Mapping[str, Any], of: Any = None
    ) -> None:
        self._read, self._schemas, self.of = read, schemas, of

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(value: Any, section: Callable[[Any], Any]) -> Any:
            return section(value) if isinstance(value, dict) else self._read(value, section)

        return core_schema.no_info_wrap_validator_function(
            read, handler(source) if self.of is None else handler.generate_schema(self.of)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        whole = handler(schema)
        forms = [each for each in whole.get("anyOf", [whole]) if each != {"type": "null"}]
        return {"anyOf": [*self._schemas, *forms]}


def _toggle(value: Any, section: Callable[[Any], Any]) -> Any:
    if value is True:
        return section({})
    if value is False:
        return None
    raise wrong("is neither true, false nor a mapping", "write true for the defaults, false for none, or options")


toggle = Short(_toggle, {"type": "boolean"})
"""A section that can be ``true`` (with its defaults) or ``false`` (none)."""
