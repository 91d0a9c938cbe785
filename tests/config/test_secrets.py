"""What came from a variable or a file is never shown: it is planted everywhere, and looked for everywhere."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from locus.memory.checkpointer import BaseCheckpointer
from pydantic import BaseModel, field_validator

from locus_tiered import Layer, Leaf, load_stack, register_tier_type
from locus_tiered.config import registry
from locus_tiered.config.kinds import built_in
from locus_tiered.config.loader import check
from locus_tiered.core.errors import StackConfigError
from locus_tiered.testing import FaultyCheckpointer

SECRET = "hunter2-correct-horse"
SHOWN = {"bucket", "prefix", "path", "base_dir"}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    own = dict(registry._own)
    yield
    registry._own.clear()
    registry._own.update(own)


def everything_said(error: BaseException) -> str:
    """The error, its mistakes, and the traceback with all its causes."""
    mistakes = getattr(error, "mistakes", ())
    said = [str(error), repr(error), *("".join(traceback.format_exception(error)),)]
    for each in mistakes:
        said += [str(each), repr(each), repr(vars(each) | {"mistakes": ()})]
    context: BaseException | None = error
    while context is not None:
        said += [str(context), repr(context)]
        context = context.__cause__ or context.__context__
    return "\n".join(said)


GOOD: dict[str, dict[str, Any]] = {
    "http": {"base_url": "https://u:${S}@h/x", "headers": {"Authorization": "${S}"}, "auth": ["u", "${S}"]},
    "redis": {"url": "rediss://u:${S}@h:1"},
    "postgresql": {"password": "${S}", "user": "${S}", "host": "${S}"},
    "pg": {"dsn": "postgresql://u:${S}@h/d"},
    "mysql": {"dsn": "mysql://u:${S}@h/d"},
    "opensearch": {"username": "u", "password": "${S}"},
    "s3": {"bucket": "b", "aws_access_key_id": "${S}", "aws_secret_access_key": "${S}"},
    "oci": {"bucket_name": "b", "namespace": "${S}", "compartment_id": "${S}"},
    "oracle": {"dsn": "d", "password": "${S}", "wallet_password": "${S}"},
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_repr_and_the_log_show_none(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    text = yaml.safe_dump({"tiers": ["memory", {kind: GOOD[kind], "retry": True, "guard": True}], "trace": True})
    with caplog.at_level(logging.DEBUG):
        stack = load_stack(text, env={"S": SECRET})
    shown = [repr(stack), str(stack), repr(stack.explain()), caplog.text]
    shown += [repr(layer) for layer in stack.walk()] + [layer.name for layer in stack.walk()]
    shown += [repr(check(text, env={"S": SECRET}))]
    assert SECRET not in "\n".join(shown)
    # It did arrive.
    (leaf,) = [layer for layer in stack.walk() if isinstance(layer, Leaf)]
    assert SECRET in repr({key: _plain(value) for key, value in _everything(leaf.backend).items()})


def _everything(of: Any) -> dict[str, Any]:
    inner = getattr(of, "_backend", of)
    config = getattr(inner, "config", None)
    return vars(inner) | (config.__dict__ if config is not None else {})


def _plain(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def _options(kind: str) -> list[str]:
    return [field.alias or name for name, field in built_in()[kind].options.model_fields.items()]


@pytest.mark.parametrize("kind", sorted(built_in()))
@pytest.mark.parametrize("planted", ["${S}", "x${S}", "${file:secret}", "${MISSING:-hunter2-correct-horse}"])
def test_no_error_shows_one_wherever_it_stands(kind: str, planted: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET, encoding="utf-8")
    file = tmp_path / "stack.yaml"
    for option in _options(kind):
        for value in (planted, [planted], {"a": planted}, {planted: planted}):
            # A second mistake makes sure that something is raised.
            written = {"tiers": [{kind: {option: value}}], "latest": "wrong"}
            if isinstance(value, dict) and planted in value:
                value.pop(planted)
            file.write_text(yaml.safe_dump(written), encoding="utf-8")
            with pytest.raises(StackConfigError) as raised:
                load_stack(file, env={"S": SECRET})
            assert SECRET not in everything_said(raised.value), (option, value)


@pytest.mark.parametrize(
    "text",
    [
        "tiers: ['${S}']",
        "tiers: [{file: , name: ['${S}']}]",
        "tiers: [{file: , write: '${S}', ack: '${S}'}]",
        "tiers: [{file: , retry: '${S}', guard: '${S}'}]",
        "tiers: [{file: , retry: {attempts: '${S}', deadline: '${S}', repeat: ['${S}'], budget: '${S}'}}]",
        "tiers: [{file: , guard: {timeout: '${S}', breaker: '${S}', max_waiting: '${S}'}}]",
        "tiers: [{file: , guard: {timeout: {load: '${S}'}, breaker: {ratio: '${S}', window: '${S}'}}}]",
        "tiers: '${S}'",
        "{tiers: [file], latest: '${S}', on_outage: '${S}', near_timeout: '${S}', version: '${S}', trace: '${S}'}",
        "{tiers: [file], trace: {thread_id: '${S}'}, journal: {path: 'x${S}', linger: '${S}', max_pending: '${S}'}}",
        "tiers: [{replicated: {replicas: ['${S}', '${S}'], read: '${S}', write_quorum: '${S}'}}]",
        "tiers: [{postgresql: {table_name: '${S}; drop'}}]",
        "tiers: [{postgresql: {database: 'postgresql://${S}'}}, {redis: '${S}'}, {s3: '${S}'}]",
    ],
)
def test_no_error_of_the_stack_shows_one(text: str) -> None:
    with pytest.raises(StackConfigError) as raised:
        load_stack(f"{text}\n", env={"S": SECRET})
    assert SECRET not in everything_said(raised.value)


@pytest.mark.parametrize(
    "broken", ["tiers: [*{}]", "a: !{} x", "tiers: [{{x: '{}'", 'a: "{}', "a: {}: {}", "a: {{b: ${}}}"]
)
def test_no_syntax_error_quotes_the_file(broken: str) -> None:
    with pytest.raises(StackConfigError) as raised:
        load_stack(broken.replace("{{", "{").replace("}}", "}").replace("{}", SECRET) + "\n")
    assert SECRET not in everything_said(raised.value)


class Picky(BaseModel):
    """Says what it was given."""

    room: str

    @field_validator("room")
    @classmethod
    def _no(cls, value: str) -> str:
        raise ValueError(f"no room {value}")


def test_what_users_say_is_cleaned() -> None:
    def factory(room: str) -> BaseCheckpointer:
        raise LookupError(f"no room {room}")

    register_tier_type("picky", factory, options=Picky)
    register_tier_type("failing", factory)
    for kind in ("picky", "failing"):
        with pytest.raises(StackConfigError) as raised:
            load_stack(f"tiers: [{kind}: {{room: 'a-${{S}}'}}]\n", env={"S": SECRET})
        assert "no room a-${S}" in str(raised.value)
        assert SECRET not in everything_said(raised.value)


async def test_no_error_of_a_running_stack_shows_one(caplog: pytest.LogCaptureFixture) -> None:
    def factory(room: str) -> BaseCheckpointer:
        store = FaultyCheckpointer()
        store.partition()
        return store

    register_tier_type("failing", factory)
    stack: Layer = load_stack("tiers: [failing: {room: '${S}'}]\n", env={"S": SECRET})
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception) as raised:
        await stack.load("thread")
    assert SECRET not in everything_said(raised.value) + caplog.text
