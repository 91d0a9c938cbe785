"""Every command is there, says what it does at 80 columns, and the small parts that they share do what they say."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from locus_tiered.cli.app import COMMANDS
from locus_tiered.cli.text import clean, one_line, parse_age, redact, show_age, show_size
from tests.cli.kit import answer, answered, asking, do, environment, fill, run, stack_of, state

NAMES = [command.__name__ for command in COMMANDS]


def test_the_console_script_is_installed_and_lists_all_commands(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("locus-tiered")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "locus_tiered"]
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    for name in NAMES:
        assert f" {name} " in done.stdout
    assert "--install-completion" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_80_columns_and_json_is_everywhere(tmp_path: Path, name: str) -> None:
    ran = run(name, "--help", cwd=tmp_path)
    assert max(map(len, ran.out.splitlines())) <= 80
    assert name in ("schema", "demo") or "--json" in ran.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_the_usual_shells(tmp_path: Path, shell: str) -> None:
    ran = run("threads", cwd=tmp_path, columns=1000, _LOCUS_TIERED_COMPLETE=f"source_{shell}")
    assert "_LOCUS_TIERED_COMPLETE" in ran.out


def test_bench_measures_both_sides_draws_them_and_leaves_nothing(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 1}))
    found = answer("bench", file, "--rounds", "1", "--svg", "x.svg", "--yes", cwd=tmp_path)
    assert [row["unit"] for row in found["rows"]] == ["ms", "calls", "ms", "ms", "ms"]
    assert all(row["alone"] > 0 and row["stack"] > 0 and row["ratio"] > 0 for row in found["rows"])
    calls = found["rows"][1]
    assert calls["alone"] == 22, "a load, ten iteration saves, the last one, ten deletes"
    assert calls["stack"] >= 22
    picture = ElementTree.parse(tmp_path / "x.svg").getroot()
    assert picture.tag.endswith("svg")
    assert len(picture.findall("{http://www.w3.org/2000/svg}rect")) == 1 + 2 + 2 * len(found["rows"])
    assert [row["thread"] for row in answer("threads", file, cwd=tmp_path)["threads"]] == ["ada"]


def test_bench_compares_a_bare_checkpointer_with_a_cache_in_front_of_it(tmp_path: Path) -> None:
    printed = run("bench", "file:plain", "--rounds", "1", "--yes", cwd=tmp_path).out
    assert "file alone" in printed
    assert answer("threads", "file:plain", cwd=tmp_path)["total"] == 0


def test_what_a_paused_turn_looks_like() -> None:
    from locus_tiered.cli.states import waits_for

    assert waits_for(state(1)) is None
    assert waits_for(answered(1)) is None
    assert waits_for(asking(1)) == "a result of ask_user()"
    assert waits_for(state(1, interrupted_node="review", interrupt={"node_id": "review"})) is not None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ada:pw@host/db", "postgresql://***@host/db"),
        ("redis:redis://:pw@host:6379/0", "redis:redis://***@host:6379/0"),
        ("host=x password=hunter2 dbname=y", "host=x password=*** dbname=y"),
        ("https://host/x?token=abc&a=b", "https://host/x?token=***&a=b"),
        ("file:./a@b", "file:./a@b"),
    ],
)
def test_redact_takes_the_secrets_out(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_text_from_a_store_is_shown_as_it_is_and_does_nothing() -> None:
    assert clean("a\x1b[31mb\r\n\tc\x7f\x85\u202e\u200d") == "a␛[31mb␍\n\tc␡\\x85\\u202e\u200d"
    assert clean("\ud800") == "\\ud800"
    assert one_line("a\nb " * 100, 10) == "a b a b a…"
    assert one_line("short", 10) == "short"


def test_ages_and_sizes() -> None:
    assert [parse_age(text) for text in ("90s", "15m", "12h", "1.5d", "2w")] == [90, 900, 43_200, 129_600, 1_209_600]
    with pytest.raises(ValueError, match="is not an age"):
        parse_age("30")
    assert [show_age(value) for value in (None, 5, 600, 7300, 200_000)] == ["?", "5 s", "10 min", "2 h", "2 d"]
    assert [show_size(value) for value in (0, 999, 2048, 5 * 2**20, 3 * 2**40)] == [
        "0 B",
        "999 B",
        "2.0 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]
