"""References in a stack file: variables, files, defaults, and the dollar sign itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from locus_tiered.config.mistakes import Mistakes
from locus_tiered.config.variables import Variables

ENV = {"NAME": "value", "EMPTY": "", "DOLLARS": "${NAME} $$", "S3_BUCKET": "agents"}


def expand(data: Any, base: Path = Path(), env: dict[str, str] | None = None) -> tuple[Any, list[str]]:
    mistakes = Mistakes()
    value = Variables(ENV if env is None else env, base, mistakes).expand(data)
    return value, [str(each) for each in mistakes.found]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${NAME}", "value"),
        ("a-${NAME}-${NAME}", "a-value-value"),
        ("${MISSING:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${NAME:-default}", "value"),
        ("x${MISSING:-}y", "xy"),
        ("${MISSING:-a:-b}", "a:-b"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("pa$word$", "pa$word$"),
        ("$NAME", "$NAME"),
        ("${DOLLARS}", "${NAME} $$"),
        ("no reference", "no reference"),
        (5, 5),
    ],
)
def test_what_a_reference_becomes(text: Any, value: Any) -> None:
    assert expand({"a": text}) == ({"a": value}, [])


def test_nothing_but_a_reference_to_something_empty_is_as_if_not_written() -> None:
    assert expand({"a": "${EMPTY}", "b": "${MISSING:-}", "c": "", "d": {"e": "${EMPTY}"}}) == ({"c": "", "d": {}}, [])
    assert expand(["${EMPTY}", "a"]) == ([None, "a"], [])


def test_keys_are_not_looked_through() -> None:
    assert expand({"${NAME}": 1}) == ({"${NAME}": 1}, [])


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("${MISSING}", "a: the variable MISSING is not set (set it, or write ${MISSING:-default})"),
        ("${S3_BUCKT}", "a: the variable S3_BUCKT is not set (did you mean 'S3_BUCKET'? Or set it,"),
        ("${}", "a: a reference that names no variable"),
        ("${1X}", "a: a reference that names no variable"),
        ("${A-b}", "a: a reference that names no variable (write ${NAME}, ${NAME:-default} or ${file:/path}"),
        ("${A:?b}", "a: a reference that names no variable"),
        ("${NAME", "a: a reference without its }"),
        ("${A:-${NAME}}", "a: a reference inside another"),
    ],
)
def test_what_leads_nowhere_is_a_mistake(text: str, mistake: str) -> None:
    _, mistakes = expand({"a": text})
    assert len(mistakes) == 1
    assert mistakes[0].startswith(mistake)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n", encoding="utf-8")
    (tmp_path / "link").symlink_to("secret")
    assert expand({"a": "x${file:secret}y", "b": f"${{file:{tmp_path}/link}}"}, tmp_path) == (
        {"a": "xhunter2y", "b": "hunter2"},
        [],
    )
    assert expand({"a": "${file:nowhere:-z}"}, tmp_path) == ({"a": "z"}, [])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    names = ("nowhere", "binary", "large", "pipe", ".", "a\0b", "/dev/zero")
    for name in names:
        value, mistakes = expand({"a": f"${{file:{name}}}"}, tmp_path)
        assert value == {"a": None}
        assert len(mistakes) == 1
        assert mistakes[0].startswith(f"a: the file {name!r} cannot be read: ")
