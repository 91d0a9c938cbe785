"""The JSON Schema of stack files, for editors: from the same models that check them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from locus_tiered.config.kinds import built_in
from locus_tiered.config.models import stack_model
from locus_tiered.config.registry import tier_types

__all__ = ["plain_schema", "schema"]

_REFERENCE = {"type": "string", "pattern": r"\$\{", "description": "A reference: ${NAME} or ${file:/path}."}


class _Generate(GenerateJsonSchema):
    """Does not warn of defaults that have no JSON form; they are left out."""

    ignored_warning_kinds = {"non-serializable-default", "skipped-choice"}


def plain_schema(model: type[BaseModel]) -> dict[str, Any]:
    """As pydantic sees it: without references to variables."""
    return model.model_json_schema(schema_generator=_Generate)


def schema(*, users_own: bool = True) -> dict[str, Any]:
    """See :func:`locus_tiered.config.json_schema`."""
    types = tier_types() if users_own else built_in()
    found = plain_schema(stack_model(tuple(types.values())))
    definitions = {name: _mended(each) for name, each in found.pop("$defs").items()}
    for leg in ("Tier", "Leg"):
        kinds = [kind for kind in (*types, "replicated") if kind in definitions[leg]["properties"]]
        definitions[leg]["oneOf"] = [{"required": [kind]} for kind in kinds]
    stack = _mended(found)
    stack["patternProperties"] = {"^x-": {"description": "Ignored: a place for anchors."}}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A stack of locus-tiered"}
    return {
        **head,
        **{k: v for k, v in stack.items() if k != "title"},
        "$defs": {**definitions, "Reference": _REFERENCE},
    }


_SCALARS = {"integer", "number", "boolean"}


def _mended(node: Any) -> Any:
    """Everywhere that a number or a word from a list may stand, a reference may stand as well."""
    if isinstance(node, list):
        return [_mended(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    if isinstance(node.get("properties"), Mapping):
        properties = {name: _option(each) for name, each in node["properties"].items()}
        rest = {key: _mended(value) for key, value in node.items() if key not in ("properties", "title")}
        return {**rest, "properties": properties}
    plain = {key: _mended(value) for key, value in node.items() if key != "title"}
    if plain.get("type") in _SCALARS or "enum" in plain or "const" in plain:
        about = {key: plain.pop(key) for key in ("default", "description") if key in plain}
        return {"anyOf": [plain, {"$ref": "#/$defs/Reference"}], **about}
    return plain


def _option(node: Any) -> Any:
    mended = _mended(node)
    if isinstance(mended, dict) and mended.get("default", ...) is None:
        mended.pop("default")
    return mended
