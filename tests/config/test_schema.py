"""The JSON Schema says what the models say, and the example files keep to both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from locus_tiered import WriteBehindCheckpointer, load_stack, register_tier_type
from locus_tiered.config import json_schema, registry
from locus_tiered.config.schema import schema
from locus_tiered.core.errors import StackConfigError
from locus_tiered.layers.replicated import ReplicatedCheckpointer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples/stacks").glob("*.yaml"))
COMMENT = "# yaml-language-server: $schema=../../docs/stack.schema.json\n"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    found = schema(users_own=False)
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


def test_there_is_an_example_for_every_use() -> None:
    assert {path.stem for path in EXAMPLES} == {
        "single-machine",
        "s3-write-behind",
        "redis-s3",
        "three-replicas",
        "oci",
        "encrypted-volumes",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_loads_and_editors_agree(path: Path, validator: Draft202012Validator) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith(COMMENT)
    assert (path.parent / COMMENT.split("=")[1].strip()).resolve() == ROOT / "docs/stack.schema.json"
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []
    stack = load_stack(path, env={})
    kinds = {type(layer) for layer in stack.walk()}
    assert (WriteBehindCheckpointer in kinds) == ("write: behind" in text)
    assert (ReplicatedCheckpointer in kinds) == ("replicated:" in text)


RIGHT: list[Any] = [
    {"tiers": ["memory"]},
    {"tiers": ["memory", {"file": None}], "latest": 5, "journal": "./j", "trace": True},
    {"tiers": [{"memory": {"max_bytes": 5, "ttl": None}, "name": "a", "retry": True}], "near_timeout": None},
    {"tiers": [{"postgresql": {"port": "${PORT:-5432}"}, "guard": {"timeout": "5s", "max_waiting": "${N:-3}"}}]},
    {
        "tiers": [
            {"s3": {"bucket": "b", "create_bucket": False}, "guard": {"timeout": {"load": "2s"}, "breaker": False}}
        ]
    },
    {"tiers": [{"pg": {"dsn": "postgresql://h/d", "message_retention": "30d"}}], "x-mine": [1, 2]},
    {"version": 1, "tiers": [{"replicated": {"replicas": ["file", "sdk-memory"], "write_quorum": "all"}}]},
]

WRONG: list[Any] = [
    {},
    [],
    {"tiers": ["memry"]},
    {"tiers": [{"memory": {"max_byts": 1}}]},
    {"tiers": [{"memory": {"max_bytes": "5 apples"}}]},
    {"tiers": [{"memory": None, "s3": {"bucket": "b"}}]},
    {"tiers": [{"name": "a"}]},
    {"tiers": [{"s3": {}}]},
    {"tiers": ["memory"], "latest": "newest"},
    {"tiers": ["memory"], "version": 2},
    {"tiers": [{"file": {}, "retry": {"attempts": 0}}]},
    {"tiers": [{"file": {}, "retry": {"deadline": "soon"}}]},
    {"tiers": [{"file": {}, "guard": {"timeout": {"laod": 1}}}]},
    {"tiers": [{"replicated": {"replicas": [{"file": {}, "write": "behind"}, "sdk-memory", "memory"]}}]},
]


@pytest.mark.parametrize("given", RIGHT, ids=json.dumps)
def test_what_is_right_for_the_schema_loads(given: Any, validator: Draft202012Validator) -> None:
    assert [error.message for error in validator.iter_errors(given)] == []
    if given.get("journal"):
        given = {**given, "tiers": [*given["tiers"][:-1], {"file": None, "write": "behind"}]}
    assert load_stack(given, env={})


@pytest.mark.parametrize("given", WRONG, ids=json.dumps)
def test_what_is_wrong_for_the_schema_does_not(given: Any, validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(given))
    with pytest.raises(StackConfigError):
        load_stack(given, env={})


def test_types_of_users_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(room: str, seats: int = 10) -> Any:
        """A store of ours."""

    monkeypatch.setattr(registry, "_own", {})
    register_tier_type("mine", factory)
    found = json_schema()
    assert found["$defs"]["Tier"]["properties"]["mine"]["description"] == "A store of ours."
    assert "mine" not in schema(users_own=False)["$defs"]["Tier"]["properties"]
    checked = Draft202012Validator(found)
    assert not list(checked.iter_errors({"tiers": [{"mine": {"room": "a"}}]}))
    assert list(checked.iter_errors({"tiers": [{"mine": {"seats": 1}}]}))
    assert json.loads(json.dumps(found)) == found
