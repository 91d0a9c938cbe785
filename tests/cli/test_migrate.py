"""Migration: in order, verified, resumable after anything, and never over what somebody else saved."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from locus.core.state import AgentState
from locus.memory.backends import FileCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import DirectoryCheckpointer, TieredCheckpointer
from locus_tiered.cli.migration_state import Copied, StateFile
from locus_tiered.cli.states import digest
from locus_tiered.core.stamp import is_stamp, stamp_seconds
from locus_tiered.testing.services import wait_until
from tests.cli.kit import COMMAND, answer, do, environment, fill, ids, run, state

THREADS, EACH = 20, 100


def _everything(checkpointer: BaseCheckpointer) -> dict[str, list[str]]:
    """Every thread's states, newest first, by their digests."""

    async def read() -> dict[str, list[str]]:
        found = {}
        for thread in await checkpointer.list_threads(10_000):
            names = await checkpointer.list_checkpoints(thread, 10_000)
            states = [await checkpointer.load(thread, name) for name in names]
            newest = await checkpointer.load(thread)
            found[thread] = [digest(one) for one in (newest, *states) if one is not None]
        await checkpointer.close()
        return found

    return do(read())


def _directory(path: Path) -> DirectoryCheckpointer:
    return DirectoryCheckpointer(path, durability="process")


def _stack(directory: Path, name: str) -> Path:
    file = directory / f"{name}.yaml"
    file.write_text(
        f"version: 1\nname: {name}\ntiers:\n  - memory: {{max_bytes: 8MiB}}\n"
        f"  - directory: {{path: ./{name}-home, durability: process}}\n    name: home\n"
    )
    return file


def test_2000_checkpoints_killed_half_way_and_resumed(tmp_path: Path) -> None:
    source, destination = _stack(tmp_path, "old"), _stack(tmp_path, "new")
    do(fill(TieredCheckpointer(_directory(tmp_path / "old-home")), {f"t:{n}": EACH for n in range(THREADS)}))
    words = ["migrate", "--from", str(source), "--to", str(destination), "--yes"]
    copies = tmp_path / "new-home"

    def copied() -> int:
        return sum(1 for _ in copies.glob("t*/*.json"))

    process = subprocess.Popen(
        [*COMMAND, *words], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: copied() >= THREADS * EACH // 2, timeout=50, what="half of the copies")
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    half = copied()
    assert THREADS * EACH // 2 <= half < THREADS * EACH
    resumed = answer(*words, cwd=tmp_path)
    assert resumed["threads"] == THREADS
    assert 0 < resumed["copied"] <= THREADS * EACH - half + 4, "a copy that was made is not made again"
    assert resumed["already"] >= 1
    assert resumed["problems"] == {}
    before = _everything(TieredCheckpointer(_directory(tmp_path / "old-home")))
    after = _everything(TieredCheckpointer(_directory(copies)))
    assert after == before
    assert sum(len(states) - 1 for states in after.values()) == THREADS * EACH
    again = answer(*words, cwd=tmp_path)
    assert (again["copied"], again["verified"], again["already"]) == (0, 0, THREADS)


def _migrate(directory: Path, source: object, destination: object, *words: str, expect: int = 0) -> dict[str, object]:
    found: dict[str, object] = answer(
        "migrate", "--from", source, "--to", destination, *words, cwd=directory, expect=expect
    )
    return found


def test_what_changed_since_is_copied_by_the_next_run(tmp_path: Path) -> None:
    source = TieredCheckpointer(_directory(tmp_path / "old-home"))
    do(fill(source, {"ada": 4, "bob": 2}))
    old, new = _stack(tmp_path, "old"), _stack(tmp_path, "new")
    assert _migrate(tmp_path, old, new, "--yes")["copied"] == 6
    names = do(source.list_checkpoints("ada"))

    async def change() -> None:
        await source.save(state(9), "ada")
        await source.delete("ada", names[2])
        await source.save(state(1), "carol")

    do(change())
    second = _migrate(tmp_path, old, new, "--yes")
    assert (second["copied"], second["removed"], second["already"]) == (2, 1, 1)
    assert _everything(_directory(tmp_path / "new-home")) == _everything(_directory(tmp_path / "old-home"))
    assert not answer("diff", old, "ada", "--other", new, cwd=tmp_path)["changes"]


def test_a_thread_that_the_source_deleted_is_kept_until_it_is_said(tmp_path: Path) -> None:
    source = TieredCheckpointer(_directory(tmp_path / "old-home"))
    do(fill(source, {"ada": 2, "bob": 2}))
    old, new = _stack(tmp_path, "old"), _stack(tmp_path, "new")
    _migrate(tmp_path, old, new, "--yes")
    do(source.delete("bob"))
    kept = _migrate(tmp_path, old, new, "--yes", expect=1)
    assert list(kept["problems"]) == ["bob"]  # type: ignore[call-overload]
    assert len(_everything(_directory(tmp_path / "new-home"))) == 2
    assert _migrate(tmp_path, old, new, "--yes", "--mirror-deletes")["removed"] == 2
    assert list(_everything(_directory(tmp_path / "new-home"))) == ["ada"]
    assert _migrate(tmp_path, old, new, "--yes")["problems"] == {}


def test_a_thread_of_somebody_else_at_the_destination_is_left_alone(tmp_path: Path) -> None:
    do(fill(TieredCheckpointer(_directory(tmp_path / "old-home")), {"ada": 2, "bob": 2}))
    do(fill(TieredCheckpointer(_directory(tmp_path / "new-home")), {"ada": 1}, text="mine"))
    old, new = _stack(tmp_path, "old"), _stack(tmp_path, "new")
    before = _everything(_directory(tmp_path / "new-home"))["ada"]
    found = _migrate(tmp_path, old, new, "--yes", expect=1)
    assert list(found["problems"]) == ["ada"]  # type: ignore[call-overload]
    after = _everything(_directory(tmp_path / "new-home"))
    assert after["ada"] == before
    assert len(after["bob"]) == 3


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    do(fill(TieredCheckpointer(_directory(tmp_path / "old-home")), {"ada": 3}))
    old, new = _stack(tmp_path, "old"), _stack(tmp_path, "new")
    before = sorted(tmp_path.rglob("*"))
    assert _migrate(tmp_path, old, new, "--dry-run")["copied"] == 3
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_saved_without_a_stack_keeps_its_order_and_its_age(tmp_path: Path) -> None:
    plain = FileCheckpointer(str(tmp_path / "plain"))

    async def save() -> list[float]:
        times = []
        for number in range(5):
            one: AgentState = state(number)
            old = one.updated_at.timestamp() - 86_400 * (5 - number)
            one = one.model_copy(update={"updated_at": one.updated_at.fromtimestamp(old, one.updated_at.tzinfo)})
            times.append(old)
            await plain.save(one, "anon:4711")  # an AgentServer's thread
        return times

    times = do(save())
    new = _stack(tmp_path, "new")
    assert _migrate(tmp_path, "file:plain", new, "--yes")["copied"] == 5
    rows = answer("ls", new, "anon:4711", cwd=tmp_path)["checkpoints"]
    loaded = [do(_directory(tmp_path / "new-home").load("anon:4711", name)) for name in ids(rows)]
    assert [one.iteration for one in loaded if one is not None] == [4, 3, 2, 1, 0]
    assert [stamp_seconds(row["stamp"]) for row in reversed(rows)] == pytest.approx(times, abs=0.01)
    assert not any(is_stamp(row["id"]) for row in rows), "ids stay as they were"

    # A thread that went on with a stack in front: what came before stays before.
    async def go_on() -> None:
        await TieredCheckpointer(plain).save(state(7), "anon:4711")

    do(go_on())
    other = _stack(tmp_path, "other")
    # Through the stack such a thread is under the stack's own name for it; it is copied as it is listed.
    found = _migrate(tmp_path, "file:plain", other, "--yes", "--thread", "anon:4711")
    assert found["problems"] == {}
    assert answer("show", other, "anon:4711", cwd=tmp_path)["state"]["iteration"] == 7


def test_out_of_a_stack_its_states_are_what_their_users_would_have_saved(tmp_path: Path) -> None:
    do(fill(TieredCheckpointer(_directory(tmp_path / "old-home")), {"ada": 5}))
    old = _stack(tmp_path, "old")
    assert _migrate(tmp_path, old, "file:plain", "--yes")["copied"] == 5
    plain = FileCheckpointer(str(tmp_path / "plain"))
    newest = do(plain.load("ada"))
    assert newest is not None
    assert (newest.iteration, newest.metadata) == (4, {})
    assert do(plain.list_checkpoints("ada", 10)) == do(_directory(tmp_path / "old-home").list_checkpoints("ada", 10))
    back = _stack(tmp_path, "back")
    assert _migrate(tmp_path, "file:plain", back, "--yes")["problems"] == {}
    assert _everything(_directory(tmp_path / "back-home")) == _everything(_directory(tmp_path / "old-home"))


def test_a_damaged_checkpoint_stops_its_own_thread_only(tmp_path: Path) -> None:
    do(fill(TieredCheckpointer(_directory(tmp_path / "old-home")), {"ada": 3, "bob": 1}))
    victim = sorted((tmp_path / "old-home/ada").glob("*.json"))[1]
    victim.write_bytes(victim.read_bytes().replace(b"hello", b"jello"))
    found = _migrate(tmp_path, _stack(tmp_path, "old"), _stack(tmp_path, "new"), "--yes", expect=1)
    assert list(found["problems"]) == ["ada"]  # type: ignore[call-overload]
    assert victim.exists(), "the source is only read"
    copied = _everything(_directory(tmp_path / "new-home"))
    assert {thread: len(states) - 1 for thread, states in copied.items()} == {"ada": 1, "bob": 1}


def test_the_state_file_is_one_migration_s_at_a_time_and_of_one_pair(tmp_path: Path) -> None:
    file = tmp_path / "x.state"
    held = StateFile(file, "a", "b")
    odd = "t\udc80\0/ü"
    held.intend(odd, ["1", odd])
    held.done(odd, Copied("1", None, 2, "d"))
    do(fill(TieredCheckpointer(_directory(tmp_path / "old-home")), {"ada": 1}))
    old, new = _stack(tmp_path, "old"), _stack(tmp_path, "new")
    ran = run("migrate", "--from", old, "--to", new, "--yes", "--state", file, cwd=tmp_path, expect=2)
    assert "another migration is using it" in ran.err
    held.close()
    again = StateFile(file, "a", "b")
    assert again.copied(odd) == Copied("1", None, 2, "d")
    assert again.ours(odd) == {"1", odd}
    assert list(again.threads()) == [odd]
    again.close()
    ran = run("migrate", "--from", old, "--to", new, "--yes", "--state", file, cwd=tmp_path, expect=2)
    assert "belongs to a migration between other stacks" in ran.err
    file.write_bytes(b"something else entirely, and long enough to be no database" * 20)
    ran = run("migrate", "--from", old, "--to", new, "--yes", "--state", file, cwd=tmp_path, expect=2)
    assert "not a migration's state file" in ran.err
