"""``configuration.md`` and ``stack.schema.json``: the models of ``locus_tiered.config``, and ``configuration.in``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from locus_tiered.config.kinds import built_in
from locus_tiered.config.models import stack_model
from locus_tiered.config.schema import plain_schema, schema

__all__ = ["configuration", "stack_schema"]

_HERE = Path(__file__).parent

# By the name of a definition in the schema: its heading, and what is said before its table.
_SECTIONS = {
    "JournalConfig": (
        "journal",
        "`journal: ./journal` is short for `journal: {path: ./journal}`. With `latest: exclusive` the journal, too, "
        "takes it that nobody else writes these threads.",
    ),
    "TraceConfig": ("trace", "Without this key nothing is traced. See [observability](observability.md)."),
    "RetryConfig": ("retry", "Beside a store. See [resilience](resilience.md)."),
    "BudgetConfig": ("budget", "In `retry`."),
    "GuardConfig": ("guard", "Beside a store; inside the retry, whichever is written first."),
    "Timeouts": ("timeout", "In `guard`. `timeout: 5s` is one timeout for every operation."),
    "BreakerConfig": ("breaker", "In `guard`."),
    "MemoryOptions": ("memory", ""),
    "DirectoryOptions": ("directory", ""),
    "Replicated": (
        "replicated",
        "`retry` and `guard` go beside each replica. A `journal` beside `tiers` is used for hints where nothing is "
        "written behind.",
    ),
}
_OF_THE_SDK = ("sdk-memory", "file", "http", "redis", "postgresql", "pg", "mysql", "opensearch", "s3", "oci", "oracle")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _kind(node: dict[str, Any]) -> str:
    """What may be written, in few words."""
    examples = node.get("examples")
    if examples is not None:
        return "size" if "MiB" in examples[0] else "duration"
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_kind(each) for each in node["anyOf"]))
    if "$ref" in node:
        heading = _SECTIONS.get(node["$ref"].rsplit("/", 1)[-1])
        return "options" if heading is None else f"[options](#{heading[0]})"
    if "enum" in node:
        return ", ".join(f"`{each}`" for each in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    kinds = {
        "integer": "whole number",
        "boolean": "`true`, `false`",
        "null": "`null`",
        "string": "text",
        "array": "list",
        "object": "mapping",
    }
    return kinds.get(node.get("type", ""), node.get("type", "anything"))


def _default(node: dict[str, Any], needed: bool) -> str:
    if needed:
        return "needed"
    value = node.get("default")
    if value is None or value in ("", []) or isinstance(value, dict):
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**20 and value % 2**20 == 0:
        return f"`{value // 2**20}MiB`"
    kinds = json.dumps(node)
    if isinstance(value, float) and "duration" not in kinds and '"15s"' in kinds:
        return f"`{value:g}s`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _options(definition: dict[str, Any], without: tuple[str, ...] = ()) -> str:
    needed = definition.get("required", [])
    rows = [
        (f"`{name}`", _kind(node), _default(node, name in needed), node.get("description", ""))
        for name, node in definition.get("properties", {}).items()
        if name not in without
    ]
    return _table(("key", "value", "default", "meaning"), rows)


def _sdk_options(definition: dict[str, Any]) -> str:
    needed = definition.get("required", [])
    rows = [
        (f"`{name}`", _kind(node), _default(node, name in needed))
        for name, node in definition.get("properties", {}).items()
    ]
    return _table(("key", "value", "default"), rows)


def _types_table() -> str:
    types = built_in()
    rows = [(f"`{each.name}`", each.summary, f"`{each.example}`") for each in types.values()]
    rows.append(
        ("`replicated`", "Several equal stores as one tier: `ReplicatedCheckpointer`", "[see below](#replicated)")
    )
    return _table(("type", "what it is", "how it is written"), rows)


def configuration() -> str:
    """``configuration.md``."""
    from docs.generate import GENERATED

    types = built_in()
    found = plain_schema(stack_model(tuple(types.values())))
    definitions = found["$defs"]
    prose = (_HERE / "configuration.in").read_text(encoding="utf-8")
    sections = []
    for name in (
        "JournalConfig",
        "TraceConfig",
        "RetryConfig",
        "BudgetConfig",
        "GuardConfig",
        "Timeouts",
        "BreakerConfig",
    ):
        heading, said = _SECTIONS[name]
        sections.append(
            f"### {heading}\n\n{definitions[name]['description']}\n\n{said}\n\n{_options(definitions[name])}"
        )
    stores = []
    for name in ("MemoryOptions", "DirectoryOptions", "Replicated"):
        heading, said = _SECTIONS[name]
        before = "\n\n".join(part for part in (definitions[name]["description"], said) if part)
        stores.append(f"### {heading}\n\n{before}\n\n{_options(definitions[name])}")
    for name in _OF_THE_SDK:
        definition = definitions.get(f"{name}_options", {})
        table = _sdk_options(definition) if definition.get("properties") else "No options.\n"
        stores.append(f"### {name}\n\n{types[name].summary}. `{types[name].example}`\n\n{table}")
    tier = definitions["Tier"]
    return (
        prose.replace("{{generated}}", GENERATED)
        .replace("{{types}}", _types_table())
        .replace("{{stack}}", _options(found))
        .replace("{{tier}}", _options(tier, without=(*types, "replicated")))
        .replace("{{sections}}", "\n".join(sections).rstrip() + "\n")
        .replace("{{stores}}", "\n".join(stores).rstrip() + "\n")
    )


def stack_schema() -> str:
    """``stack.schema.json``: what editors check a stack file with."""
    head = {"$comment": "Generated by `python -m docs.generate`. Do not edit."}
    return json.dumps({**head, **schema(users_own=False)}, indent=1, ensure_ascii=False) + "\n"
