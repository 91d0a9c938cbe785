"""What a person sees: questions, progress bars, Ctrl-C."""

from __future__ import annotations

from pathlib import Path

from locus_tiered import DirectoryCheckpointer, TieredCheckpointer
from tests.cli.kit import answer, do, fill, run, stack_of, terminal


def test_what_changes_something_asks_and_no_means_no(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 3}))
    with terminal("prune", file, "-k", "1", cwd=tmp_path) as shown:
        shown.read_until(r"Delete 2 checkpoints .*\[y/N\]")
        shown.type("n\n")
        assert shown.end() == 1
        assert "nothing was done" in shown.shown
    assert answer("ls", file, "ada", cwd=tmp_path)["total"] == 3
    with terminal("prune", file, "-k", "1", cwd=tmp_path) as shown:
        shown.read_until(r"\[y/N\]")
        shown.type("y\n")
        assert shown.end() == 0
        assert "2 checkpoints" in shown.shown
    assert answer("ls", file, "ada", cwd=tmp_path)["total"] == 1


def test_ctrl_c_ends_a_migration_cleanly_and_it_goes_on_from_there(tmp_path: Path) -> None:
    many = {f"t{number}": 10 for number in range(60)}
    do(fill(TieredCheckpointer(DirectoryCheckpointer(tmp_path / "old", durability="process")), many))
    for name in ("old", "new"):
        (tmp_path / f"{name}.yaml").write_text(f"version: 1\ntiers:\n  - directory: {{path: ./{name}}}\n")
    words = ["migrate", "--from", "old.yaml", "--to", "new.yaml", "--yes"]
    with terminal(*words, cwd=tmp_path) as shown:
        shown.read_until(r"threads.*[1-9]\d*/60")
        shown.interrupt()
        assert shown.end() == 130
        assert "Stopped." in shown.shown
        assert "the same command goes on from here" in " ".join(shown.shown.split())
        assert "Traceback" not in shown.shown
    rest = answer(*words, cwd=tmp_path)
    assert 0 < rest["copied"] < 600
    assert rest["problems"] == {}
    assert answer("stats", "new.yaml", "--quick", cwd=tmp_path)["checkpoints"] == 600


def test_a_bar_has_a_rate_and_the_time_left_and_is_gone_afterwards(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {f"t{number}": 2 for number in range(30)}))
    with terminal("verify", file, cwd=tmp_path) as shown:
        assert shown.end() == 0
    assert "threads" in shown.shown
    assert "/s" in shown.shown
    assert "30/30" in shown.shown
    assert "All in step" in shown.shown
    without = run("verify", file, cwd=tmp_path)
    assert "30/30" not in without.out + without.err, "no bar where there is no terminal"


def test_the_demo_starts_its_server_and_ctrl_c_ends_both(tmp_path: Path) -> None:
    with terminal("demo", cwd=tmp_path, TMPDIR=str(tmp_path)) as shown:
        shown.read_until("S3 server")
        shown.interrupt()
        assert shown.end() == 130
        assert "The server and all files are gone." in shown.shown
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_it_asks_does_nothing(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 3}))
    with terminal("prune", file, "-k", "1", cwd=tmp_path) as shown:
        shown.read_until(r"\[y/N\]")
        shown.interrupt()
        assert shown.end() == 130
    assert answer("ls", file, "ada", cwd=tmp_path)["total"] == 3
