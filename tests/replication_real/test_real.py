"""Three real replicas under load, one fault of each kind: nothing acknowledged is lost, nothing deleted comes back.

The long form, with every fault at every replica, is ``make test-replication``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from locus_tiered.testing.history import read_history, threads_of
from locus_tiered.testing.history_check import check_history
from tests.replication_real.prove import Step, every_fault, prove

STEPS = [Step("valkey", "killed"), Step("pg", "stopped", "b"), Step("s3", "cut off"), Step("valkey", "wiped")]


@pytest.mark.timeout(180)
async def test_one_fault_of_each_kind(tmp_path: Path):
    told: list[str] = []
    figures = await prove(tmp_path, STEPS, seconds=9, rate=30, seed=1, hold=1.0, say=told.append)
    story = "\n".join([*told, str(figures), *map(str, figures.problems[:10])])
    assert figures.problems == [], story
    assert figures.unhealed == [], story
    assert figures.acknowledged > 50, story
    assert figures.hinted > 0, story
    assert figures.crashes == 1 and (tmp_path / "b2.jsonl").stat().st_size > 0, story
    assert figures.kinds["delete"] > 0
    assert figures.kinds["load"] > 0

    # The same files, without one of the saves: what all three stores hold of it is noticed.
    events = read_history(*(tmp_path / f"{life}.jsonl" for life in ("a", "b", "b2")))
    held = read_history(tmp_path / "holdings.jsonl")
    assert set(threads_of(held)) >= set(threads_of(events))
    kept = next(seen for event in held for seen in event.listed or ())
    others = [event for event in events if not (event.kind == "save" and event.stamp == kept.stamp)]
    noticed = [each for each in check_history([*others, *held]) if each.event.kind == "holds"]
    assert sorted((each.rule, each.event.process) for each in noticed) == [
        ("phantom", "pg"),
        ("phantom", "s3"),
        ("phantom", "valkey"),
    ]


def test_the_long_form_does_everything_to_everybody():
    steps = every_fault()
    assert len(steps) == len(set(steps)) == 12
    assert {step.fault for step in steps} == {"killed", "stopped", "cut off", "wiped"}
    assert {step.site for step in steps} == {"s3", "pg", "valkey"}
    assert Counter(step.crash for step in steps) == {None: 6, "a": 3, "b": 3}
