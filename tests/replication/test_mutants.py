"""Every mutant of replication is noticed by a scenario or by one of a few seeds; ``make mutants`` says by which."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.replication.mutants import MUTANTS, Mutant, broken, catchers, scenarios


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    assert list(catchers(mutant, every=False, seeds=range(12))), f"{mutant.name}: nothing noticed"


def test_without_a_mutant_nothing_is_caught() -> None:
    unchanged = Mutant("unchanged", "layers.said:Said.vote", "self.took", "self.took")
    assert list(catchers(unchanged, every=True, seeds=range(1))) == []


def test_a_mutant_whose_place_is_gone_is_an_error() -> None:
    with (
        pytest.raises(LookupError, match="holds 'no such words' 0 times"),
        broken(Mutant("gone", "layers.said:Said.vote", "no such words", "")),
    ):
        pass


def test_there_are_enough_of_them() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 12
    assert len(scenarios()) > 30


def test_the_command_prints_which_test_caught_which() -> None:
    command = [sys.executable, "-m", "tests.replication.mutants", "hint counts as a vote"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("caught   a hint counts as a vote  [layers.said:Said.vote]")
    assert "  test_a_hint_is_no_vote\n" in done.stdout
    assert done.stdout.endswith("1 of 1 mutants caught, 0 survived\n")
