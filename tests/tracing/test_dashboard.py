"""The dashboard asks only for metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from docs.observability_page import ALERTS
from locus_tiered.layers.vocabulary import METRICS

ROOT = Path(__file__).resolve().parents[2]
BOARD = json.loads((ROOT / "docs/grafana/locus-tiered.json").read_text(encoding="utf-8"))
FUNCTIONS = {"histogram_quantile", "sum", "rate", "max", "by", "label_values", "le"}


def exposed() -> dict[str, set[str]]:
    """Every series that Prometheus has of our metrics, with its labels."""
    found = {}
    for metric in METRICS.values():
        labels = {label.replace(".", "_") for label in metric.labels}
        if metric.kind == "histogram":
            found |= {f"{metric.prometheus}_{part}": labels for part in ("sum", "count")}
            found[f"{metric.prometheus}_bucket"] = labels | {"le"}
        else:
            found[metric.prometheus] = labels
    return found


def queries() -> list[str]:
    asked = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    return asked + [each["query"]["query"] for each in BOARD["templating"]["list"] if each["type"] == "query"]


@pytest.mark.parametrize("query", queries())
def test_every_query_names_metrics_that_exist_and_labels_that_they_have(query: str) -> None:
    series, bare = exposed(), re.sub(r'"[^"]*"|\[[^]]*\]', "", query)
    selectors = re.findall(r"(\w+)\{([^}]*)\}", bare) or re.findall(r"label_values\((\w+), (\w+)\)", bare)
    assert selectors
    allowed: set[str] = set()
    for name, matchers in selectors:
        assert name in series
        allowed |= series[name]
        assert set(re.findall(r"\w+", matchers)) <= series[name]
    words = set(re.findall(r"[a-z_]\w*", bare)) - {name for name, _ in selectors}
    assert words - FUNCTIONS <= allowed


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_every_legend_shows_a_label_that_its_query_keeps(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))))
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_every_alert_names_metrics_that_exist() -> None:
    for when, _, _ in ALERTS:
        for name in re.findall(r"(?:locus_checkpoint|db_client)_[a-z_]+(?=[{\[)])", when):
            assert name in exposed()
        for label in re.findall(r"([a-z_]+)!?=\"", when):
            assert any(label in labels for labels in exposed().values())


def test_every_metric_is_on_the_dashboard() -> None:
    asked = " ".join(queries())
    assert [name for name, metric in METRICS.items() if metric.prometheus not in asked] == []
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_the_names_are_those_that_a_collector_gives() -> None:
    assert METRICS["db.client.operation.duration"].prometheus == "db_client_operation_duration_seconds"
    assert METRICS["locus.checkpoint.retries"].prometheus == "locus_checkpoint_retries_total"
    assert METRICS["locus.checkpoint.breaker.state"].prometheus == "locus_checkpoint_breaker_state"
