"""``examples/traced_agent.py``: the turn as a tree, on a console, at a collector."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.tracing.test_otlp import collecting

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/traced_agent.py"


def run(*arguments: str, cwd: Path) -> str:
    """What it prints; it must print nothing else."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), *arguments],
        cwd=cwd,
        env=os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_it_prints_the_turn_as_a_tree(tmp_path: Path) -> None:
    lines = [re.sub(r" +[\d.]+ ms", "", line) for line in run(cwd=tmp_path).splitlines()]
    assert lines[0] == "agent.turn"
    assert [line for line in lines if line.startswith("  ") and line[2] != " "] == [
        "  checkpoint.load",
        "  agent.invocation",
        "  checkpoint.save",
        "  checkpoint.delete",
        "  checkpoint.delete",
    ]
    attempts = [line.split(maxsplit=1)[1] for line in lines if "checkpoint.attempt" in line]
    assert attempts.count("far, ConnectionResetError") == 1
    assert attempts.count("far") == len(attempts) - 1


def test_it_prints_what_an_exporter_gets(tmp_path: Path) -> None:
    printed = run("--exporter", "console", cwd=tmp_path)
    assert printed.count('"name": "agent.turn"') == 1
    assert "Oslo" not in printed


def test_it_sends_to_a_collector(tmp_path: Path) -> None:
    with collecting() as (endpoint, collector):
        assert run("--exporter", "otlp", "--endpoint", endpoint, cwd=tmp_path) == ""
    assert {"agent.turn", "agent.invocation", "checkpoint.save"} <= {span.name for span in collector.spans()}
    assert collector.metrics
