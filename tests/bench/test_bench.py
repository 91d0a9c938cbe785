"""The benchmark runs, judges and tells; how fast anything is, no test asserts."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from locus_tiered.bench import ROWS, Budget, Figure, Row, Settings
from locus_tiered.bench.figures import show
from locus_tiered.bench.report import as_json, machine_name, missed, table
from locus_tiered.bench.rows.event_loop import Ticker
from locus_tiered.bench.rows.journal import BareLog
from locus_tiered.bench.states import conversation, encoded_size, text_state, texts
from locus_tiered.bench.timing import interleave, percentile, turns
from locus_tiered.testing.services import ServiceError

# One worker runs it once for all.
pytestmark = pytest.mark.xdist_group("bench")

cli = importlib.import_module("locus_tiered.bench.__main__")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """What ``--quick --json`` printed and wrote, and the directory where it could have left something."""
    place = tmp_path_factory.mktemp("bench")
    left = place / "tmp"
    left.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"TMPDIR": str(left)}
    result = subprocess.run(
        [sys.executable, "-m", "locus_tiered.bench", "--quick", "--json", "bench.json"],
        capture_output=True,
        text=True,
        cwd=place,
        env=environment,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout, json.loads((place / "bench.json").read_text()), left


def test_it_prints_a_table_for_80_columns_and_leaves_nothing_behind(quick: tuple[str, dict[str, Any], Path]) -> None:
    printed, _, left = quick
    assert max(map(cell_len, printed.splitlines())) <= 80
    for row in ROWS:
        assert row.title[:20] in printed
    assert "…" not in printed, "a cell was cut off"
    assert list(left.iterdir()) == []


def test_the_json_says_what_was_measured_on_what(quick: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = quick
    assert found["version"] == 1
    assert found["quick"] is True
    assert found["machine"] == machine_name()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["locus_sdk"]
    assert [row["key"] for row in found["rows"]] == [row.key for row in ROWS]
    for row in found["rows"]:
        for figure in row["figures"]:
            assert set(figure) == {
                "what", "against", "unit", "sdk", "stack", "ratio", "difference", "budget", "within", "details",
            }  # fmt: skip
            assert figure["within"] in (True, False, None)
            assert (figure["within"] is None) == (figure["budget"] is None)


def test_the_figures_are_possible(quick: tuple[str, dict[str, Any], Path]) -> None:
    _, found, _ = quick
    rows = {row["key"]: row["figures"] for row in found["rows"]}
    for figures in rows.values():
        for figure in figures:
            assert figure["stack"] > 0
            assert figure["sdk"] is None or figure["sdk"] > 0
    for figure in rows["warm"]:
        assert figure["details"]["messages"] == 100
        assert figure["ratio"] == pytest.approx(figure["stack"] / figure["sdk"], rel=0.9)
    assert {figure["what"].partition(",")[0] for figure in rows["layer"]} == {"save", "load", "exists", "list"}
    (memory,) = rows["memory"]
    filled = memory["details"]["kept"] * memory["details"]["state_bytes"] / 2**20
    assert 32 < filled < 64 < memory["details"]["saves"] * memory["details"]["state_bytes"] / 2**20
    assert filled * 0.5 < memory["stack"] < 1000
    assert memory["sdk"] > 1
    requests = {f["what"]: f for f in rows["turn"] if f["unit"] == "requests"}
    assert all(80 <= figure["sdk"] <= 90 for figure in requests.values())
    assert requests["requests, turn : S3"]["stack"] <= 5
    assert {requests[f"requests, {ack}, excl. : S3"]["stack"] for ack in ("turn", "journal")} == {3}
    late = {figure["what"]: figure for figure in rows["late"]}
    assert late["S3, late : in time"]["difference"] > 80 * 20, "every request was late"
    assert late["one save by S3, late"]["stack"] > 3 * 20
    assert [figure["details"]["writers"] for figure in rows["journal"]] == [1, 1, 64, 64]
    assert all(figure["details"]["rows"] == 400 for figure in rows["recovery"])
    big = [figure["details"]["bytes"] for figure in rows["loop"] + rows["behind"] if "bytes" in figure["details"]]
    assert all(900_000 < size < 1_100_000 for size in big)


@pytest.mark.parametrize(
    ("ratio", "shown"), [(2.0, "2.00 x"), (0.25, "0.25 x"), (0.125, "1/8.0"), (0.04, "1/25"), (0.0, "0 x")]
)
def test_small_ratios_are_shown_as_parts(ratio: float, shown: str) -> None:
    figure = Figure(what="it", unit="ms", stack=1, ratio=ratio, budget=Budget("ratio", 0.125))
    assert figure.comparison() == shown
    assert figure.allowance() == "1/8"


def test_requests_are_counted_without_a_unit() -> None:
    figure = Figure(what="it", unit="requests", stack=3, sdk=85, budget=Budget("value", 5))
    assert (show(figure.stack, figure.unit), figure.allowance(), figure.within) == ("3", "5", True)


async def test_the_bare_log_keeps_every_record_in_order(tmp_path: Path) -> None:
    log = BareLog(tmp_path / "log")
    records = [f"record {number}".encode() for number in range(1000)]
    await asyncio.gather(*(log.append(record) for record in records))
    await log.close()
    raw, found = (tmp_path / "log").read_bytes(), []
    while raw:
        size = int.from_bytes(raw[:8], "little")
        found.append(raw[8 : 8 + size])
        raw = raw[8 + size :]
    assert found == records


@pytest.mark.parametrize(
    ("budget", "within", "shown"),
    [
        (Budget("ratio", 1.2), True, "1.2 x"),
        (Budget("ratio", 1.0), False, "1 x"),
        (Budget("difference", 3), True, "+3 us"),
        (Budget("difference", 1), False, "+1 us"),
        (Budget("value", 12), True, "12 us"),
        (Budget("value", 11), False, "11 us"),
        (None, None, ""),
    ],
)
def test_a_budget_is_judged_by_its_kind(budget: Budget | None, within: bool | None, shown: str) -> None:
    figure = Figure(what="it", unit="us", sdk=10, stack=12, ratio=1.2, difference=2, budget=budget)
    assert figure.within is within
    assert figure.allowance() == shown
    assert figure.comparison() == ("+2.00 us" if budget is not None and budget.kind == "difference" else "1.20 x")


async def _over(settings: Settings) -> list[Figure]:
    return [Figure(what="it", unit="ms", stack=2, budget=Budget("value", 1))]


@pytest.mark.parametrize(("words", "code"), [([], 0), (["--strict"], 1)])
def test_only_strict_makes_a_missed_budget_the_exit_code(
    words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "ROWS", (Row("one", "One", _over),))
    assert cli.main(words) == code
    assert "1 of these figures" in capsys.readouterr().out


async def _no_server(settings: Settings) -> list[Figure]:
    raise ServiceError("there is no weed")


def test_without_a_server_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "ROWS", (Row("one", "One", _no_server),))
    assert cli.main([]) == 1
    assert "there is no weed" in capsys.readouterr().err


def test_the_rows_are_known_without_the_extra_s3() -> None:
    script = "import sys, locus_tiered.bench.suite; sys.exit(int('boto3' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


def test_bad_arguments_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--only", "nothing"], ["--json", str(tmp_path / "none" / "bench.json")]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert words[1] in capsys.readouterr().err


def test_a_missed_budget_is_seen_in_table_and_json() -> None:
    row = Row("one", "One", _over)
    measured = [(row, asyncio.run(_over(Settings(True, Path()))))]
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(measured, quick=True))
    console.file.close()
    assert "NO" in console.export_text()
    assert missed(measured) == measured[0][1]
    assert as_json(measured, quick=True)["rows"][0]["figures"][0]["within"] is False


def test_the_machine_is_called_a_2_core_vm_only_when_it_has_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, name in ((2, "2-core VM"), (1, "1 core"), (8, "8 cores"), (None, "1 core")):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert machine_name() == name


async def test_contenders_take_turns_and_are_compared_round_by_round() -> None:
    ticks = iter(range(1000))
    log: list[str] = []

    async def call(name: str) -> None:
        log.append(name)

    rounds = await interleave(
        {"a": lambda: call("a"), "b": lambda: call("b")}, rounds=3, calls=1, clock=lambda: float(next(ticks))
    )
    assert "".join(log) == "ab" + "abbaab"
    assert (rounds.median("a"), rounds.ratio("a", "b"), rounds.difference("a", "b")) == (1, 1, 0)
    assert turns(["a", "b", "c"], 2) == ["a", "b", "c", "b", "c", "a"]


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([3, 1, 2], 0.99) == 3
    assert percentile([1], 0.01) == 1
    assert percentile(range(1, 101), 0.99) == 99


async def test_the_ticker_notices_who_blocks_the_loop() -> None:
    async def block() -> None:
        end = time.process_time() + 0.03
        while time.process_time() < end:
            pass

    async with Ticker() as ticker:
        blocked = await ticker.during(block)
    assert blocked.process >= 25
    assert blocked.wall >= blocked.process


def test_states_have_the_size_that_was_asked_for() -> None:
    assert len(conversation(100).messages) == 100
    assert len(texts(7).messages) == 7
    assert abs(encoded_size(text_state(10_000, 1)) - 10_000) < 100
    assert text_state(10_000, 1).messages[0].content != text_state(10_000, 2).messages[0].content
