"""Laws 9 to 15: cancellation, event loops, capabilities, ids, bounds, order per thread, amplification."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    TracedCheckpointer,
)
from locus_tiered.core.capabilities import METHODS
from locus_tiered.core.errors import BackendError, CapabilityMissing, CheckpointTooLarge, CorruptCheckpoint
from locus_tiered.layers.names import name_leg
from locus_tiered.testing.faults import FaultyCheckpointer, ReferenceCheckpointer, on
from tests.laws.parts import latest, stack, state

HOSTILE = [
    "a/b",
    "a_b",
    "a:b",
    "..",
    ".",
    "_latest",
    "latest",
    "_checkpoints",
    "x.meta",
    ":",
    "a b",
    "A",
    "a",
    "x" * 4096,
    "x" * 4095 + "y",
    "ü",
    "u\u0308",
    "🦭",
    "\0",
    "\ud800",
    "lt-x-a",
    "a#1",
    "a%2Fb",
    "~a",
    ".a",
    " ",
]


async def test_law_9_a_cancelled_save_leaves_at_once_and_the_next_one_waits_for_it_to_end():
    faulty = FaultyCheckpointer(script=[on("save").hang()])
    checkpointer = stack(faulty)
    first = asyncio.create_task(checkpointer.save(state(1), "t", "one"))
    await faulty.until_hung()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(checkpointer.save(state(2), "t", "two"))
    elsewhere = await checkpointer.save(state(3), "u")  # other threads do not wait
    assert elsewhere
    assert not second.done()
    assert faulty.count("save", "t") == 1
    faulty.release()
    assert await second == "two"
    assert await latest(checkpointer) == 2
    assert faulty.max_in_flight("t") == 1


async def test_law_9_one_callers_cancellation_never_fails_another():
    faulty = FaultyCheckpointer(script=[on("save").hang()])
    checkpointer = stack(faulty)
    first = asyncio.create_task(checkpointer.save(state(1), "t"))
    await faulty.until_hung()
    waiting = [asyncio.create_task(checkpointer.save(state(n), "t")) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]
    faulty.release()
    await asyncio.gather(first, waiting[0], waiting[2])
    assert await latest(checkpointer) == 4
    assert len(await checkpointer.list_checkpoints("t")) == 3  # the cancelled one had not begun


async def test_law_9_an_abandoned_delete_reaches_the_near_tiers_too(tmp_path):
    faulty = FaultyCheckpointer(script=[on("delete").hang()])
    checkpointer = stack(faulty, tmp_path)
    saved = await checkpointer.save(state(1), "t")
    delete = asyncio.create_task(checkpointer.delete("t", saved))
    await faulty.until_hung()
    delete.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delete
    faulty.release()
    await checkpointer.save(state(2), "t")
    assert await checkpointer.load("t", saved) is None


def test_law_10_a_stack_works_in_loop_after_loop_with_and_without_close(tmp_path):
    checkpointer = TieredCheckpointer(
        BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path / "a"), FileCheckpointer(tmp_path / "b")
    )

    async def turn(number: int, close: bool) -> None:
        # Contended in every loop: what is bound to one would fail in the next.
        await asyncio.gather(*(checkpointer.save(state(number * 100 + n), "t") for n in range(10)))
        await asyncio.gather(*(checkpointer.load("t") for _ in range(10)))
        assert await latest(checkpointer) == number * 100 + 9
        if close:
            await checkpointer.close()
            await checkpointer.close()

    for number in range(4):
        asyncio.run(turn(number, close=number % 2 == 0))


async def test_law_10_context_variables_reach_the_backend_also_from_an_abandoned_save():
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

    class Noting(ReferenceCheckpointer):
        seen: list[str] = []

        async def save(self, *args, **kwargs):
            self.seen.append(tenant.get())
            return await super().save(*args, **kwargs)

    home = Noting()
    checkpointer = stack(FaultyCheckpointer(home, script=[on("save").hang()]))
    tenant.set("acme")
    save = asyncio.create_task(checkpointer.save(state(1), "t"))
    await asyncio.sleep(0)
    tenant.set("other")
    await checkpointer.inner.backend.until_hung()
    save.cancel()
    checkpointer.inner.backend.release()
    await checkpointer.save(state(2), "t")
    assert home.seen == ["acme", "other"]


ARGUMENTS = {
    "search": ("x",),
    "query_by_metadata": ("k", "v"),
    "get_metadata": ("t",),
    "vacuum": (),
    "copy_thread": ("t", "u"),
    "list_threads": (),
    "list_with_metadata": (),
}


@pytest.mark.parametrize(
    "make",
    [
        lambda path: BoundedMemoryCheckpointer(),
        lambda path: BoundedMemoryCheckpointer(ttl=3600),
        lambda path: DirectoryCheckpointer(path),
        lambda path: CachedCheckpointer(MemoryCheckpointer()),
        lambda path: TieredCheckpointer(BoundedMemoryCheckpointer(), FileCheckpointer(path)),
        lambda path: TieredCheckpointer(MemoryCheckpointer(), DirectoryCheckpointer(path)),
    ],
)
async def test_law_11_a_true_flag_works_and_a_false_one_names_the_member_that_lacks_it(make, tmp_path):
    checkpointer = make(tmp_path)
    await checkpointer.save(state(1), "t", metadata={"k": "v"})
    for flag, methods in METHODS.items():
        for method in methods:
            call = getattr(checkpointer, method)(*ARGUMENTS[method])
            if getattr(checkpointer.capabilities, flag):
                assert await call is not None, method
            else:
                with pytest.raises(CapabilityMissing) as caught:
                    await call
                assert checkpointer.explain()[flag].member in str(caught.value)


def wrapped(backend: BaseCheckpointer) -> RetryingCheckpointer:
    return RetryingCheckpointer(GuardedCheckpointer(backend), attempts=1)


@pytest.mark.parametrize("wrap", [lambda backend: backend, wrapped])
async def test_law_11_and_errors_call_a_member_what_its_user_calls_it_however_it_is_wrapped(wrap):
    far = FaultyCheckpointer(MemoryCheckpointer(), script=[on("save").fail_before(OSError)])
    checkpointer = TieredCheckpointer(
        Tier(wrap(MemoryCheckpointer()), name="paris"), Tier(wrap(far), name="tokyo"), name="all"
    )
    assert checkpointer.explain()["search"].member == "tokyo"
    with pytest.raises(CapabilityMissing, match="'search', which tokyo lacks"):
        await checkpointer.search("word")
    with pytest.raises(BackendError) as caught:
        await checkpointer.save(state(1), "t")
    assert caught.value.member == "tokyo" and str(caught.value).startswith("tokyo failed during save")


def test_a_name_goes_down_a_leg_as_far_as_nobody_has_given_another():
    disk = BoundedMemoryCheckpointer(name="disk")
    leg = RetryingCheckpointer(TracedCheckpointer(GuardedCheckpointer(disk), name="seen"))
    name_leg(leg, "paris")
    assert [layer.name for layer in leg.walk()] == ["paris", "seen", "paris", "disk"]
    name_leg(leg, "tokyo")  # a leg that is used in another stack
    assert [layer.name for layer in leg.walk()] == ["tokyo", "seen", "tokyo", "disk"]
    parts = TracedCheckpointer(CachedCheckpointer(GuardedCheckpointer(MemoryCheckpointer())))
    name_leg(parts, "lima")
    assert [layer.name for layer in parts.walk()] == [
        "lima",
        "CachedCheckpointer",
        "BoundedMemoryCheckpointer",
        "GuardedCheckpointer",
        "MemoryCheckpointer",
    ]


class CannotDeleteOne(MemoryCheckpointer):
    deletes_single_checkpoints = False


class NeverDeletes(MemoryCheckpointer):
    delete = BaseCheckpointer.delete


def test_law_11_single_deletes_need_every_tier_that_is_written_to():
    for tiers, expected in [
        ((BoundedMemoryCheckpointer(), MemoryCheckpointer()), True),
        ((BoundedMemoryCheckpointer(), CannotDeleteOne()), False),
        ((CannotDeleteOne(), BoundedMemoryCheckpointer()), False),
        ((BoundedMemoryCheckpointer(), NeverDeletes()), False),
    ]:
        assert TieredCheckpointer(*tiers).deletes_single_checkpoints is expected


@pytest.mark.parametrize("kind", ["memory", "directory", "tiers", "file"])
async def test_law_12_hostile_ids_are_never_mixed_up_and_never_leave_the_directory(tmp_path, kind):
    base = tmp_path / "inside"
    checkpointer = {
        "memory": lambda: BoundedMemoryCheckpointer(),
        "directory": lambda: DirectoryCheckpointer(base),
        "tiers": lambda: stack(ReferenceCheckpointer(), base),
        "file": lambda: stack(FileCheckpointer(base)),
    }[kind]()
    for number, hostile in enumerate(HOSTILE):
        await checkpointer.save(state(number), hostile)
        await checkpointer.save(state(1000 + number), "one", hostile)
    for number, hostile in enumerate(HOSTILE):
        assert await latest(checkpointer, hostile) == number
        assert (await checkpointer.load("one", hostile)).iteration == 1000 + number
    assert await checkpointer.list_checkpoints("one", limit=100) == HOSTILE[::-1]
    assert set(await checkpointer.list_threads(limit=100)) == {*HOSTILE, "one"}
    for number, hostile in enumerate(HOSTILE):
        assert await checkpointer.delete(hostile)
        assert await checkpointer.load(hostile) is None
        assert await checkpointer.delete("one", hostile)
        if number + 1 < len(HOSTILE):
            assert await latest(checkpointer, HOSTILE[number + 1]) == number + 1
    assert await checkpointer.load("one") is None
    if base.exists():
        assert [path.name for path in tmp_path.iterdir()] == ["inside"]


async def test_law_12_somebody_elses_answer_is_damage_not_an_answer():
    faulty = FaultyCheckpointer()
    writer = stack(faulty)
    await writer.save(state(1), "t", "x")
    await writer.save(state(2), "u", "x")
    faulty.inject(on("load", thread_id="t").wrong_thread())
    with pytest.raises(CorruptCheckpoint):
        await stack(faulty).load("t", "x")
    assert (await stack(faulty).load("t", "x")).iteration == 1


async def test_law_13_memory_is_bounded_in_bytes_and_never_answers_with_an_older_state():
    store = BoundedMemoryCheckpointer("64KiB")
    for number in range(400):
        await store.save(state(number), f"t{number % 20}")
        assert store.stats.bytes <= 64 * 1024
        assert await latest(store, f"t{number % 20}") == number
    for thread in range(20):
        found = await latest(store, f"t{thread}")
        assert found is None or found == 380 + thread
    assert store.stats.evicted > 0


async def test_law_13_a_state_larger_than_a_near_tier_passes_through():
    near, home = BoundedMemoryCheckpointer("8KiB"), ReferenceCheckpointer()
    checkpointer = CachedCheckpointer(home, near=near)
    await checkpointer.save(state(1), "t", "x")
    big = state(2, blob="x" * 20_000)
    await checkpointer.save(big, "t", "x")
    assert checkpointer.stats.too_large == 1
    assert (await checkpointer.load("t", "x")) == big  # and not the older version that did fit
    with pytest.raises(CheckpointTooLarge):
        await near.save(big, "t")


async def test_law_14_one_call_per_thread_is_in_flight_first_in_first_out():
    faulty = FaultyCheckpointer()
    checkpointer = stack(faulty)
    await asyncio.gather(*(checkpointer.save(state(n), f"t{n % 3}", f"c{n}") for n in range(30)))
    await asyncio.gather(*(checkpointer.load(f"t{n % 3}") for n in range(30)))
    for thread in ("t0", "t1", "t2"):
        assert faulty.max_in_flight(thread) == 1
    for first in range(3):
        expected = [f"c{n}" for n in range(first, 30, 3)][::-1]
        assert await checkpointer.list_checkpoints(f"t{first}", limit=100) == expected
        assert [c.checkpoint_id for c in faulty.matching("save", f"t{first}")] == expected[::-1]


async def test_law_15_without_a_retry_layer_an_outage_gets_one_call_per_call(tmp_path):
    faulty = FaultyCheckpointer()
    checkpointer = stack(faulty, tmp_path)
    await checkpointer.save(state(0), "t")
    faulty.partition()
    before = faulty.count()
    for number in range(20):
        with pytest.raises(BackendError):
            await checkpointer.save(state(number), "t")
        with pytest.raises(BackendError):
            await checkpointer.load("t")
    assert faulty.count() - before == 40
