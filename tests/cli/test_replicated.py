"""Replicas seen from outside: one that is away, one that was wiped, and a migration into three."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from locus_tiered.config import load_stack
from tests.cli.kit import answer, do, fill, run


@pytest.fixture
def three(tmp_path: Path) -> Path:
    file = tmp_path / "three.yaml"
    replicas = "\n".join(f"        - directory: {{path: ./{name}, durability: process}}" for name in "abc")
    file.write_text(f"version: 1\nname: three\ntiers:\n  - replicated:\n      replicas:\n{replicas}\n")
    return file


def test_a_wiped_replica_is_found_and_filled_again(tmp_path: Path, three: Path) -> None:
    do(fill(load_stack(three), {"ada": 3, "bob": 1}))
    assert [member["role"] for member in answer("check", three, "--live", cwd=tmp_path)["members"]] == ["replica"] * 3
    assert answer("verify", three, cwd=tmp_path)["kinds"] == {}
    shutil.rmtree(tmp_path / "c")
    rows = answer("ls", three, "ada", cwd=tmp_path)["checkpoints"]
    assert [list(row["tiers"].values()) for row in rows] == [["same", "same", "absent"]] * 3
    assert answer("verify", three, cwd=tmp_path, expect=1)["kinds"] == {"missing": 4}
    assert answer("repair", three, "--yes", cwd=tmp_path)["left"] == []
    assert answer("verify", three, cwd=tmp_path)["kinds"] == {}
    assert len(list((tmp_path / "c/ada").glob("*.json"))) == 3


def test_damage_in_one_replica_is_mended_from_another(tmp_path: Path, three: Path) -> None:
    do(fill(load_stack(three), {"ada": 3}))
    victim = sorted((tmp_path / "b/ada").glob("*.json"))[0]
    victim.write_bytes(victim.read_bytes().replace(b"hello", b"jello"))
    found = answer("verify", three, cwd=tmp_path, expect=1)["found"]
    assert [each["kind"] for each in found] == ["damaged"]
    answer("repair", three, "--yes", cwd=tmp_path)
    assert answer("verify", three, cwd=tmp_path)["kinds"] == {}
    assert answer("show", three, "ada", cwd=tmp_path)["state"]["iteration"] == 2


def test_a_replica_that_is_away_is_told_and_the_others_answer(tmp_path: Path, three: Path) -> None:
    do(fill(load_stack(three), {"ada": 2}))
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "b").write_text("a file where the directory was")
    found = answer("ls", three, "ada", cwd=tmp_path, expect=3)
    assert found["total"] == 2
    assert list(found["unreachable"]) == ["directory-2"]
    ran = run("show", three, "ada", cwd=tmp_path, expect=3)
    assert "hello 1.0" in ran.out
    assert "Could not be reached: directory-2" in ran.out


def test_a_migration_into_replicas_reaches_all_of_them(tmp_path: Path, three: Path) -> None:
    (tmp_path / "old.yaml").write_text("version: 1\ntiers:\n  - directory: {path: ./old, durability: process}\n")
    do(fill(load_stack(tmp_path / "old.yaml"), {"ada": 4, "bob": 2}))
    found = answer("migrate", "--from", "old.yaml", "--to", three, "--yes", cwd=tmp_path)
    assert (found["copied"], found["verified"], found["problems"]) == (6, 6, {})
    assert answer("verify", three, cwd=tmp_path)["kinds"] == {}
    assert answer("diff", "old.yaml", "ada", "--other", three, cwd=tmp_path)["same"] is True
