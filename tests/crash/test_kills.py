"""The short form of ``make test-crash``: a dozen kills, and none of them cost anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from locus_tiered.testing.services import SeaweedFS
from tests.crash.child import Life
from tests.crash.kills import Campaign, Process, preload

KILLS = 12


def test_a_dozen_kills_lose_nothing_and_bring_nothing_back(s3_server: SeaweedFS, tmp_path: Path):
    preload()
    campaign = Campaign(s3_server, tmp_path, seed=7)
    figures = campaign.run(KILLS)
    assert not figures.problems, "\n".join(figures.problems)
    assert figures.kills >= KILLS and figures.saves > 50 and figures.deletes > 10 and figures.looks
    s3_server.drop_bucket(campaign.bucket)


@pytest.mark.parametrize(("begun", "looks"), [(4.9, 0), (5.1, 1)])
def test_a_look_is_judged_if_nobody_owed_anything_when_it_began(
    s3_server: SeaweedFS, tmp_path: Path, begun: float, looks: int
):
    """Else a process would be blamed for what another one, which had adopted it, sent while it looked."""
    campaign = Campaign(s3_server, tmp_path, seed=1)

    def heard(number: int, what: str, **facts: Any) -> None:
        life = Life(number, 1, {}, "journal", "journal", 0.0)
        process = cast(Process, SimpleNamespace(life=life))
        campaign.heard(process, {"what": what, **facts}, {})

    heard(1, "save", call=1, thread="agent-a", id="kept", mark=7, iteration=False)
    campaign.ledger.events[-1].status = "done"
    heard(1, "drained", at=5.0, rows=0, dead=0)
    heard(2, "saw", thread="agent-a", begun=begun, found=[["", None]])
    assert campaign.figures.looks == campaign.figures.lost == looks
    s3_server.drop_bucket(campaign.bucket)
