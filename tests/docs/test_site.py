"""The site builds without a warning, its generated pages are up to date, and no link leads nowhere."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import locus_tiered
from docs import generate
from locus_tiered import GuardedCheckpointer, RetryingCheckpointer
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.guarded import Timeouts
from tests.docs.blocks import PAGES, ROOT, blocks_of, name_of

_LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?)(?: +\{#([\w-]+)\})?$", re.M)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    for page in ("index.html", "tiers/index.html", "api/index.html"):
        assert (tmp_path / "site" / page).is_file()
    api = (tmp_path / "site/api/index.html").read_text(encoding="utf-8")
    for mark in (":class:", ":func:", ":meth:", "====", "<code>python", "::\n"):
        assert mark not in api, "something of Sphinx's dialect was not turned into Markdown"


def test_every_public_name_is_in_the_reference() -> None:
    reference = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert [name for name in locus_tiered.__all__ if f"::: locus_tiered.{name}\n" not in reference] == ["Operation"]
    assert "::: locus_tiered.core.operations\n" in reference


@pytest.mark.parametrize("name", [name for name in generate.PAGES if name not in generate.NEED_SERVERS])
def test_generated_page_is_up_to_date(name: str) -> None:
    kept = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert kept == generate.PAGES[name](), f"docs/{name} is out of date: run `make tables`"


@pytest.mark.parametrize("name", sorted(generate.NEED_SERVERS))
def test_generated_page_that_needs_servers_is_there(name: str) -> None:
    assert generate.GENERATED in (ROOT / "docs" / name).read_text(encoding="utf-8")


def _anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        text = text.replace(block.body, "")
    anchors = set()
    for title, given in _HEADING.findall(text):
        plain = re.sub(r"[^\w\s-]", "", title.strip().lower())
        anchors.add(given or re.sub(r"[\s-]+", "-", plain).strip("-"))
    return anchors


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page):
        text = text.replace(block.body, "")
    for link in _LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = page if not target else (page.parent / target).resolve()
        assert file.exists(), f"{name_of(page)}: {link}"
        assert file.is_relative_to(ROOT), f"{name_of(page)}: {link}"
        if anchor and file.suffix == ".md":
            assert anchor in _anchors(file), f"{name_of(page)}: {link}"


def test_tests_that_are_named_exist() -> None:
    for page in PAGES:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
            file = ROOT / path
            assert file.is_file(), f"{name_of(page)}: {path}"
            assert not name or re.search(rf"def {name}\b", file.read_text(encoding="utf-8")), f"{name_of(page)}: {name}"


def _emitted() -> set[str]:
    """Every kind of signal that a layer or a store emits."""
    files = [path for folder in ("layers", "stores") for path in (ROOT / "locus_tiered" / folder).rglob("*.py")]
    return {kind for path in files for kind in re.findall(r'\bemit\(\s*"([a-z._]+)"', path.read_text(encoding="utf-8"))}


def test_the_signals_of_tiers_and_stores_are_all_named() -> None:
    page = (ROOT / "docs/tiers.md").read_text(encoding="utf-8")
    pattern = r"(?:cache|tier|answer|store)\.[a-z_]+"
    assert set(re.findall(f"`({pattern})`", page)) == {kind for kind in _emitted() if re.fullmatch(pattern, kind)}


def test_the_signals_of_retry_and_guard_are_all_named() -> None:
    page = (ROOT / "docs/resilience.md").read_text(encoding="utf-8").split("The signals of both")[1]
    pattern = r"retry|(?:retry|guard|breaker)\.[a-z_]+"
    assert set(re.findall(f"`({pattern})`", page)) == {kind for kind in _emitted() if re.fullmatch(pattern, kind)}


def test_the_defaults_of_retry_and_guard_are_as_described() -> None:
    page = (ROOT / "docs/resilience.md").read_text(encoding="utf-8")
    kinds = (RetryingCheckpointer, GuardedCheckpointer, BreakerPolicy)
    parameters = {name: each for kind in kinds for name, each in inspect.signature(kind).parameters.items()}
    told = dict(re.findall(r"`(\w+)=([\d.]+)`", page.split("## The retry's defaults")[1].split("### How long")[0]))
    told |= dict(re.findall(r"`(\w+)=([\d.]+)`", page.split("## The breaker")[1].split("```")[0]))
    told |= dict(re.findall(r"`(\w+)=([\d.]+)`", page.split("## The bulkhead")[1].split("```")[0]))
    assert {name: float(value) for name, value in told.items()} == {
        name: float(parameters[name].default) for name in told
    }
    assert {"attempts", "base", "cap", "throttled_base", "deadline", "in_a_row", "window", "longest"} <= told.keys()
    assert {"max_concurrency", "max_waiting"} <= told.keys()


def test_the_timeouts_are_as_described() -> None:
    timeouts, page = Timeouts(), (ROOT / "docs/resilience.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d, ]+)(?: more)? \|", page.split("## Timeouts")[1], re.M))
    told: dict[str, float] = {}
    for names, seconds in rows.items():
        values = [float(value) for value in seconds.split(",")]
        operations = re.findall(r"`(\w+)`", names)
        told |= dict(zip(operations, values * len(operations), strict=False))
    assert told == timeouts.by_operation
    assert (float(rows["all others"]), float(rows["each MiB of a save"])) == (timeouts.others, timeouts.save_per_mib)
