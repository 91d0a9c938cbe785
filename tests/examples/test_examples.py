"""Each example runs as a user runs it: a process of its own, without arguments, without servers."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from locus_tiered.testing.services import SeaweedFS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def _run(path: Path, *arguments: str, cwd: Path, **environment: str) -> str:
    command = [sys.executable, "-W", "error", str(path), *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_runs_alone_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    assert _run(path, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_quickstart_goes_on_after_a_restart(tmp_path: Path) -> None:
    printed = _run(EXAMPLES / "quickstart.py", cwd=tmp_path)
    assert "given ['My name is Ada.', 'Hello, Ada.', 'What is my name?']" in printed


def test_quickstart_goes_on_elsewhere_with_a_bucket(tmp_path: Path, s3_server: SeaweedFS) -> None:
    bucket = s3_server.bucket_name()
    printed = _run(
        EXAMPLES / "quickstart.py",
        "--bucket",
        bucket,
        cwd=tmp_path,
        AWS_ENDPOINT_URL_S3=s3_server.endpoint_url,
        AWS_ACCESS_KEY_ID=s3_server.access_key,
        AWS_SECRET_ACCESS_KEY=s3_server.secret_key,
        AWS_DEFAULT_REGION="us-east-1",
        NO_PROXY="127.0.0.1",
    )
    s3_server.drop_bucket(bucket)
    assert f"S3Backend(bucket='{bucket}'" in printed
    assert "given ['My name is Ada.', 'Hello, Ada.', 'What is my name?']" in printed


def test_custom_backend_passes_the_whole_contract(tmp_path: Path) -> None:
    first = _run(EXAMPLES / "custom_backend.py", cwd=tmp_path).splitlines()[0]
    assert first.startswith("ConformanceReport(MyCustomBackend: ")
    passed, ran = first.split(": ")[1].split(" passed")[0].split("/")
    assert passed == ran
    assert int(ran) > 90


def test_custom_layer_is_under_15_lines() -> None:
    tree = ast.parse((EXAMPLES / "custom_layer.py").read_text(encoding="utf-8"))
    (layer,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert layer.end_lineno is not None
    assert layer.end_lineno - layer.lineno + 1 < 15


def test_custom_layer_sees_what_reaches_its_tier(tmp_path: Path) -> None:
    printed = _run(EXAMPLES / "custom_layer.py", cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in printed[1:-1]] == ["save", "save", "delete"]


def test_resilient_loses_the_turn_on_the_bare_store_and_finishes_it_with_the_layers(tmp_path: Path) -> None:
    printed = _run(EXAMPLES / "resilient.py", cwd=tmp_path)
    bare, patient, impatient = re.split(r"^-- .* --$", printed, flags=re.M)[1:]
    assert "the turn is lost: InjectedFault" in bare
    assert "the last that the thread knows: 'Hello, Ada.'" in bare
    assert "save failed (InjectedFault, temporary), attempt 1 of 8; the breaker is closed" in patient
    assert "the last that the thread knows: 'It leaves the warehouse today.'" in patient
    assert "calls that failed and succeeded in the end: 1" in patient
    assert "RetriesExhausted after 3 attempts; the breaker is open" in impatient
    assert "0 calls reached the store, 0 the model" in impatient
    assert "'Welcome back.'; the breaker is closed" in impatient
