"""Mutated files and plain garbage: a stack, or a StackConfigError; nothing else, no hang, no import."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locus_tiered import load_stack
from locus_tiered.core.errors import StackConfigError
from locus_tiered.core.layer import Layer

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples/stacks").glob("*.yaml"))
TEXTS = [path.read_text(encoding="utf-8") for path in EXAMPLES]
MANY = int(os.environ.get("LOCUS_TIERED_EXAMPLES", "150"))
ENV = {"S3_BUCKET": "b", "EMPTY": "", "REDIS_URL": "redis://h"}

_PIECES = [
    "lt_fuzz_canary.Store", "!!python/object/apply:lt_fuzz_canary.go []", "!!python/name:lt_fuzz_canary.Store",
    "!!python/module:lt_fuzz_canary", "&a", "*a", "<<:", "<<: *a", "${", "}", "${NOPE}", "${file:/etc/hostname}",
    "${file:/dev/zero}", "${file:.}", "${EMPTY}", "$$",
    "- ", ": ", "\n", "\n  ", "{", "[", "]", ",", "'", '"', "|", ">",
    "#", "?", "%", "@", "`", "!", "~", "null", "true", "1e999", "-1", "0", "9" * 40, ".nan", "\t", "\0", "\u2028",
    "\ud7ff", "💾", "---", "...", "memory", "s3:", "replicated:", "replicas:", "write: behind", "retry: true",
    "a.b.C: {}",
    "x-", "tiers:", "journal: ./j", "timeout: ", "2001-01-01", "0x", "1_0", "5s", "256MiB", "postgresql://h", "=",
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """An example with pieces cut out, doubled, swapped, or put in."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        piece = draw(st.one_of(st.sampled_from(_PIECES), st.text(max_size=6), st.just(text[start:end] * 2)))
        text = text[:start] + piece + text[end:]
    return text


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(_PIECES),
    st.binary(max_size=3),
)
_KEYS = st.sampled_from(
    ["tiers", "version", "name", "latest", "trace", "journal", "memory", "s3", "redis", "file", "oci", "pg",
     "replicated", "replicas", "write", "ack", "retry", "guard", "timeout", "breaker", "path", "bucket", "url",
     "max_bytes", "linger", "repeat", "budget", "attempts", "dsn", "hosts"]
)  # fmt: skip


def _values(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEYS | st.text(max_size=4), inner, max_size=4))


_TREES = st.recursive(_SCALARS, _values, max_leaves=25)
_STACKS = st.fixed_dictionaries(
    {"tiers": st.lists(_TREES, min_size=1, max_size=4)}, optional={"journal": _TREES, "latest": _TREES}
)


@pytest.fixture(scope="module", autouse=True)
def canary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A module that any import of what a file names would find."""
    folder = tmp_path_factory.mktemp("canary")
    (folder / "lt_fuzz_canary.py").write_text("Store = go = dict\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    assert "lt_fuzz_canary" not in sys.modules


_watching = False
_seen: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    executes = event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.mkdir", "os.remove")
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if executes or writes or event.startswith(("socket.connect", "sqlite3.connect")):
        _seen.append(f"{event} {arguments!r}")


sys.addaudithook(_audit)


def attempt(source: Any) -> None:
    """Load it; whatever it is, nothing but a stack or a StackConfigError comes out, and nothing was done."""
    global _watching
    _watching = True
    mistakes: Sequence[StackConfigError] | None = None
    try:
        assert isinstance(load_stack(source, env=ENV), Layer)
    except StackConfigError as error:
        mistakes = error.mistakes
    finally:
        _watching = False
    assert mistakes is None or all(str(each) for each in mistakes)
    assert mistakes != ()
    assert not _seen
    assert "lt_fuzz_canary" not in sys.modules


_settings = settings(
    max_examples=MANY, deadline=5_000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@_settings
@given(mutated())
def test_mutated_files(text: str) -> None:
    attempt(f"{text}\n")


@_settings
@given(st.one_of(st.text(max_size=300), st.lists(st.sampled_from(_PIECES), max_size=30).map(" ".join)))
def test_garbage(text: str) -> None:
    attempt(f"{text}\n")


@_settings
@given(st.binary(max_size=300))
def test_files_of_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(content)
    attempt(file)


@_settings
@given(_STACKS)
def test_mappings(given_: dict[str, Any]) -> None:
    attempt(given_)


@_settings
@given(_STACKS)
def test_trees_as_text(given_: dict[str, Any]) -> None:
    attempt(yaml.dump(given_, allow_unicode=True) + "\n")
