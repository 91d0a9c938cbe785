"""The demo as whoever runs it sees it: what it prints at 80 columns, and that nothing of it stays behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from rich.cells import cell_len

from locus_tiered.demo.crash import CrashStory
from locus_tiered.demo.meters import Requests, Traffic
from locus_tiered.demo.outage import OutageStory
from locus_tiered.demo.report import verdict
from locus_tiered.demo.sides import TurnCost
from locus_tiered.testing.services import SeaweedFS, wait_until

# One worker runs it once for all.
pytestmark = pytest.mark.xdist_group("demo")


def _start(directory: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"TMPDIR": str(directory)}
    return subprocess.Popen(
        [sys.executable, "-m", "locus_tiered.demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


@contextlib.contextmanager
def _demo(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo as a process, gone in any case; whatever it has put somewhere is in ``directory``."""
    process = _start(directory)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _with(directory: Path) -> list[psutil.Process]:
    """The processes that have something to do with ``directory``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(directory) in word for word in process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One whole run, without a terminal."""
    directory = tmp_path_factory.mktemp("demo")
    with _demo(directory) as process:
        output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors), directory


def _cells(printed: str, label: str) -> list[list[str]]:
    """The lines that begin with ``label``, as their cells."""
    lines = [line.strip() for line in printed.splitlines() if line.strip().startswith(label)]
    return [re.split(r"\s{2,}", line[len(label) :].strip()) for line in lines]


def test_it_ends_well_and_fits_80_columns(ran: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    result, _ = ran
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert max(map(cell_len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout, "a cell was cut off"
    assert "\x1b" not in result.stdout


def _numbers(row: list[str]) -> list[int]:
    return [int(re.sub(r"\D", "", cell)) for cell in row]


def test_it_compares_all_sides_turn_by_turn(ran: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    printed = ran[0].stdout
    requests = [_numbers(row) for row in _cells(printed, "S3 requests")]
    assert len(requests) == 3
    for alone, turn, journal in requests:
        assert 80 <= alone <= 90
        assert turn <= 5
        assert journal <= 4
    assert [journal for *_, journal in requests[1:]] == [3, 3], "nobody asks about a thread that is known"
    (kinds,) = re.findall(r"S3Backend alone, turn 3: (.*)", printed)
    counted = dict(reversed(each.split()) for each in kinds.strip().split(", "))
    assert int(counted["PUT"]) >= 33, "eleven saves of three objects each"
    assert sum(map(int, counted.values())) == requests[2][0]
    for label in ("sent to S3", "the agent waited"):
        rows = _cells(printed, label)
        assert [len(row) for row in rows] == [3, 3, 3]
        assert all(number > 0 for row in rows for number in _numbers(row))


def test_the_stacks_lose_no_turn(ran: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    ((alone, *stacks),) = _cells(ran[0].stdout, "the second was lost")
    assert stacks == ["0 of 8 times", "0 of 8 times"]
    assert re.fullmatch(r"[0-8] of 8 times", alone)
    assert "in S3 about a second later" in " ".join(ran[0].stdout.split()), "it says what is not promised"


def test_the_journal_outlives_an_outage(ran: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    printed = ran[0].stdout
    story = printed[printed.index("The S3 server is killed") :]
    for side in ("S3Backend alone", "ack=turn"):
        ((told,),) = _cells(story, side)
        assert told.startswith("the turn failed: ")
    ((told,),) = _cells(story, "ack=journal")
    assert re.fullmatch(r"2 turns; waited [\d,]+ ms and [\d,]+ ms", told)
    # Of both turns together: their ends. The steps in between cancelled out.
    ((pending,),) = _cells(story, "pending then")
    assert pending.startswith("2 operations, ")
    assert _cells(story, "the last answer there") == [["found"]]


def test_the_conversation_goes_on_after_the_crash(ran: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    printed = ran[0].stdout
    assert "SIGKILL, while call 7 of 10 was running" in printed
    for said in ("I am Ada, and I wait for ten parcels.", "Noted, Ada.", "Where are they?"):
        assert said in printed
    assert _cells(printed, "S3 had of the thread") == [["1 checkpoint; the journal has the rest"]]
    assert _cells(printed, "remembered, results") == [["calls 1 to 6 of 10"]]
    assert _cells(printed, "then called") == [["calls 7 to 10"]]
    assert _cells(printed, "called twice though done") == [["none"]]
    assert _cells(printed, "then answered") == [["All ten of them arrive on Thursday, Ada."]]


def test_nothing_of_it_stays_behind(ran: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, directory = ran
    assert list(directory.iterdir()) == []
    assert _with(directory) == []


def _server_starts(demo: psutil.Process, directory: Path) -> bool:
    return bool(_with(directory))


def _crash_is_on(demo: psutil.Process, directory: Path) -> bool:
    return any("locus_tiered.demo.child" in _command_of(child) for child in demo.children())


def _command_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):  # the server of the outage is dead for a while
        return process.cmdline()
    return []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [_server_starts, _crash_is_on])
def test_an_interrupt_leaves_nothing_behind(
    moment: Callable[[psutil.Process, Path], bool], number: signal.Signals, tmp_path: Path
) -> None:
    with _demo(tmp_path) as process:
        demo = psutil.Process(process.pid)
        wait_until(lambda: moment(demo, tmp_path), timeout=60, what="the moment to interrupt")
        children = demo.children(recursive=True)
        assert children
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert "Stopped." in output
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not any(child.is_running() for child in children), what="end of the children")
    assert _with(tmp_path) == []


def _side(name: str, waited: float, requests: int, sent: int, lost: list[bool]) -> Any:
    turn = TurnCost(Traffic(Counter(PUT=requests), sent, 100), waited)
    return SimpleNamespace(name=name, turns=[turn], lost=lost)


def test_the_verdict_follows_the_figures() -> None:
    alone = _side("alone", 1.0, 80, 1000, [True, False])
    told = verdict([alone, _side("one", 0.1, 4, 500, [False]), _side("two", 1.3, 100, 1000, [True])])
    assert told.splitlines()[:2] == [
        "one: requests 1/20, bytes sent 0.50 x, waiting 1/10; lost turns 0, not 1.",
        "two: requests 1.25 x, bytes sent 1.00 x, waiting 1.30 x; lost turns 1, not 1.",
    ]


def _outage(**changes: Any) -> OutageStory:
    facts: dict[str, Any] = {
        "failed": {}, "waited": [0.1, 0.2], "rows": 2, "bytes": 10, "sent_in": 0.1, "complete": True
    }  # fmt: skip
    return OutageStory(**(facts | changes))


def test_an_outage_was_outlived_only_if_every_turn_arrived() -> None:
    assert _outage().went_on
    assert not _outage(waited=[0.1]).went_on
    assert not _outage(complete=False).went_on


def _story(**changes: Any) -> CrashStory:
    facts: dict[str, Any] = {
        "tool_calls": 4,
        "made_before": [1, 2, 3],
        "killed_at": 3,
        "ended_by": 9,
        "in_s3": 1,
        "conversation": ["hello"],
        "results": [1, 2],
        "load_seconds": 0.1,
        "made_after": [3, 4],
        "answer": "done",
    }
    return CrashStory(**(facts | changes))


def test_a_conversation_went_on_only_if_nothing_was_lost_or_repeated() -> None:
    assert _story().went_on
    assert not _story(results=[1], made_after=[2, 3, 4]).went_on
    assert not _story(made_after=[2, 3, 4]).went_on
    assert not _story(made_after=[3]).went_on
    assert not _story(answer="").went_on


def test_the_meter_counts_every_request_and_its_bytes(s3_server: SeaweedFS) -> None:
    with contextlib.closing(s3_server.client()) as client:
        bucket = s3_server.bucket_name()
        client.create_bucket(Bucket=bucket)
        meter = Requests(client)
        client.put_object(Bucket=bucket, Key="key", Body=b"x" * 1000)
        put = meter.so_far()
        assert put == Traffic(Counter(PUT=1), 1000, put.received)
        assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == b"x" * 1000
        client.list_objects_v2(Bucket=bucket)
        client.delete_object(Bucket=bucket, Key="key")
        rest = meter.so_far() - put
        assert rest.requests == Counter(GET=1, LIST=1, DELETE=1)
        assert rest.total == 3
        assert rest.received >= 1000
    s3_server.drop_bucket(bucket)
