"""What a stack file says is what is built: the same as in code, in the order of the layers, with the same defaults."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from locus.core.state import AgentState
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer, redis_checkpointer
from locus.memory.backends.s3 import S3Backend
from locus.memory.registry import get_checkpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    Layer,
    Leaf,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    TracedCheckpointer,
    WriteBehindCheckpointer,
    load_stack,
)
from locus_tiered.config.loader import check
from locus_tiered.core.errors import BackendError, StackConfigError
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.budget import RetryBudget
from locus_tiered.layers.guarded import Timeouts
from locus_tiered.layers.replicated import ReplicatedCheckpointer


def _same() -> dict[str, tuple[str, Any]]:
    return {
        "one tier": ("tiers: [directory: {path: d}]", TieredCheckpointer(DirectoryCheckpointer("d"))),
        "two": (
            "tiers: [{memory: {max_bytes: 1MiB, ttl: 10m}}, "
            "{directory: {path: d, max_bytes: 2GiB, durability: process}}]",
            TieredCheckpointer(
                BoundedMemoryCheckpointer("1MiB", ttl=600.0),
                DirectoryCheckpointer("d", max_bytes="2GiB", durability="process"),
            ),
        ),
        "the stack's own options": (
            "{tiers: [memory, {file: {base_dir: f}, name: old}], name: n, latest: 5s, "
            "on_outage: stale, near_timeout: 1s}",
            TieredCheckpointer(
                BoundedMemoryCheckpointer(),
                Tier(FileCheckpointer("f"), name="old"),
                name="n",
                latest=5.0,
                on_outage="stale",
                near_timeout=1.0,
            ),
        ),
        "traced": (
            "{tiers: [memory, file: {base_dir: f}], trace: {name: t, thread_id: off}}",
            TracedCheckpointer(
                TieredCheckpointer(BoundedMemoryCheckpointer(), FileCheckpointer("f")), name="t", thread_id="off"
            ),
        ),
        "guard inside retry, whichever is written first": (
            """
            tiers:
            - memory
            - guard: {timeout: {load: 2s, save: 5s}, breaker: {failures: 3, open_for: 1s}, max_concurrency: 4}
              s3: {bucket: b, endpoint_url: "http://localhost:1"}
              retry:
                {attempts: 5, deadline: 20s, base: 100ms, cap: 2s, budget: {ratio: 0.2, burst: 3}, repeat: [vacuum]}
            """,
            TieredCheckpointer(
                BoundedMemoryCheckpointer(),
                RetryingCheckpointer(
                    GuardedCheckpointer(
                        S3Backend("b", endpoint_url="http://localhost:1"),
                        timeout={"load": 2.0, "save": 5.0},
                        breaker=BreakerPolicy(in_a_row=3, open_for=1.0),
                        max_concurrency=4,
                    ),
                    attempts=5,
                    deadline=20.0,
                    base=0.1,
                    cap=2.0,
                    budget=RetryBudget(0.2, 3),
                    repeat=["vacuum"],
                ),
            ),
        ),
        "retry and guard with their defaults, or none": (
            "tiers: [memory, {redis: {url: 'redis://h'}, retry: true, guard: false}, "
            "{file: , guard: true, retry: false}]",
            TieredCheckpointer(
                BoundedMemoryCheckpointer(),
                RetryingCheckpointer(redis_checkpointer("redis://h")),
                GuardedCheckpointer(FileCheckpointer()),
            ),
        ),
        "neither timeout nor breaker": (
            "tiers: [{file: , guard: {timeout: null, breaker: false}}]",
            TieredCheckpointer(GuardedCheckpointer(FileCheckpointer(), timeout=None, breaker=None)),
        ),
        "all timeouts": (
            "tiers: [{file: , guard: {timeout: {others: 3s, load: 1s, save_per_mib: 0}}}]",
            TieredCheckpointer(
                GuardedCheckpointer(
                    FileCheckpointer(),
                    timeout=Timeouts({**Timeouts().by_operation, "load": 1.0}, others=3.0, save_per_mib=0.0),
                )
            ),
        ),
        "written behind": (
            "{tiers: [memory, {directory: {path: d}, write: behind, name: h}], journal: j}",
            TieredCheckpointer(
                BoundedMemoryCheckpointer(),
                Tier(DirectoryCheckpointer("d"), name="h", write="behind"),
                journal="j",
            ),
        ),
        "written behind, acknowledged by the journal": (
            "{tiers: [memory, {directory: {path: d}, write: behind, ack: journal}], journal: {path: j}, "
            "latest: exclusive}",
            TieredCheckpointer(
                BoundedMemoryCheckpointer(),
                Tier(DirectoryCheckpointer("d"), write="behind", ack="journal"),
                journal="j",
                latest="exclusive",
            ),
        ),
        "replicas": (
            """
            tiers:
            - memory
            - name: home
              replicated:
                write_quorum: all
                read: hedged
                journal: hints
                hint_window: 1MiB
                replicas: [directory: {path: a}, {file: {base_dir: b}, name: second, guard: true}, {sdk-memory: }]
            """,
            TieredCheckpointer(
                BoundedMemoryCheckpointer(),
                Tier(
                    ReplicatedCheckpointer(
                        DirectoryCheckpointer("a"),
                        GuardedCheckpointer(FileCheckpointer("b")),
                        MemoryCheckpointer(),
                        write_quorum="all",
                        read="hedged",
                        journal="hints",
                        hint_window="1MiB",
                        names=["directory", "second", "sdk-memory"],
                    ),
                    name="home",
                ),
            ),
        ),
        "replicas behind a journal": (
            """
            journal: j
            tiers:
            - replicated:
                write_quorum: 2
                replicas: [directory: {path: a}, directory: {path: b}, directory: {path: c}]
              write: behind
            """,
            TieredCheckpointer(
                Tier(
                    ReplicatedCheckpointer(
                        DirectoryCheckpointer("a"),
                        DirectoryCheckpointer("b"),
                        DirectoryCheckpointer("c"),
                        write_quorum=2,
                    ),
                    write="behind",
                ),
                journal="j",
            ),
        ),
        "the journal of a stack that writes nothing behind is for hints": (
            "{journal: j, tiers: [replicated: {replicas: [directory: {path: a}, directory: {path: b}]}]}",
            TieredCheckpointer(
                ReplicatedCheckpointer(DirectoryCheckpointer("a"), DirectoryCheckpointer("b"), journal="j")
            ),
        ),
        "a journal with bounds of its own": (
            """
            tiers: [memory, {directory: {path: d}, write: behind, name: h, retry: true}]
            journal: {path: j, max_pending: 1MiB, linger: 5s, max_lag: 20s, drain_timeout: 3s, on_outage: journal}
            """,
            TieredCheckpointer(
                BoundedMemoryCheckpointer(),
                Tier(
                    WriteBehindCheckpointer(
                        RetryingCheckpointer(DirectoryCheckpointer("d")),
                        journal="j",
                        linger=5.0,
                        max_lag=20.0,
                        max_pending="1MiB",
                        drain_timeout=3.0,
                        on_outage="journal",
                    ),
                    name="h",
                ),
            ),
        ),
    }


@pytest.mark.parametrize("name", _same())
def test_a_stack_from_yaml_and_the_same_in_code_have_one_repr(name: str) -> None:
    text, code = _same()[name]
    assert repr(load_stack(f"{text}\n")) == repr(code)


def _facts(layer: Layer) -> list[tuple[str, dict[str, Any]]]:
    """What a repr may leave out: every plain attribute of every layer."""
    return [
        (
            type(each).__name__,
            {
                key: value
                for key, value in vars(each).items()
                if key != "name" and not key.startswith("_") and isinstance(value, str | int | float | Path | None)
            },
        )
        for each in layer.walk()
    ]


@pytest.mark.parametrize("name", _same())
def test_and_no_option_is_another(name: str) -> None:
    text, code = _same()[name]
    assert _facts(load_stack(f"{text}\n")) == _facts(code)


def test_with_bounds_of_its_own_the_journal_still_knows_that_the_process_is_alone() -> None:
    text = "{tiers: [{directory: {path: d}, write: behind}], latest: exclusive, journal: {path: j, max_lag: 1m}}"
    (behind,) = [each for each in load_stack(text).walk() if isinstance(each, WriteBehindCheckpointer)]
    assert behind.exclusive
    assert behind.name == "directory"


def test_the_defaults_of_the_file_are_those_of_the_code() -> None:
    config = check("{tiers: [{file: , retry: {}, guard: {}, write: behind}], journal: j}")
    assert config.journal is not None
    assert config.tiers[0].retry is not None
    assert config.tiers[0].guard is not None
    behind = WriteBehindCheckpointer(MemoryCheckpointer(), journal="j")
    retry, guard = RetryingCheckpointer(MemoryCheckpointer()), GuardedCheckpointer(MemoryCheckpointer())
    pairs = [
        *(
            (config.journal, behind, name)
            for name in ("linger", "max_lag", "drain_timeout", "max_pending", "on_outage")
        ),
        *((config.tiers[0].retry, retry, name) for name in ("attempts", "deadline", "base", "throttled_base", "cap")),
        *((config.tiers[0].guard, guard, name) for name in ("max_concurrency", "max_waiting")),
    ]
    for section, layer, name in pairs:
        assert getattr(section, name) == getattr(layer, name), name
    store = BoundedMemoryCheckpointer()
    (memory,) = [check("tiers: [memory: {}]").tiers[0].chosen()[1]]
    assert memory is not None
    assert (memory.max_bytes, memory.ttl) == (store.max_bytes, store.ttl)  # type: ignore[attr-defined]


@pytest.mark.parametrize("policy", ["lru", "lfu", "fifo", "rr"])
def test_policies_of_memory(policy: str) -> None:
    (store,) = [
        layer
        for layer in load_stack(f"tiers: [memory: {{policy: {policy}}}]").walk()
        if isinstance(layer, BoundedMemoryCheckpointer)
    ]
    assert store.policy.__name__ == f"{policy.upper()}Cache"


def test_a_home_that_forgets_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "locus_tiered.config"):
        load_stack("tiers: [file, memory]")
        load_stack("tiers: [directory: {path: d, max_bytes: 1GiB}]")
        load_stack("tiers: [memory, directory: {path: d}]")
    assert [record.message[:39] for record in caplog.records] == [
        "home, the last tier, is memory: the sta",
        "home, the last tier, is a directory wit",
    ]


# -- where it comes from ---------------------------------------------------------------------------------


def _path(stack: Layer) -> Path:
    (store,) = [layer for layer in stack.walk() if isinstance(layer, DirectoryCheckpointer)]
    return store.path


def test_relative_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    text = """
journal: {path: ../journal, linger: 1s}
tiers:
  - directory: {path: ./near}
  - file: {base_dir: states}
    write: behind
"""
    (tmp_path / "conf/stack.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "link").symlink_to("conf")
    for given in ("conf/stack.yaml", Path("link/stack.yaml"), tmp_path / "conf/stack.yaml"):
        monkeypatch.chdir(tmp_path)
        stack = load_stack(given)
        monkeypatch.chdir("/")
        folder = tmp_path / Path(given).parent
        assert _path(stack) == folder / "near"
        (leaf,) = [layer for layer in stack.walk() if isinstance(layer, Leaf)]
        assert isinstance(leaf.backend, FileCheckpointer)
        assert leaf.backend.base_dir == folder / "states"
        (behind,) = [layer for layer in stack.walk() if isinstance(layer, WriteBehindCheckpointer)]
        assert Path(behind.journal) == folder / "../journal"


def test_elsewhere_they_are_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("tiers: [directory: {path: ./d}]", {"tiers": [{"directory": {"path": Path("./d")}}]}):
        assert _path(load_stack(source)) == Path("d")
    assert _path(load_stack("tiers: [directory: {path: ~/d}]")) == tmp_path / "d"
    assert _path(load_stack("tiers: [directory: {path: '${D}'}]", env={"D": "/d"})) == Path("/d")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_json_is_yaml(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"stack.{suffix}"
    file.write_text("\ufeff" + json.dumps({"tiers": ["memory", {"directory": {"path": "/d"}}]}), encoding="utf-8")
    assert _path(load_stack(str(file))) == Path("/d")


def test_the_environment_is_the_process_s_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCUS_TIERED_TEST_PATH", "/d")
    assert _path(load_stack("tiers: [directory: {path: '${LOCUS_TIERED_TEST_PATH}'}]")) == Path("/d")
    with pytest.raises(StackConfigError, match="is not set"):
        load_stack("tiers: [directory: {path: '${LOCUS_TIERED_TEST_PATH}'}]", env={})


async def test_the_sdk_finds_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stack.yaml").write_text("tiers: [memory, directory: {path: '${WHERE:-states}'}]\n", encoding="utf-8")
    checkpointer = get_checkpointer("tiered:stack.yaml")
    assert isinstance(checkpointer, TieredCheckpointer)
    async with checkpointer:
        await checkpointer.save(AgentState(run_id="1"), "thread")
    assert (tmp_path / "states").is_dir()
    again = get_checkpointer("tiered:stack.yaml", env={"WHERE": str(tmp_path / "states")})
    state = await again.load("thread")
    assert state is not None
    assert state.run_id == "1"
    with pytest.raises(StackConfigError, match="which stack"):
        get_checkpointer("tiered")
    with pytest.raises(StackConfigError, match="unknown option 'colour'"):
        get_checkpointer("tiered:stack.yaml", colour="red")


def test_nothing_is_touched_before_the_first_call(tmp_path: Path) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text(
        "{tiers: [{directory: {path: a}}, {file: {base_dir: b}, write: behind}], journal: j}\n", encoding="utf-8"
    )
    assert repr(load_stack(file))
    assert os.listdir(tmp_path) == ["stack.yaml"]


def test_importing_the_package_does_not_import_yaml() -> None:
    code = "import sys, locus_tiered; print({'yaml', 'locus_tiered.config.loader'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


async def test_errors_come_from_the_store_as_the_file_calls_it(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("not a directory", encoding="utf-8")
    tier = {"directory": {"path": tmp_path / "blocked"}, "guard": True}
    for name, called in ((None, "directory"), ("far", "far")):
        stack = load_stack({"tiers": [tier if name is None else {**tier, "name": name}]})
        with pytest.raises(BackendError) as raised:
            await stack.save(AgentState(run_id="1"), "thread")
        assert raised.value.member == called
        await stack.close()
