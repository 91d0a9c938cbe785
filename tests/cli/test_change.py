"""The commands that change: only what they said, only when they were told to, and nothing that is needed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from locus.agent import Agent
from locus.memory.backends import FileCheckpointer
from locus.multiagent.graph import StateGraph
from locus.testing import ScriptedModel, text, tool_call

from locus_tiered import DirectoryCheckpointer
from locus_tiered.config import load_stack
from tests.cli.fixed import fixed_stack
from tests.cli.kit import (
    answer,
    answered,
    asking,
    do,
    environment,
    fill,
    ids,
    run,
    stack_of,
    state,
)

# -- prune ---------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_of_each_thread_and_says_exactly_what_goes(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 5, "bob": 1, "carol": 3}))
    threads = ("ada", "bob", "carol")
    before = {thread: ids(answer("ls", file, thread, cwd=tmp_path)["checkpoints"]) for thread in threads}
    planned = answer("prune", file, "--keep-last", "2", "--dry-run", cwd=tmp_path)
    assert {(row["thread"], row["checkpoint"]) for row in planned["checkpoints"]} == {
        ("ada", name) for name in before["ada"][2:]
    } | {("carol", before["carol"][2])}
    assert ids(answer("ls", file, "ada", cwd=tmp_path)["checkpoints"]) == before["ada"], "it was a dry run"
    went = answer("prune", file, "--keep-last", "2", "--yes", cwd=tmp_path)
    assert went["checkpoints"] == planned["checkpoints"]
    assert (went["pruned"], went["kept"]) == (4, 5)
    for thread, names in before.items():
        listed = answer("ls", file, thread, cwd=tmp_path)["checkpoints"]
        assert ids(listed) == names[:2]
        assert all(set(row["tiers"].values()) == {"same"} for row in listed), "near tiers are pruned with home"


def test_prune_by_age_and_by_number_needs_both_to_hold(tmp_path: Path) -> None:
    fixed_stack(tmp_path)  # all of January 2026
    assert answer("prune", "stack.yaml", "--older-than", "1d", "--dry-run", cwd=tmp_path)["pruned"] == 3
    assert answer("prune", "stack.yaml", "--older-than", "1d", "-k", "2", "--dry-run", cwd=tmp_path)["pruned"] == 1
    assert answer("prune", "stack.yaml", "--older-than", "2000w", "--dry-run", cwd=tmp_path)["pruned"] == 0
    assert answer("prune", "stack.yaml", "-k", "1", "-t", "carol", "--dry-run", cwd=tmp_path)["pruned"] == 1


def test_prune_in_one_tier_leaves_home_alone(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 3}))
    assert answer("prune", file, "-k", "1", "--tier", "near", "--yes", cwd=tmp_path)["pruned"] == 2
    rows = answer("ls", file, "ada", cwd=tmp_path)["checkpoints"]
    assert [row["tiers"] for row in rows] == [
        {"near": "same", "home": "same"},
        {"near": "absent", "home": "same"},
        {"near": "absent", "home": "same"},
    ]
    refused = run("prune", file, "-k", "1", "--tier", "home", "--yes", cwd=tmp_path, expect=2)
    assert "what goes there is gone" in refused.err


def test_prune_never_takes_a_paused_turn(tmp_path: Path) -> None:
    store = FileCheckpointer(str(tmp_path / "plain"))

    async def save() -> None:
        await store.save(asking(1), "gone on", "pause-1")
        await store.save(answered(1), "gone on", "answered")
        await store.save(asking(2), "waits", "pause-2")
        await store.save(asking(3), "waits", "pause-3")

    do(save())
    went = answer("prune", "file:plain", "-k", "1", "--yes", cwd=tmp_path)
    assert (went["pruned"], went["waiting"]) == (0, 2)
    went = answer("prune", "file:plain", "-k", "1", "--answered", "--yes", cwd=tmp_path)
    assert [(row["thread"], row["checkpoint"]) for row in went["checkpoints"]] == [("gone on", "pause-1")]
    assert went["waiting"] == 1, "a thread whose last word is a pause keeps the pauses before it too"


async def _paused_agent(store: FileCheckpointer) -> None:
    from locus import tool

    @tool
    async def ask_user(question: str) -> str:
        """Ask."""
        return '{"__interrupt__": true, "question": "May I?"}'

    agent = Agent(
        model=ScriptedModel([tool_call("ask_user", call_id="c1", question="May I?"), text("Thank you.")]),
        tools=[ask_user],
        checkpointer=store,
        context_window=8_000,
    )
    async for _ in agent.run("Do it.", thread_id="agent"):
        pass


async def _paused_graph(store: FileCheckpointer) -> None:
    from locus.core.interrupt import interrupt
    from locus.multiagent.graph import END, START, GraphConfig

    async def ask(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"answer": interrupt({"question": "May I?"})}

    graph = StateGraph(config=GraphConfig(checkpointer=store, thread_id="graph"))
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    result = await graph.execute({"order": 7})
    assert result.interrupt is not None


@pytest.mark.parametrize(
    ("pause", "thread", "waits"),
    [(_paused_agent, "agent", "ask_user()"), (_paused_graph, "graph", "the graph's node 'ask'")],
)
def test_a_pause_of_the_sdk_s_own_agents_and_graphs_is_recognised(
    tmp_path: Path, pause: Any, thread: str, waits: str
) -> None:
    do(pause(FileCheckpointer(str(tmp_path / "plain"))))
    assert waits in answer("show", "file:plain", thread, cwd=tmp_path)["waits_for"]
    assert answer("stats", "file:plain", cwd=tmp_path)["waiting"] == 1
    assert answer("prune", "file:plain", "-k", "1", "--dry-run", cwd=tmp_path)["pruned"] == 0


def test_without_a_terminal_and_without_yes_nothing_is_changed(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 3}))
    for words in (
        ["prune", file, "-k", "1"],
        ["repair", file],
        ["migrate", "--from", file, "--to", "file:copy"],
        ["bench", file],
    ):
        ran = run(*words, cwd=tmp_path, expect=2, stdin="y\n")
        assert "pass --yes" in ran.err
    assert answer("ls", file, "ada", cwd=tmp_path)["total"] == 3
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob("*.state"))


# -- verify and repair ---------------------------------------------------------------------------------


def _spoil(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"hello", b"jello"))


def test_verify_finds_damage_and_repair_restores_it_from_a_copy(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 4}))
    names = ids(answer("ls", file, "ada", cwd=tmp_path)["checkpoints"])
    _spoil(next((tmp_path / "home/ada").glob(f"{names[1]}*")))  # home's, with a copy near
    _spoil(next((tmp_path / "near/ada").glob(f"{names[3]}*")))  # the near copy
    found = answer("verify", file, cwd=tmp_path, expect=1)
    assert sorted((each["kind"], each["place"], each["checkpoint"]) for each in found["found"]) == [
        ("damaged", "home", names[1]),
        ("damaged", "near", names[3]),
    ]
    assert not (tmp_path / "home/.damaged").exists(), "who verifies moves nothing aside"
    planned = answer("repair", file, "--dry-run", cwd=tmp_path, expect=1)
    done = answer("repair", file, "--yes", cwd=tmp_path)
    assert done["done"] == planned["done"]
    assert {(each["place"], each["action"]) for each in done["done"]} == {
        ("home", "restored"),
        ("near", "removed copy"),
    }
    assert answer("verify", file, cwd=tmp_path)["kinds"] == {}
    listed = answer("ls", file, "ada", cwd=tmp_path)["checkpoints"]
    assert ids(listed) == names, "restoring an old one makes nothing else the newest"
    assert answer("show", file, "ada", cwd=tmp_path)["state"]["iteration"] == 3


def test_what_home_has_put_aside_as_damaged_is_restored_from_a_copy(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 3}))
    names = ids(answer("ls", file, "ada", cwd=tmp_path)["checkpoints"])
    _spoil(next((tmp_path / "home/ada").glob(f"{names[0]}*")))
    found = do(DirectoryCheckpointer(tmp_path / "home").load("ada"))
    assert found is not None
    assert found.iteration == 1, "home goes on with the one before, and has put the damaged one aside"
    assert answer("verify", file, cwd=tmp_path, expect=1)["kinds"] == {"damaged": 1}
    assert [each["action"] for each in answer("repair", file, "-y", cwd=tmp_path)["done"]] == ["restored"]
    assert answer("show", file, "ada", cwd=tmp_path)["state"]["iteration"] == 2
    assert answer("verify", file, cwd=tmp_path)["kinds"] == {}


def test_what_nobody_has_undamaged_is_left_and_told(tmp_path: Path) -> None:
    do(fill(DirectoryCheckpointer(tmp_path / "home"), {"ada": 2}))
    (tmp_path / "one.yaml").write_text("version: 1\ntiers:\n  - directory: {path: ./home}\n")
    names = ids(answer("ls", "one.yaml", "ada", cwd=tmp_path)["checkpoints"])
    _spoil(next((tmp_path / "home/ada").glob(f"{names[1]}*")))
    done = answer("repair", "one.yaml", "--yes", cwd=tmp_path, expect=1)
    assert [each["why"] for each in done["left"]] == ["no undamaged copy is left"]
    assert "1 left" in run("repair", "one.yaml", "--yes", cwd=tmp_path, expect=1).out


def test_what_only_a_near_tier_has_is_neither_deleted_nor_brought_back_unasked(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)
    do(fill(stack, {"ada": 2}))
    do(DirectoryCheckpointer(tmp_path / "home").delete("ada"))
    near = DirectoryCheckpointer(tmp_path / "near")
    assert answer("verify", file, "-t", "ada", cwd=tmp_path, expect=1)["kinds"] == {"leftover": 2}
    assert len(answer("repair", file, "-t", "ada", "-y", cwd=tmp_path, expect=1)["left"]) == 2
    assert len(do(near.list_checkpoints("ada"))) == 2
    assert answer("repair", file, "-t", "ada", "-y", "--restore-leftovers", cwd=tmp_path)["left"] == []
    assert answer("show", file, "ada", cwd=tmp_path)["state"]["iteration"] == 1
    assert answer("verify", file, cwd=tmp_path)["kinds"] == {}


def test_an_old_copy_in_a_near_tier_is_shown_and_removed(tmp_path: Path) -> None:
    stack, file = stack_of(tmp_path)

    async def save() -> None:
        await stack.save(state(1), "ada", "draft")
        await stack.close()
        await DirectoryCheckpointer(tmp_path / "home").save(state(2), "ada", "draft")

    do(save())
    assert "OLD" in run("ls", file, "ada", cwd=tmp_path).out
    assert answer("verify", file, cwd=tmp_path, expect=1)["kinds"] == {"stale": 1}
    assert [each["action"] for each in answer("repair", file, "-y", cwd=tmp_path)["done"]] == ["removed copy"]
    assert answer("show", file, "ada", cwd=tmp_path)["state"]["iteration"] == 2


# -- flush ---------------------------------------------------------------------------------------------

_DIES = """
import asyncio, os, sys
from tests.cli.kit import state
from locus_tiered.config import load_stack

async def main():
    stack = load_stack("behind.yaml")
    for number in range(6):
        await stack.save(state(number, _locus_iteration_checkpoints=[f"{number:032x}"]), "t", f"{number:032x}")
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def _behind(directory: Path) -> Path:
    file = directory / "behind.yaml"
    file.write_text(
        "version: 1\njournal: {path: ./journal, drain_timeout: 0.5}\ntiers:\n  - memory: {max_bytes: 8MiB}\n"
        "  - file: {base_dir: ./home}\n    name: home\n    write: behind\n    ack: journal\n"
    )
    return file


def test_flush_sends_what_a_killed_process_left_and_looking_does_not(tmp_path: Path) -> None:
    file = _behind(tmp_path)
    died = subprocess.run([sys.executable, "-c", _DIES], cwd=tmp_path, env=environment(), check=False, timeout=60)
    assert died.returncode == -9
    assert answer("threads", file, cwd=tmp_path)["pending"] == 6
    assert "flush sends them" in run("ls", file, "t", cwd=tmp_path, expect=1).err
    (journal,) = answer("stats", file, cwd=tmp_path)["journals"]
    assert journal["rows"] == 6
    assert journal["bytes"] > 0
    flushed = answer("flush", file, cwd=tmp_path)
    assert [
        (before["rows"], after["rows"]) for before, after in zip(flushed["before"], flushed["after"], strict=True)
    ] == [(6, 0)]
    assert ids(answer("ls", file, "t", cwd=tmp_path)["checkpoints"]) == [
        f"{number:032x}" for number in range(5, -1, -1)
    ]
    assert "Everything is in the far store." in run("flush", file, cwd=tmp_path).out


def test_a_migration_tells_of_what_still_lies_in_a_journal_and_prune_sends_its_deletes(tmp_path: Path) -> None:
    file = _behind(tmp_path)
    subprocess.run([sys.executable, "-c", _DIES], cwd=tmp_path, env=environment(), check=False, timeout=60)
    words = ("migrate", "--from", file, "--to", "file:copy", "--yes")
    assert answer(*words, cwd=tmp_path, expect=1)["pending"] == 6
    answer("flush", file, cwd=tmp_path)
    done = answer(*words, cwd=tmp_path)
    assert (done["pending"], done["copied"], done["problems"]) == (0, 6, {})
    assert answer("show", "file:copy", "t", cwd=tmp_path)["state"]["iteration"] == 5
    assert answer("prune", file, "-k", "2", "--yes", cwd=tmp_path)["pruned"] == 4
    assert answer("stats", file, cwd=tmp_path)["journals"][0]["rows"] == 0
    assert answer("ls", file, "t", cwd=tmp_path)["total"] == 2


def test_flush_leaves_the_rows_of_a_living_process_to_it(tmp_path: Path) -> None:
    file = _behind(tmp_path)

    async def live() -> Any:
        stack = load_stack(file)
        await stack.save(state(1, _locus_iteration_checkpoints=["1" * 32]), "t", "1" * 32)
        ran = await asyncio.to_thread(answer, "flush", file, cwd=tmp_path)
        found = await stack.load("t")
        await stack.close()
        return ran, found

    flushed, found = do(live())
    assert [(after["rows"], after["others"]) for after in flushed["after"]] == [(0, 1)]
    assert found.iteration == 1


def test_what_the_far_store_never_took_is_told_and_may_be_tried_again(tmp_path: Path) -> None:
    file = _behind(tmp_path)
    subprocess.run([sys.executable, "-c", _DIES], cwd=tmp_path, env=environment(), check=False, timeout=60)
    (tmp_path / "home").write_text("a file stands where the directory was")
    run("flush", file, "--timeout", "2", cwd=tmp_path, expect=3)
    (tmp_path / "home").unlink()
    flushed = answer("flush", file, "--retry-dead-letters", cwd=tmp_path)["after"][0]
    assert (flushed["rows"], flushed["dead_letters"]) == (0, 0)
    # An iteration save of a process that died is of no use once a later one is there: some are dropped.
    assert answer("show", file, "t", cwd=tmp_path)["state"]["iteration"] == 5
