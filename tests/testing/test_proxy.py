"""The fault proxy: byte for byte or not at all, one fault at a time, in front of real servers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered.testing.proxy import Counts, FaultProxy
from locus_tiered.testing.proxy_wire import RequestParser, is_interim
from locus_tiered.testing.services import Postgres, SeaweedFS, ServiceError, Valkey, valkey, wait_until

HOST = "127.0.0.1"
SILENCE = 0.15  # real seconds that stand for "never"
MEGABYTE = random.Random(0).randbytes(1_000_000)

SILENT = ["black_hole", "half_open"]
AUDIBLE: list[Callable[[FaultProxy], None]] = [
    FaultProxy.pass_through,
    lambda proxy: proxy.slow(0.01),
    lambda proxy: proxy.cut_after_request(containing=b"never said"),
]


class EchoServer:
    """Says what it hears, remembers it all, and hangs up when its client did."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> EchoServer:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.open.append(self._listener.accept()[0])
                self._start(self._echo, self.open[-1])

    def _echo(self, one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while data := one.recv(65_536):
                self.heard += data
                one.sendall(data)
        self.open.remove(one)


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    with EchoServer() as server:
        yield server


@pytest.fixture
def proxy(echo: EchoServer) -> Iterator[FaultProxy]:
    with FaultProxy(echo.port) as running:
        yield running


class Client:
    """A plain socket, and what one does with it."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.socket = socket.create_connection((HOST, proxy.port), timeout=10)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self, size: int) -> bytes:
        heard = bytearray()
        while len(heard) < size and (data := self.socket.recv(65_536)):
            heard += data
        return bytes(heard)

    def ask(self, data: bytes) -> bytes:
        sending = threading.Thread(target=self.say, args=(data,))  # both ways at once, or both would wait
        sending.start()
        heard = self.hear(len(data))
        sending.join()
        return heard

    def hears_nothing(self) -> bool:
        self.socket.settimeout(SILENCE)
        try:
            return self.socket.recv(1) is None
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(10)

    def was_reset(self) -> bool:
        try:
            self.socket.recv(1)
        except ConnectionResetError:
            return True
        return False


# What passes


@pytest.mark.parametrize("audible", AUDIBLE)
def test_what_passes_arrives_byte_for_byte(proxy: FaultProxy, audible: Callable[[FaultProxy], None]) -> None:
    audible(proxy)
    with Client(proxy) as client:
        assert client.ask(MEGABYTE) == MEGABYTE
        assert client.ask(b"more") == b"more"
    counts = proxy.counts()
    assert (counts.connections, counts.bytes_up, counts.bytes_down) == (1, 1_000_004, 1_000_004)
    assert counts.requests >= 2 and not counts.verbs


def test_many_connections_at_once_are_kept_apart(proxy: FaultProxy) -> None:
    def one(number: int) -> bool:
        words = random.Random(number).randbytes(10_000)
        with Client(proxy) as client:
            return client.ask(words) == words

    with ThreadPoolExecutor(20) as callers:
        assert all(callers.map(one, range(100)))
    assert proxy.counts() == Counts(100, proxy.requests, 1_000_000, 1_000_000)


def test_ends_of_streams_pass_in_both_directions(proxy: FaultProxy, echo: EchoServer) -> None:
    with Client(proxy) as client:
        client.say(b"last words")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.hear(100) == b"last words"  # and the end: the server hung up in its turn
    wait_until(lambda: not echo.open)


def test_resets_pass_in_both_directions(proxy: FaultProxy, echo: EchoServer) -> None:
    linger = (socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with Client(proxy) as client:
        client.ask(b"hello")
        client.socket.setsockopt(*linger)
    wait_until(lambda: not echo.open)
    with Client(proxy) as client:
        client.ask(b"hello")
        (theirs,) = echo.open
        theirs.setsockopt(*linger)
        theirs.shutdown(socket.SHUT_RD)  # its thread closes it
        assert client.was_reset()


def test_a_server_that_is_down_is_a_reset(echo: EchoServer) -> None:
    with socket.socket() as bound:
        bound.bind((HOST, 0))
        with FaultProxy(bound.getsockname()[1]) as proxy, Client(proxy) as client:
            assert client.was_reset()
            assert proxy.counts() == Counts(connections=1)


# Faults


def test_refused(proxy: FaultProxy, echo: EchoServer) -> None:
    port = proxy.port
    with Client(proxy) as client:
        client.ask(b"hello")
        for _ in range(2):
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                Client(proxy)
        assert client.was_reset()
    wait_until(lambda: not echo.open)
    proxy.pass_through()
    with Client(proxy) as client:
        assert client.ask(b"again") == b"again"
    assert (proxy.port, proxy.connections) == (port, 2)


def test_reset(proxy: FaultProxy, echo: EchoServer) -> None:
    with Client(proxy) as client:
        client.ask(b"hello")
        proxy.reset()
        assert client.was_reset()
        with pytest.raises(ConnectionError):
            client.say(b"x")
    with Client(proxy) as client:
        assert client.was_reset()
    assert bytes(echo.heard) == b"hello"
    assert (proxy.connections, proxy.bytes_up) == (2, 5)


def test_black_hole_loses_nothing(proxy: FaultProxy, echo: EchoServer) -> None:
    with Client(proxy) as old, contextlib.ExitStack() as stack:
        old.ask(b"hello")
        proxy.black_hole()
        new = stack.enter_context(Client(proxy))
        old.say(b"one")
        new.say(b"two")
        new.socket.shutdown(socket.SHUT_WR)
        assert old.hears_nothing() and new.hears_nothing()
        assert bytes(echo.heard) == b"hello" and len(echo.open) == 1
        assert (proxy.connections, proxy.bytes_up, proxy.requests) == (2, 5, 1)
        proxy.pass_through()
        assert (old.hear(3), new.hear(100)) == (b"one", b"two")


def test_black_hole_reads_nothing(proxy: FaultProxy) -> None:
    proxy.black_hole()
    with Client(proxy) as client:
        client.socket.settimeout(SILENCE)
        with pytest.raises(TimeoutError):  # when the buffers of the system are full
            client.say(bytes(100_000_000))


def test_black_hole_swallows_no_answer_that_was_under_way(proxy: FaultProxy, echo: EchoServer) -> None:
    with Client(proxy) as client:
        proxy.half_open()
        proxy.slow(3600)
        client.say(b"hello")
        wait_until(lambda: bytes(echo.heard) == b"hello")
        proxy.black_hole()
        assert client.hears_nothing()
        proxy.pass_through()
        assert client.hear(5) == b"hello"


def test_half_open_sends_on_and_swallows(proxy: FaultProxy, echo: EchoServer) -> None:
    with Client(proxy) as old, Client(proxy) as quiet, contextlib.ExitStack() as stack:
        old.ask(b"hello")
        quiet.ask(b"hello")
        proxy.half_open()
        new = stack.enter_context(Client(proxy))
        old.say(b"one")
        new.say(b"two")
        wait_until(lambda: len(echo.heard) == 16)
        assert old.hears_nothing() and new.hears_nothing()
        proxy.black_hole()
        assert old.hears_nothing()
        proxy.pass_through()
        assert old.was_reset() and new.was_reset()
        assert quiet.ask(b"still") == b"still"
    assert (proxy.bytes_up, proxy.bytes_down) == (21, 15)


@pytest.mark.parametrize("silent", SILENT)
@pytest.mark.parametrize("end", ["hangs up", "resets"])
def test_silence_hides_that_the_server_has_gone(proxy: FaultProxy, echo: EchoServer, silent: str, end: str) -> None:
    with Client(proxy) as client:
        client.ask(b"hello")
        getattr(proxy, silent)()
        (theirs,) = echo.open
        if end == "resets":
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.shutdown(socket.SHUT_RD)
        wait_until(lambda: not echo.open)
        assert client.hears_nothing()
        proxy.pass_through()
        if end == "resets" or silent == "half_open":
            assert client.was_reset()
        else:
            assert client.hear(1) == b""


@pytest.mark.parametrize("silent", SILENT)
def test_a_client_may_leave_in_the_silence(proxy: FaultProxy, echo: EchoServer, silent: str) -> None:
    with Client(proxy) as client:
        client.ask(b"hello")
        getattr(proxy, silent)()
        client.say(b"bye")
    proxy.pass_through()
    wait_until(lambda: not echo.open)
    assert bytes(echo.heard) == b"hellobye"


def test_slow_answers_begin_late_and_then_hurry(proxy: FaultProxy) -> None:
    with Client(proxy) as client:
        client.ask(b"hello")
        proxy.slow(0.2)
        before = time.monotonic()
        client.say(b"x" * 50_000)  # by the way back in one piece or in several
        first = client.socket.recv(1)
        assert time.monotonic() - before >= 0.2
        assert first + client.hear(49_999) == b"x" * 50_000


def test_a_late_answer_is_let_go_by_the_next_mode(proxy: FaultProxy, echo: EchoServer) -> None:
    proxy.slow(3600)
    with Client(proxy) as client:
        client.say(b"hello")
        wait_until(lambda: bytes(echo.heard) == b"hello")
        assert client.hears_nothing()
        proxy.slow(0)
        assert client.hear(5) == b"hello"


def test_cut_after_the_request(proxy: FaultProxy, echo: EchoServer) -> None:
    with Client(proxy) as client, Client(proxy) as other:
        client.ask(b"hello")
        proxy.cut_after_request()
        client.say(b"effect")
        assert client.was_reset()
        assert bytes(echo.heard) == b"helloeffect"
        assert proxy.mode == "pass_through"
        assert other.ask(b"other") == b"other"
    assert (proxy.bytes_up, proxy.bytes_down, proxy.requests) == (16, 10, 3)


def test_cut_as_many_as_asked_of_those_that_are_meant(proxy: FaultProxy) -> None:
    proxy.cut_after_request(2, containing=b"save", skip=1)
    for said in ["load", "save", "save!", "load", "save!", "save"]:
        with Client(proxy) as client:
            client.say(said.encode())
            assert client.was_reset() is said.endswith("!")
    assert proxy.mode == "pass_through"


def test_a_switch_frees_what_was_to_be_cut(proxy: FaultProxy) -> None:
    proxy.cut_after_request(5)
    proxy.pass_through()
    with Client(proxy) as client:
        assert client.ask(b"hello") == b"hello"


def test_modes_may_change_from_many_threads_and_loops(proxy: FaultProxy, echo: EchoServer) -> None:
    orders = [proxy.pass_through, proxy.refuse, proxy.reset, proxy.black_hole, proxy.half_open]
    orders += [proxy.cut_after_request, lambda: proxy.slow(0.001), proxy.reset_counters]

    def call(number: int) -> None:
        with contextlib.suppress(OSError), Client(proxy) as client:
            client.socket.settimeout(0.01)
            client.say(b"x" * number)
            client.hear(number)

    async def order(number: int) -> None:
        orders[number % len(orders)]()

    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(call, number) for number in range(200)]
        done = [callers.submit(asyncio.run, order(number)) for number in range(200)]
        for future in done + calls:
            future.result()
    proxy.pass_through()
    with Client(proxy) as client:
        assert client.ask(b"hello") == b"hello"
    wait_until(lambda: not echo.open)


# Its life


def test_it_leaves_nothing_behind(echo: EchoServer) -> None:
    proxy = FaultProxy(echo.port)
    for use in (lambda: proxy.port, proxy.pass_through):
        with pytest.raises(ServiceError, match="with statement"):
            use()
    with proxy, Client(proxy) as client, Client(proxy):
        client.ask(b"hello")
        thread = next(thread for thread in threading.enumerate() if thread.name == repr(proxy))
        proxy.stop()
        assert client.hear(1) == b""
        with pytest.raises(ConnectionRefusedError):
            Client(proxy)
    assert not thread.is_alive()
    wait_until(lambda: not echo.open)
    proxy.stop()
    with pytest.raises(ServiceError, match="with statement"):
        proxy.reset()
    with pytest.raises(ServiceError, match="used before"), proxy:
        pass


@pytest.mark.parametrize("mode", ["refuse", "reset", "black_hole", "half_open", "cut_after_request"])
def test_it_stops_in_every_mode(echo: EchoServer, mode: str) -> None:
    with FaultProxy(echo.port) as proxy, Client(proxy) as client:
        client.say(b"hello")
        wait_until(lambda: bytes(echo.heard) == b"hello")
        getattr(proxy, mode)()
        assert proxy.mode == mode
    wait_until(lambda: not echo.open)


def test_senseless_orders_are_refused(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="early"):
        proxy.slow(-1)
    with pytest.raises(ValueError, match="cut off 0"):
        proxy.cut_after_request(0)


# Requests, however they are cut into packets

COMMANDS = [
    ("SET", b"*3\r\n$3\r\nset\r\n$1\r\nk\r\n$9\r\n*1\r\n$4\r\nx\r\n"),
    ("PING", b"*1\r\n$4\r\nPING\r\n"),
    ("GET", b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n"),
]
HTTP_REQUESTS = [
    ("GET", b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("PUT", b"PUT /a HTTP/1.1\r\nContent-Length: 11\r\n\r\nGET /\r\n\r\nabc"[:-1]),
    (
        "POST",
        b"POST /a HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n"
        b"4;x=y\r\nab\r\n\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n",
    ),
    ("DELETE", b"DELETE /a HTTP/1.1\r\n\r\n"),
]


@given(st.data(), st.sampled_from([COMMANDS, HTTP_REQUESTS]))
def test_requests_are_found_in_any_packets(data: st.DataObject, known: list[tuple[str, bytes]]) -> None:
    said = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=6))
    text = b"".join(request for _, request in said)
    cuts = sorted(data.draw(st.sets(st.integers(10, len(text)))) | {0, len(text)})
    parser, begun, complete = RequestParser(), [], []
    for start, end in itertools.pairwise(cuts):
        new, over = parser.feed(text[start:end], speaks_anew=data.draw(st.booleans()))
        begun += new
        complete += over
    assert begun == [verb for verb, _ in said]
    assert complete == said


@pytest.mark.parametrize(
    "nonsense", [b"*x\r\n$1\r\n", b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"\0\0\0\x08"]
)
def test_what_makes_no_sense_is_another_protocol(nonsense: bytes) -> None:
    parser = RequestParser()
    begun, complete = parser.feed(nonsense, speaks_anew=True)
    assert begun[-1] == "" and complete == [("", nonsense)]
    assert parser.feed(b"a", speaks_anew=True) == ([""], [("", b"a")])
    assert parser.feed(b"b", speaks_anew=False) == ([], [("", b"ab")])


def test_an_interim_answer_is_told_from_the_last_one() -> None:
    interim, last = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
    assert is_interim(interim) and is_interim(interim * 2)
    assert not any(map(is_interim, [b"", last, interim + last, b"+OK\r\n"]))


# Real servers


def through(proxy: FaultProxy, server: Valkey, **options: Any) -> Any:
    return server.client(port=proxy.port, **options)


@pytest.fixture
def valkey_proxy(valkey_server: Valkey) -> Iterator[FaultProxy]:
    with FaultProxy(valkey_server.port) as running:
        yield running


def test_valkey_commands_are_counted(valkey_proxy: FaultProxy, valkey_server: Valkey) -> None:
    with through(valkey_proxy, valkey_server) as client:
        client.ping()
        set_up = valkey_proxy.requests - 1
        valkey_proxy.reset_counters()
        assert valkey_proxy.counts() == Counts()
        client.set("proxy:a", MEGABYTE)
        assert client.get("proxy:a") == MEGABYTE
        with client.pipeline(transaction=False) as pipeline:
            for number in range(50):
                pipeline.incrby("proxy:n", number)
            pipeline.execute()
    counts = valkey_proxy.counts()
    assert counts.verbs == {"SET": 1, "GET": 1, "INCRBY": 50}
    assert (counts.requests, counts.connections) == (52, 0)
    assert counts.bytes_up > 1_000_000 < counts.bytes_down
    assert set_up > 0


def test_a_valkey_command_that_is_cut_has_its_effect(valkey_proxy: FaultProxy, valkey_server: Valkey) -> None:
    from redis.exceptions import ConnectionError

    with valkey_server.client() as direct, through(valkey_proxy, valkey_server) as client:
        direct.delete("proxy:cut")
        valkey_proxy.cut_after_request(2)  # of a connection that is not yet made: its set-up is not meant
        for number in (1, 2):
            with pytest.raises(ConnectionError):
                client.incr("proxy:cut")
            assert direct.get("proxy:cut") == b"%d" % number
        assert client.incr("proxy:cut") == 3
        valkey_proxy.cut_after_request(containing=b"proxy:cut")
        assert client.ping()
        with pytest.raises(ConnectionError), client.pipeline(transaction=True) as pipeline:
            pipeline.incr("proxy:cut").incr("proxy:cut").execute()
        wait_until(lambda: direct.get("proxy:cut") == b"5")
    assert valkey_proxy.counts().verbs["INCRBY"] == 5


def test_what_a_valkey_client_sees(valkey_proxy: FaultProxy, valkey_server: Valkey) -> None:
    from redis.exceptions import ConnectionError, TimeoutError

    with through(valkey_proxy, valkey_server, socket_timeout=0.4) as client:
        seen = {}
        for mode in ("refuse", "reset", "black_hole", "half_open", "pass_through"):
            client.ping()
            getattr(valkey_proxy, mode)()
            for connection in ("open", "new"):
                try:
                    seen[mode, connection] = client.set(f"proxy:{mode}", connection)
                except (ConnectionError, TimeoutError) as error:
                    seen[mode, connection] = type(error)
            valkey_proxy.pass_through()
        wait_until(lambda: client.get("proxy:black_hole") == b"open")
        kept = [client.get(f"proxy:{mode}") for mode in ("refuse", "reset", "black_hole", "half_open")]
    assert seen == {
        ("refuse", "open"): ConnectionError,
        ("refuse", "new"): ConnectionError,
        ("reset", "open"): ConnectionError,
        ("reset", "new"): ConnectionError,
        ("black_hole", "open"): TimeoutError,
        ("black_hole", "new"): TimeoutError,
        ("half_open", "open"): TimeoutError,
        ("half_open", "new"): TimeoutError,
        ("pass_through", "open"): True,
        ("pass_through", "new"): True,
    }
    # The network delivers late what it held back; half-open, the second one never came past the set-up.
    assert kept == [None, None, b"open", b"open"]


async def test_a_checkpointer_behind_it(valkey_proxy: FaultProxy, valkey_server: Valkey) -> None:
    from redis.exceptions import ConnectionError

    checkpointer = valkey_server.checkpointer(url=f"redis://{HOST}:{valkey_proxy.port}/0", prefix="proxied:")
    direct = valkey_server.checkpointer(prefix="proxied:")
    state = AgentState(agent_id="a").with_message(Message.user("hello"))
    try:
        valkey_proxy.slow(0.01)
        await checkpointer.save(state, "whole")
        requests = valkey_proxy.requests
        await checkpointer.save(state, "again")
        requests = valkey_proxy.requests - requests
        assert requests > 1
        for number in range(requests):
            valkey_proxy.cut_after_request(containing=b"cut", skip=number)
            with pytest.raises(ConnectionError):
                await checkpointer.save(state, "cut")
        for thread in ("whole", "cut"):
            found = await direct.load(thread)
            assert found is not None and found.messages == state.messages
    finally:
        await checkpointer.close()
        await direct.close()


def test_a_server_may_die_and_come_back_behind_it() -> None:
    from redis.exceptions import ConnectionError

    with valkey() as server, FaultProxy(server.port) as proxy, through(proxy, server) as client:
        client.set("a", 1)
        server.kill()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                client.get("a")
        server.restart()
        assert client.get("a") == b"1"


@pytest.fixture(scope="module")
def s3_clients(s3_server: SeaweedFS) -> Iterator[tuple[FaultProxy, Any, Any, str]]:
    import boto3
    from botocore.config import Config

    with FaultProxy(s3_server.port) as proxy, contextlib.closing(s3_server.client()) as direct:
        once = Config(connect_timeout=5, read_timeout=1, retries={"total_max_attempts": 1}, proxies={})
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://{HOST}:{proxy.port}",
            region_name="us-east-1",
            aws_access_key_id=s3_server.access_key,
            aws_secret_access_key=s3_server.secret_key,
            config=once,
        )
        bucket = s3_server.bucket_name()
        direct.create_bucket(Bucket=bucket)
        with contextlib.closing(client):
            yield proxy, client, direct, bucket
        s3_server.drop_bucket(bucket)


@pytest.fixture
def s3_client(s3_clients: tuple[FaultProxy, Any, Any, str]) -> tuple[FaultProxy, Any, Any, str]:
    """The proxy, a client through it, one beside it, and a bucket."""
    s3_clients[0].pass_through()
    s3_clients[0].reset_counters()
    return s3_clients


def test_s3_requests_are_counted(s3_client: tuple[FaultProxy, Any, Any, str]) -> None:
    proxy, client, _, bucket = s3_client
    for size in (0, 10, 1_000_000):
        client.put_object(Bucket=bucket, Key="key", Body=MEGABYTE[:size])
        assert client.get_object(Bucket=bucket, Key="key")["Body"].read() == MEGABYTE[:size]
    counts = proxy.counts()
    assert counts.verbs == {"PUT": 3, "GET": 3} and counts.requests == 6
    assert counts.bytes_up > 1_000_010 < counts.bytes_down


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_an_s3_request_that_is_cut_has_its_effect(s3_client: tuple[FaultProxy, Any, Any, str], size: int) -> None:
    from botocore.exceptions import BotoCoreError

    proxy, client, direct, bucket = s3_client
    client.put_object(Bucket=bucket, Key="other", Body=b"x")
    proxy.cut_after_request(containing=b"PUT /")
    client.get_object(Bucket=bucket, Key="other")["Body"].read()
    with pytest.raises(BotoCoreError):
        client.put_object(Bucket=bucket, Key="cut", Body=MEGABYTE[:size])
    assert direct.get_object(Bucket=bucket, Key="cut")["Body"].read() == MEGABYTE[:size]
    client.put_object(Bucket=bucket, Key="other", Body=b"y")
    assert proxy.counts().verbs == {"PUT": 3, "GET": 1}


@pytest.mark.parametrize("mode", ["refuse", "reset", "black_hole", "half_open"])
def test_what_an_s3_client_sees(s3_client: tuple[FaultProxy, Any, Any, str], mode: str) -> None:
    from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

    proxy, client, direct, bucket = s3_client
    expected = {"refuse": EndpointConnectionError, "reset": ConnectionClosedError}.get(mode, ReadTimeoutError)
    key = f"seen-{mode}"
    getattr(proxy, mode)()
    with pytest.raises(expected):
        client.put_object(Bucket=bucket, Key=key, Body=b"x")
    if mode == "half_open":
        assert direct.get_object(Bucket=bucket, Key=key)["Body"].read() == b"x"
    proxy.pass_through()
    if mode == "black_hole":  # the network delivers late what it held back: before or after anything else
        wait_until(lambda: "Contents" in direct.list_objects_v2(Bucket=bucket, Prefix=key))
    client.put_object(Bucket=bucket, Key=key, Body=b"y")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"y"


async def test_a_postgres_statement_that_is_cut_has_its_effect(postgres_server: Postgres) -> None:
    import asyncpg

    postgres_server.sql("CREATE TABLE IF NOT EXISTS cut (word text)", "GRANT ALL ON cut TO locus")
    with FaultProxy(postgres_server.port) as proxy:
        dsn = postgres_server.dsn.replace(f":{postgres_server.port}/", f":{proxy.port}/")
        connection = await asyncpg.connect(dsn)
        await connection.execute("INSERT INTO cut VALUES ($1)", "first")
        assert proxy.requests >= 2
        proxy.cut_after_request(containing=b"word", skip=1)
        await connection.execute("INSERT INTO cut VALUES ($1)", "passes" + "word" * 100_000)  # in several packets
        with pytest.raises((OSError, asyncpg.PostgresError)):
            await connection.execute("INSERT INTO cut VALUES ($1)", "second word")
        connection.terminate()
        words = postgres_server.sql("SELECT left(word, 6) FROM cut")
        assert sorted(words.split()) == ["first", "passes", "second"]
