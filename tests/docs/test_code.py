"""Every block of code in README, changelog and docs is what it says: Python runs, YAML and shell parse."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import PAGES, ROOT, Block, Run, blocks_of, name_of

_LANGUAGES = {"python", "text", "bash", "yaml", "json"}
_BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def _pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(block.language == language for block in blocks_of(page))]


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of one's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def s3_if_named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """For a page that names ``S3Backend``, a server that boto3 finds as it finds any: in the environment."""
    text = request.getfixturevalue("page").read_text(encoding="utf-8")
    if "S3Backend(" not in text:
        yield
        return
    import boto3

    server = request.getfixturevalue("s3_server")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name, value in {
        "AWS_ENDPOINT_URL_S3": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    buckets = set(re.findall(r'bucket="([^"]+)"', text))
    for bucket in buckets:
        server.drop_bucket(bucket)
    yield
    for bucket in buckets:
        server.drop_bucket(bucket)


@pytest.mark.parametrize("page", _pages_with("python"), ids=name_of)
@pytest.mark.usefixtures("at_home", "s3_if_named")
def test_python_runs(page: Path) -> None:
    with asyncio.Runner() as runner:
        run = Run(runner)
        for block in blocks_of(page):
            if block.language == "python" and block.shows is None:
                run.block(block)


def test_there_is_python_on_every_page_that_teaches() -> None:
    pages = {name_of(page) for page in _pages_with("python")}
    assert pages >= {f"docs/{name}.md" for name in ("quickstart", "tiers", "resilience", "testing-your-stack")}
    assert "README.md" in pages


@pytest.mark.parametrize("block", _BLOCKS, ids=lambda block: block.where)
def test_block_is_well_formed(block: Block) -> None:
    assert block.language in _LANGUAGES, "say what language it is; a drawing or an output is text"
    if block.shows is not None:
        assert block.shows.parent == ROOT / "examples", "only what the suite runs may be shown whole"
        assert block.shows.is_file()
    elif block.language == "yaml":
        yaml.safe_load(block.body)
    elif block.language == "bash":
        bash = shutil.which("bash")
        assert bash is not None
        subprocess.run([bash, "-n"], input=block.body, text=True, check=True, capture_output=True)


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        named = set(re.findall(r"\bmake ([a-z-]+)`", page.read_text(encoding="utf-8")))
        named |= {name for block in blocks_of(page) for name in re.findall(r"^make ([a-z-]+)", block.body, re.M)}
        assert named <= targets, name_of(page)
