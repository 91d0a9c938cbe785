"""The short form of ``make test-crash``: a dozen kills, and none of them cost anything."""

from __future__ import annotations

from pathlib import Path

from locus_tiered.testing.services import SeaweedFS
from tests.crash.kills import Campaign, preload

KILLS = 12


def test_a_dozen_kills_lose_nothing_and_bring_nothing_back(s3_server: SeaweedFS, tmp_path: Path):
    preload()
    campaign = Campaign(s3_server, tmp_path, seed=7)
    figures = campaign.run(KILLS)
    assert not figures.problems, "\n".join(figures.problems)
    assert figures.kills >= KILLS and figures.saves > 50 and figures.deletes > 10
    s3_server.drop_bucket(campaign.bucket)
