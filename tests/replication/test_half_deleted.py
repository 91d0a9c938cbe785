"""Deletes that were not acknowledged: they take effect or not, but not days later when something else is mended."""

from __future__ import annotations

import pytest

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.errors import QuorumError
from locus_tiered.layers.write_behind_options import Ack
from tests.replication.rig import Rig, scenario


async def half_noted(rig: Rig, name: str | None) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.save(2, "draft")
    await p.rest()
    p.cut(0, 1)
    with pytest.raises(QuorumError, match=r"delete of thread 't' was not acknowledged: too few replicas took"):
        await p.stack.delete("t", name)
    p.heal()
    await p.rest()
    left = [] if name is None else [1]
    assert await rig.everywhere() == [left] * 3
    assert await p.load() == (None if name is None else 1)
    await p.save(3)
    rig.wipe(0)
    q = rig.process()
    await q.load()
    assert (await q.stack.scrub()).deleted == 0
    await q.rest()
    assert await rig.everywhere() == [[3, *left]] * 3


async def died_over(rig: Rig, name: str | None) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.save(2, "draft")
    await p.save(3, thread="u")
    await p.stack.delete("u")
    await p.save(4, thread="u")
    await p.rest()
    await p.stack.tombstones.lay("t", name, p.stack._stamps.issue("t"))  # and no more than that
    await p.save(5)
    await p.forget()
    q = rig.process()
    await q.load()
    report = await q.stack.scrub()
    assert (report.differed, report.deleted, report.copied) == (0, 6 if name is None else 3, 0)
    left = [5] if name is None else [5, 1]
    assert await rig.everywhere() == [left] * 3
    assert await rig.everywhere("u") == [[4]] * 3
    before = [len(link.calls) for link in q.links]
    assert (await q.stack.scrub()).deleted == 0
    calls = [call for link, count in zip(q.links, before, strict=True) for call in link.calls[count:]]
    assert not [call for call in calls if call.operation == "load" and {"t", "u"} & set(call.threads)], "no body"


@scenario
async def test_a_delete_of_which_too_few_took_the_note_rolls_forward_as_its_note_does(rig: Rig) -> None:
    await half_noted(rig, None)


@scenario
async def test_so_does_one_of_a_single_checkpoint(rig: Rig) -> None:
    await half_noted(rig, "draft")


@scenario
async def test_a_comparison_carries_out_what_a_process_died_over(rig: Rig) -> None:
    await died_over(rig, None)


@scenario
async def test_a_comparison_carries_out_what_it_died_over_of_a_single_checkpoint(rig: Rig) -> None:
    await died_over(rig, "draft")


@pytest.mark.parametrize("ack", ["turn", "far"])
def test_a_delete_that_is_written_behind_rolls_forward_as_well(ack: Ack) -> None:
    for name in (None, "draft"):

        @scenario
        async def story(rig: Rig, name: str | None = name) -> None:
            p = rig.process(journal="p")
            await p.save(1, "draft")
            await p.rest()
            stack = WriteBehindCheckpointer(p.stack, journal=rig.place / "behind", ack=ack, clock=p.clock.clock())
            p.cut(0, 1)
            with pytest.raises(QuorumError, match="was not acknowledged"):
                await stack.delete("t", name)
            p.heal()
            await p.rest()
            assert await rig.everywhere() == [[]] * 3
            assert await stack.load("t") is None
            await stack.close()

        story()
