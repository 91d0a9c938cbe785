"""``DirectoryCheckpointer``: crash points, damage, several processes, budget, readable files."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from locus.core.state import AgentState

from locus_tiered import DirectoryCheckpointer
from locus_tiered.core.errors import BackendError, CheckpointTooLarge, CorruptCheckpoint
from locus_tiered.core.signals import listen
from locus_tiered.stores.filenames import quote_id, unquote_id
from tests.laws.parts import ManualClock, latest, state


class Crash(BaseException):
    """The process ends here."""


class Disk:
    """Counts what changes the disk and crashes before the effect with a given number."""

    NAMES = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.effects: list[tuple[str, str]] = []
        self.crash_at: int | None = None
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, real):
        def effect(*args, **kwargs):
            if self.crash_at is not None and len(self.effects) >= self.crash_at:
                raise Crash
            self.effects.append((name, str(args[-1])))
            return real(*args, **kwargs)

        return effect


async def scene(path: Path) -> DirectoryCheckpointer:
    store = DirectoryCheckpointer(path)
    await store.save(state(1), "t", "one")
    await store.save(state(2), "t", "two")
    await store.save(state(3), "u")
    return store


CHANGES = {
    "save": (lambda store: store.save(state(9), "t", "new"), {"new": 9, "one": 1, "two": 2}),
    "save without id": (lambda store: store.save(state(9), "t"), None),
    "save again": (lambda store: store.save(state(9), "t", "one"), {"one": 9, "two": 2}),
    "delete": (lambda store: store.delete("t", "two"), {"one": 1}),
    "delete thread": (lambda store: store.delete("t"), {}),
}
BEFORE = {"one": 1, "two": 2}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_crash_before_any_effect_leaves_the_old_or_the_new(tmp_path, monkeypatch, change):
    act, after = CHANGES[change]
    disk = Disk(monkeypatch)
    number, finished = 0, False
    while not finished:
        path = tmp_path / str(number)
        disk.crash_at = None
        store = await scene(path)
        disk.effects.clear()
        disk.crash_at = number
        try:
            await act(store)
            finished = True
        except Crash:
            pass
        disk.crash_at = None
        reader = DirectoryCheckpointer(path)
        found = {each: (await reader.load("t", each)).iteration for each in await reader.list_checkpoints("t")}
        if after is None:
            values = sorted(found.values())
            assert values == ([1, 2, 9] if finished else values) and values in ([1, 2], [1, 2, 9])
        else:
            assert found in ([after] if finished else [BEFORE, after]), (number, disk.effects)
            newest = await latest(reader)
            assert newest == (next(iter(found.values())) if found else None)
        assert await latest(reader, "u") == 3
        # And whatever is done next works.
        await reader.save(state(20), "t", "one")
        assert await latest(reader) == 20
        assert (await reader.list_checkpoints("t")).count("one") == 1
        assert await reader.delete("t", "one")
        assert await reader.load("t", "one") is None
        number += 1
    assert number > 2


async def test_power_durability_syncs_the_file_before_its_name_and_the_directory_after(tmp_path, monkeypatch):
    store = DirectoryCheckpointer(tmp_path)
    await store.save(state(1), "t")
    disk = Disk(monkeypatch)
    await store.save(state(2), "t")
    assert [name for name, _ in disk.effects] == ["fsync", "replace", "fsync"]
    disk.effects.clear()
    await DirectoryCheckpointer(tmp_path, durability="process").save(state(3), "t")
    assert [name for name, _ in disk.effects] == ["replace"]


@pytest.mark.parametrize("position", ["header", "metadata", "state", "tail"])
async def test_a_flipped_bit_is_reported_quarantined_and_hides_no_other(tmp_path, caplog, position):
    store = DirectoryCheckpointer(tmp_path)
    first = await store.save(state(1), "t", metadata={"k": "value"})
    second = await store.save(state(2), "t", metadata={"k": "value"})
    file = tmp_path / "t" / f"{second}.json"
    raw = bytearray(file.read_bytes())
    lines = bytes(raw).split(b"\n")
    at = {"header": 30, "metadata": len(lines[0]) + 20, "state": len(raw) // 2, "tail": len(raw) - 3}[position]
    raw[at] ^= 0x04
    file.write_bytes(raw)
    heard = []
    with listen(heard.append), caplog.at_level(logging.ERROR, "locus_tiered"):
        assert await latest(store) == 1
    assert [signal.kind for signal in heard] == ["store.damaged"]
    assert "damaged checkpoint of thread 't'" in caplog.text
    assert (tmp_path / ".damaged" / "t" / f"{second}.json").read_bytes() == bytes(raw)
    with pytest.raises(CorruptCheckpoint):
        await store.load("t", second)
    assert (await store.load("t", first)).iteration == 1
    assert await store.list_checkpoints("t") == [first]
    await store.save(state(3), "t", second)
    assert (await store.load("t", second)).iteration == 3
    assert await store.delete("t")
    assert await store.load("t", second) is None


async def test_every_truncation_of_a_file_is_noticed(tmp_path):
    store = DirectoryCheckpointer(tmp_path)
    saved = await store.save(AgentState(), "t")
    file = tmp_path / "t" / f"{saved}.json"
    raw = file.read_bytes()
    for length in range(0, len(raw), 97):
        file.write_bytes(raw[:length])
        with pytest.raises(CorruptCheckpoint):
            await store.load("t", saved)
        file.write_bytes(raw)
        (tmp_path / ".damaged" / "t" / f"{saved}.json").unlink()
    assert await store.load("t", saved) is not None


async def test_a_file_in_the_wrong_place_is_damage(tmp_path):
    store = DirectoryCheckpointer(tmp_path)
    saved = await store.save(state(1), "t")
    await store.save(state(2), "u")
    (tmp_path / "t" / f"{saved}.json").rename(tmp_path / "u" / f"{saved}.json")
    with pytest.raises(CorruptCheckpoint):
        await store.load("u", saved)
    assert await latest(store, "u") == 2


async def test_a_checkpoint_is_a_readable_json_file(tmp_path):
    store = DirectoryCheckpointer(tmp_path)
    await store.save(state(7), "a thread/with a slash", "my id", {"who": "me"})
    (file,) = tmp_path.glob("*/*.json")
    assert file.parent.name == "a%20thread%2Fwith%20a%20slash"
    assert file.name.endswith(".my%20id.json")
    found = json.loads(file.read_text())
    assert found["state"]["iteration"] == 7
    assert found["metadata"] == {"who": "me"}
    assert found["locus_tiered"]["thread"] == "a thread/with a slash"


def test_file_names_are_injective_and_stay_apart_where_case_is_ignored():
    ids = [
        "a",
        "A",
        "aB",
        "Ab",
        "a/b",
        "a%2Fb",
        "~a",
        "a~",
        ".",
        "..",
        ".a",
        " ",
        "ü",
        "\ud800",
        "\0",
        "x" * 300,
        "X" * 300,
    ]
    names = [quote_id(each) for each in ids]
    assert len({name.lower() for name in names}) == len(ids)
    for each, name in zip(ids, names, strict=True):
        assert "/" not in name and not name.startswith(".") and len(name.encode()) <= 200
        assert unquote_id(name) in (each, None)


async def test_golden_files_of_every_version_stay_readable(tmp_path):
    golden = shutil.copytree(Path(__file__).parent.parent / "golden" / "directory-v1", tmp_path / "golden")
    store = DirectoryCheckpointer(golden)
    assert await store.list_threads() == ["A thread/with a slash", "plain"]
    assert [entry[:6] for entry in await store.list_checkpoints("plain")] == ["draft", "019a03"]
    found = await store.load("plain")
    assert found.messages[0].content == "hello 🦭"
    assert found.metadata == {"nested": {"list": [1, 2.5, None]}}
    assert (await store.get_metadata("plain", "draft"))["metadata"] == {"who": "golden"}
    assert (await store.load("A thread/with a slash")).iteration == 3


async def test_processes_share_a_directory_without_losing_a_save(tmp_path):
    script = """
import asyncio, sys
from locus.core.state import AgentState
from locus_tiered import DirectoryCheckpointer
async def main():
    store = DirectoryCheckpointer(sys.argv[1], durability="process")
    for number in range(40):
        await store.save(AgentState(iteration=number), "t", f"{sys.argv[2]}-{number}")
        if number % 4 == 3:
            await store.delete("t", f"{sys.argv[2]}-{number - 1}")
            await store.delete("other")
            await store.save(AgentState(), "other")
asyncio.run(main())
"""
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(tmp_path), str(number))
        for number in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    ids = await DirectoryCheckpointer(tmp_path).list_checkpoints("t", limit=1000)
    assert sorted(ids) == sorted(f"{p}-{n}" for p in range(3) for n in range(40) if n % 4 != 2)


async def test_each_process_sees_the_others_newest(tmp_path):
    one, other = DirectoryCheckpointer(tmp_path), DirectoryCheckpointer(tmp_path)
    for number in range(6):
        await (one, other)[number % 2].save(state(number), "t", "x" if number % 3 == 0 else None)
        assert await latest(one) == await latest(other) == number


async def test_the_budget_in_bytes_is_kept_and_a_thread_never_answers_with_an_older_state(tmp_path):
    store = DirectoryCheckpointer(tmp_path, max_bytes="64KiB", durability="process")
    for number in range(120):
        thread = f"t{number % 10}"
        await store.save(state(number), thread)
        assert await latest(store, thread) == number
        total = sum(file.stat().st_size for file in tmp_path.glob("*/*.json"))
        assert total <= 64 * 1024
    for thread in range(10):
        assert await latest(store, f"t{thread}") in (None, 110 + thread)
    with pytest.raises(CheckpointTooLarge):
        await store.save(state(1, blob="x" * 70_000), "t")


async def test_ttl_and_vacuum_go_by_the_time_of_the_save(tmp_path):
    time = ManualClock()
    store = DirectoryCheckpointer(tmp_path, ttl=100, clock=time.clock())
    await store.save(state(1), "t")
    time.advance(60)
    second = await store.save(state(2), "t")
    time.advance(60)
    assert await store.list_checkpoints("t") == [second]
    assert store.capabilities.ttl
    time.advance(60)
    assert await store.load("t") is None
    assert await store.list_threads() == []
    keeper = DirectoryCheckpointer(tmp_path / "k", clock=time.clock())
    await keeper.save(state(1), "t")
    time.advance(3 * 86_400)
    await keeper.save(state(2), "t")
    assert not keeper.capabilities.ttl
    assert await keeper.vacuum(older_than_days=2) == 1
    assert await latest(keeper) == 2


async def test_errors_of_the_file_system_name_the_member_and_lose_nothing(tmp_path, monkeypatch):
    store = DirectoryCheckpointer(tmp_path, name="disk")
    await store.save(state(1), "t")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError) as caught:
        await store.save(state(2), "t")
    monkeypatch.undo()
    assert (caught.value.member, caught.value.operation, caught.value.temporary) == ("disk", "save", False)
    assert await latest(store) == 1
    assert not list(tmp_path.glob(".tmp-*"))


async def test_optional_operations(tmp_path):
    store = DirectoryCheckpointer(tmp_path)
    first = await store.save(state(1), "alpha", metadata={"k": 1, "n": [1]})
    second = await store.save(state(2), "beta", metadata={"k": True})
    third = await store.save(state(3), "alpha", "named", {"k": 1})
    assert [row["checkpoint_id"] for row in await store.list_with_metadata()] == [third, second, first]
    assert [row["checkpoint_id"] for row in await store.list_with_metadata(limit=1)] == [third]
    assert [row["checkpoint_id"] for row in await store.query_by_metadata("k", 1)] == [third, first]
    assert [row["checkpoint_id"] for row in await store.query_by_metadata("k", True)] == [second]
    assert (await store.get_metadata("alpha"))["checkpoint_id"] == third
    assert (await store.get_metadata("alpha", first))["metadata"] == {"k": 1, "n": [1]}
    assert await store.get_metadata("alpha", "unknown") is None
    assert await store.list_threads() == ["alpha", "beta"]
    assert await store.list_threads(pattern="b*") == ["beta"]
    assert await store.copy_thread("alpha", "gamma")
    assert await store.list_checkpoints("gamma") == [third, first]
    assert (await store.get_metadata("gamma", first))["metadata"] == {"k": 1, "n": [1]}


def test_it_works_after_a_fork_like_use_from_many_loops(tmp_path):
    store = DirectoryCheckpointer(tmp_path)
    for number in range(3):
        asyncio.run(store.save(state(number), "t"))
    code = (
        "import asyncio, sys; from locus_tiered import DirectoryCheckpointer as D; "
        "print(asyncio.run(D(sys.argv[1]).load('t')).iteration)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "2"
