"""Whole stories of two processes over failing replicas, one per seed, in virtual time.

A few seeds here; ``LOCUS_TIERED_SEEDS=300 make test-sim`` runs more. A seed that fails is printed and can be run alone:
``python -m locus_tiered.testing.simulation SEED --trace``.
"""

from __future__ import annotations

import os

import pytest

from locus_tiered.testing.simulation import simulate

SEEDS = int(os.environ.get("LOCUS_TIERED_SEEDS", "12"))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_answer_keeps_the_laws_and_the_replicas_agree_in_the_end(seed: int) -> None:
    story = simulate(seed)
    assert story.seen, "nothing happened"


def test_a_seed_is_one_story() -> None:
    assert simulate(3).trace == simulate(3).trace
