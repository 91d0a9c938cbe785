"""What an error is taken for: the tables against the drivers' own exceptions, raised or built as they build them.

Drivers that are not installed here (mysql, opensearch, oracledb, oci, aiohttp, urllib3, requests) are played by
classes of the same modules, names and attributes.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import socket
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import asyncpg
import boto3
import botocore.exceptions as boto
import httpx
import pytest
import redis.exceptions as redis
from asyncpg import exceptions as pg
from botocore.config import Config
from botocore.retries import standard
from locus.core.state import AgentState
from redis.asyncio import Redis

from locus_tiered import RetryingCheckpointer
from locus_tiered.core import errors
from locus_tiered.core.classification import Kind, classify
from locus_tiered.testing.faults import FaultyCheckpointer, on

TEMPORARY, THROTTLED, PERMANENT, EXHAUSTED, UNKNOWN = Kind


def kind_of(error: BaseException) -> Kind:
    return classify(error).kind


def name_of(value: object) -> str:
    return type(value).__name__ if isinstance(value, BaseException) else str(value)


# -- botocore --------------------------------------------------------------------------------------------------------


def answered(code: str, status: int | None = 400, **headers: str) -> boto.ClientError:
    """What botocore raises for an answer of S3: header names in lower case."""
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers} if status is not None else {}
    return boto.ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "PutObject")


BOTOCORE = [
    (boto.EndpointConnectionError(endpoint_url="http://s3"), TEMPORARY),
    (boto.ConnectionClosedError(endpoint_url="http://s3"), TEMPORARY),
    (boto.ConnectTimeoutError(endpoint_url="http://s3"), TEMPORARY),
    (boto.ReadTimeoutError(endpoint_url="http://s3"), TEMPORARY),
    (boto.ProxyConnectionError(proxy_url="http://proxy"), TEMPORARY),
    (boto.HTTPClientError(error="anything of the transport"), TEMPORARY),
    (boto.ResponseStreamingError(error="cut in the body"), TEMPORARY),
    (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), TEMPORARY),
    (boto.MetadataRetrievalError(error_msg="no answer"), PERMANENT),
    (boto.SSLError(endpoint_url="http://s3", error="certificate"), PERMANENT),
    (boto.NoCredentialsError(), PERMANENT),
    (boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), PERMANENT),
    (boto.ParamValidationError(report="Bucket"), PERMANENT),
    (boto.NoRegionError(), PERMANENT),
]


@pytest.mark.parametrize(("error", "kind"), BOTOCORE, ids=name_of)
def test_errors_of_botocore(error, kind):
    assert kind_of(error) is kind


@pytest.mark.parametrize("status", standard.TransientRetryableChecker._TRANSIENT_STATUS_CODES)
def test_a_status_that_botocore_retries_is_temporary(status):
    assert kind_of(answered("whatever", status)) is TEMPORARY


@pytest.mark.parametrize("code", standard.TransientRetryableChecker._TRANSIENT_ERROR_CODES)
def test_a_code_that_botocore_retries_is_retried(code):
    assert kind_of(answered(code)) in (TEMPORARY, THROTTLED)


@pytest.mark.parametrize("code", standard.ThrottledRetryableChecker._THROTTLED_ERROR_CODES)
def test_a_code_that_botocore_calls_throttling_is(code):
    assert kind_of(answered(code)) is THROTTLED


@pytest.mark.parametrize("kind", [boto.HTTPClientError, *boto.HTTPClientError.__subclasses__()], ids=name_of)
def test_what_botocore_retries_by_class_is_temporary(kind):
    assert kind_of(kind.__new__(kind)) is TEMPORARY


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered("SlowDown", 503), THROTTLED),
        (answered("ServiceUnavailable", 503), TEMPORARY),
        (answered("503", 503), TEMPORARY),  # an answer to HEAD has no body, so the status is the code
        (answered("TooManyRequests", 429), THROTTLED),
        (answered("InternalError", 500), TEMPORARY),
        (answered("OperationAborted", 409), TEMPORARY),
        (answered("BucketAlreadyOwnedByYou", 409), TEMPORARY),
        (answered("RequestTimeout", 400), TEMPORARY),
        (answered("AccessDenied", 403), PERMANENT),
        (answered("NoSuchBucket", 404), PERMANENT),
        (answered("InvalidRequest", 400), PERMANENT),
        (answered("BucketAlreadyExists", 409), PERMANENT),
        (answered("PreconditionFailed", 412), PERMANENT),
        (answered("InsufficientStorage", 507), PERMANENT),
        (answered("NotImplemented", 501), PERMANENT),
        (answered("Unheard", None), PERMANENT),
    ],
)
def test_answers_of_s3(error, kind):
    assert kind_of(error) is kind


# -- redis -----------------------------------------------------------------------------------------------------------

REDIS = {
    TEMPORARY: {
        "ConnectionError", "TimeoutError", "BusyLoadingError", "ReadOnlyError", "TryAgainError", "ClusterDownError",
        "MasterDownError", "ExternalAuthProviderError",
    },
    THROTTLED: {"MaxConnectionsError", "OutOfMemoryError"},
    PERMANENT: {
        "AuthenticationError", "AuthorizationError", "NoPermissionError", "ResponseError", "DataError",
        "InvalidResponse", "WatchError", "ExecAbortError", "LockError", "ModuleError", "PubSubError", "RedisError",
    },
}  # fmt: skip


# Not every redis-py has every one of them; the test below asks the other way round.
REDIS_HERE = [(name, kind) for kind, names in REDIS.items() for name in sorted(names) if hasattr(redis, name)]


@pytest.mark.parametrize(("name", "kind"), REDIS_HERE)
def test_errors_of_redis(name, kind):
    assert kind_of(getattr(redis, name)("said so")) is kind


def test_every_error_of_redis_is_known():
    found = [each for _, each in inspect.getmembers(redis, inspect.isclass) if issubclass(each, redis.RedisError)]
    assert len(found) > 20
    assert [each for each in found if kind_of(each.__new__(each)) is UNKNOWN] == []


# -- asyncpg ---------------------------------------------------------------------------------------------------------

ASYNCPG = [
    (pg.ConnectionDoesNotExistError("08003"), TEMPORARY),
    (pg.ConnectionFailureError("08006"), TEMPORARY),
    (pg.CannotConnectNowError("57P03: starting up"), TEMPORARY),
    (pg.AdminShutdownError("57P01"), TEMPORARY),
    (pg.CrashShutdownError("57P02"), TEMPORARY),
    (pg.QueryCanceledError("57014: statement_timeout"), TEMPORARY),
    (pg.SerializationError("40001"), TEMPORARY),
    (pg.DeadlockDetectedError("40P01"), TEMPORARY),
    (pg.TooManyConnectionsError("53300"), TEMPORARY),
    (pg.DiskFullError("53100"), TEMPORARY),
    (pg.LockNotAvailableError("55P03"), TEMPORARY),
    (pg.PostgresIOError("58030"), TEMPORARY),
    (pg.UniqueViolationError("23505"), PERMANENT),
    (pg.InvalidPasswordError("28P01"), PERMANENT),
    (pg.InvalidCatalogNameError("3D000"), PERMANENT),
    (pg.UndefinedTableError("42P01"), PERMANENT),
    (pg.InsufficientPrivilegeError("42501"), PERMANENT),
    (pg.CharacterNotInRepertoireError("22021"), PERMANENT),
    (pg.DataError("22000"), PERMANENT),
    (pg.InternalServerError("XX000"), PERMANENT),
    # of the client
    (asyncpg.InterfaceError("connection is closed"), TEMPORARY),
    (pg.TargetServerAttributeNotMatched("no primary"), TEMPORARY),
    (pg.OutdatedSchemaCacheError("changed"), TEMPORARY),
    (pg.ClientConfigurationError("a DSN with a typo"), PERMANENT),
    (pg.UnsupportedClientFeatureError("never"), PERMANENT),
    (pg.UnsupportedServerFeatureError("never"), PERMANENT),
    (pg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"), TEMPORARY),
    (pg.ProtocolError("said by a connection that had died"), TEMPORARY),
]


@pytest.mark.parametrize(("error", "kind"), ASYNCPG, ids=name_of)
def test_errors_of_asyncpg(error, kind):
    assert kind_of(error) is kind


def test_every_error_of_postgres_is_known():
    found = [each for _, each in inspect.getmembers(pg, inspect.isclass) if getattr(each, "sqlstate", None)]
    assert len(found) > 200
    assert [each for each in found if kind_of(each("")) not in (TEMPORARY, PERMANENT)] == []


# -- httpx -----------------------------------------------------------------------------------------------------------

REQUEST = httpx.Request("POST", "http://store/threads")


def status_error(status: int, **headers: str) -> httpx.HTTPStatusError:
    """What ``raise_for_status`` raises."""
    response = httpx.Response(status, headers={name.replace("_", "-"): it for name, it in headers.items()})
    return httpx.HTTPStatusError("no", request=REQUEST, response=response)


HTTPX = [
    (httpx.ConnectError("refused"), TEMPORARY),
    (httpx.ReadError("reset"), TEMPORARY),
    (httpx.WriteError("reset"), TEMPORARY),
    (httpx.CloseError("reset"), TEMPORARY),
    (httpx.ConnectTimeout("slow"), TEMPORARY),
    (httpx.ReadTimeout("slow"), TEMPORARY),
    (httpx.WriteTimeout("slow"), TEMPORARY),
    (httpx.PoolTimeout("full"), TEMPORARY),
    (httpx.ProxyError("down"), TEMPORARY),
    (httpx.RemoteProtocolError("cut"), TEMPORARY),
    (httpx.LocalProtocolError("our mistake"), PERMANENT),
    (httpx.UnsupportedProtocol("gopher"), PERMANENT),
    (httpx.DecodingError("not gzip"), PERMANENT),
    (httpx.TooManyRedirects("round and round"), PERMANENT),
    (httpx.InvalidURL("no"), PERMANENT),
    *((status_error(status), TEMPORARY) for status in (408, 425, 500, 502, 503, 504)),
    *((status_error(status), PERMANENT) for status in (400, 401, 403, 404, 409, 410, 413, 422, 501, 505)),
    (status_error(429), THROTTLED),
    (status_error(503, retry_after="2"), THROTTLED),
]


@pytest.mark.parametrize(("error", "kind"), HTTPX, ids=name_of)
def test_errors_of_httpx(error, kind):
    assert kind_of(error) is kind


# -- the operating system --------------------------------------------------------------------------------------------

SYSTEM = [
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), TEMPORARY),
    (ConnectionResetError(errno.ECONNRESET, "reset"), TEMPORARY),
    (ConnectionAbortedError("aborted"), TEMPORARY),
    (BrokenPipeError("pipe"), TEMPORARY),
    (TimeoutError(), TEMPORARY),
    (TimeoutError(), TEMPORARY),
    (EOFError(), TEMPORARY),
    (asyncio.IncompleteReadError(b"", 4), TEMPORARY),
    (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), TEMPORARY),
    (socket.gaierror(socket.EAI_NONAME, "a service without a living pod has no name"), TEMPORARY),
    (ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "cut within TLS"), TEMPORARY),
    (ssl.SSLZeroReturnError(ssl.SSL_ERROR_ZERO_RETURN, "closed"), TEMPORARY),
    (ssl.SSLSyscallError(ssl.SSL_ERROR_SYSCALL, "reset"), TEMPORARY),
    (ssl.SSLCertVerificationError(1, "certificate verify failed"), PERMANENT),
    (ssl.SSLError(1, "wrong version number"), PERMANENT),
    (InterruptedError(errno.EINTR, ""), TEMPORARY),
    (BlockingIOError(errno.EAGAIN, ""), TEMPORARY),
    *((OSError(getattr(errno, name), name), TEMPORARY) for name in
      ("EBUSY", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ETIMEDOUT", "ESTALE")),
    *((OSError(getattr(errno, name), name), THROTTLED) for name in ("EMFILE", "ENFILE", "ENOBUFS")),
    *((OSError(getattr(errno, name), name), PERMANENT) for name in
      ("ENOENT", "EACCES", "EPERM", "ENOSPC", "EROFS", "EIO", "ENAMETOOLONG", "EISDIR", "EDQUOT")),
    (OSError("no number at all"), PERMANENT),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind"), SYSTEM, ids=str)
def test_errors_of_the_system(error, kind):
    assert kind_of(error) is kind


@pytest.mark.parametrize(
    "mistake", [TypeError, ValueError, UnicodeDecodeError, NotImplementedError, AttributeError, KeyError, ImportError]
)
def test_mistakes_in_code_are_permanent(mistake):
    assert kind_of(mistake.__new__(mistake)) is PERMANENT


def test_a_state_that_cannot_be_encoded_is_permanent():
    with pytest.raises(Exception, match="serialize") as caught:
        AgentState(metadata={"what": object()}).to_checkpoint()
    assert type(caught.value).__name__ == "PydanticSerializationError"
    assert kind_of(caught.value) is PERMANENT


class Strange(Exception):
    """Of no driver that anybody knows."""


@pytest.mark.parametrize("error", [Strange(), Exception(), RuntimeError(), AssertionError(), MemoryError()])
def test_an_error_that_no_table_knows_is_unknown(error):
    assert kind_of(error) is UNKNOWN
    assert classify(error).temporary is None


# -- drivers that are not installed ----------------------------------------------------------------------------------


def foreign(module: str, name: str, *bases: type, **attributes: Any) -> type[Exception]:
    """A class that looks as if it came from a driver."""
    return type(name, bases or (Exception,), {"__module__": module, **attributes})


def mysql(name: str, number: int) -> Exception:
    root = foreign("mysql.connector.errors", "Error")
    error = foreign("mysql.connector.errors", name, root)(number, "said so", None)
    error.errno = number
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (mysql("InterfaceError", 2003), TEMPORARY),  # cannot connect
        (mysql("OperationalError", 2013), TEMPORARY),  # lost during a query
        (mysql("OperationalError", 2055), TEMPORARY),
        (mysql("DatabaseError", 1205), TEMPORARY),  # lock wait timeout
        (mysql("InternalError", 1213), TEMPORARY),  # deadlock
        (mysql("DatabaseError", 1040), TEMPORARY),  # too many connections
        (mysql("IntegrityError", 1062), PERMANENT),
        (mysql("ProgrammingError", 1146), PERMANENT),
        (mysql("ProgrammingError", 1045), PERMANENT),
    ],
)
def test_errors_of_mysql_connector(error, kind):
    assert kind_of(error) is kind


def opensearch(name: str, status: int | str) -> Exception:
    module = "opensearchpy.exceptions"
    root = foreign(module, "OpenSearchException")
    transport = foreign(module, "TransportError", root, status_code=property(lambda self: self.args[0]))
    family = {"TransportError": transport, "ConnectionError": foreign(module, "ConnectionError", transport)}
    kind = family.get(name)
    if kind is None:
        base = family["ConnectionError"] if name in ("ConnectionTimeout", "SSLError") else transport
        kind = foreign(module, name, base)
    return kind(status, "said so", {})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (opensearch("ConnectionError", "N/A"), TEMPORARY),
        (opensearch("ConnectionTimeout", "TIMEOUT"), TEMPORARY),
        (opensearch("SSLError", "N/A"), PERMANENT),
        (opensearch("TransportError", 503), TEMPORARY),
        (opensearch("TransportError", 429), THROTTLED),
        (opensearch("NotFoundError", 404), PERMANENT),
        (opensearch("ConflictError", 409), PERMANENT),
        (opensearch("AuthorizationException", 403), PERMANENT),
        (foreign("opensearchpy.exceptions", "SerializationError")("no"), PERMANENT),
        (foreign("opensearchpy.exceptions", "ImproperlyConfigured")("no"), PERMANENT),
    ],
)
def test_errors_of_opensearch(error, kind):
    assert kind_of(error) is kind


def oracle(code: int = 0, full_code: str = "", *, recoverable: bool = False) -> Exception:
    told = SimpleNamespace(code=code, full_code=full_code or f"ORA-{code:05d}", isrecoverable=recoverable)
    return foreign("oracledb.exceptions", "DatabaseError", foreign("oracledb.exceptions", "Error"))(told)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (oracle(3113), TEMPORARY),  # end of file on the channel
        (oracle(1033), TEMPORARY),  # starting up
        (oracle(12541), TEMPORARY),  # no listener
        (oracle(12170), TEMPORARY),  # connect timeout
        (oracle(60), TEMPORARY),  # deadlock
        (oracle(8177), TEMPORARY),  # cannot serialise
        (oracle(376, recoverable=True), TEMPORARY),
        (oracle(0, "DPY-4011", recoverable=True), TEMPORARY),
        (oracle(0, "DPY-6005"), TEMPORARY),  # thin mode: cannot connect
        (oracle(0, "DPY-6000"), TEMPORARY),
        (oracle(0, "DPY-4024"), TEMPORARY),  # call timeout
        (oracle(0, "DPY-4005"), TEMPORARY),  # no free connection in the pool
        (oracle(1), PERMANENT),  # unique constraint
        (oracle(942), PERMANENT),  # no such table
        (oracle(1017), PERMANENT),  # password
        (oracle(0, "DPY-2001"), PERMANENT),
    ],
)
def test_errors_of_oracledb(error, kind):
    assert kind_of(error) is kind


def oci(status: int, **headers: str) -> Exception:
    error = foreign("oci.exceptions", "ServiceError")({"status": status})
    error.status, error.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}
    return error


REQUESTS = foreign("oci._vendor.requests.exceptions", "RequestException", OSError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (oci(500), TEMPORARY),
        (oci(503), TEMPORARY),
        (oci(429, retry_after="7"), THROTTLED),
        (oci(404), PERMANENT),
        (oci(401), PERMANENT),
        (foreign("oci.exceptions", "RequestException", REQUESTS)("refused"), TEMPORARY),
        (foreign("oci.exceptions", "ConnectTimeout", REQUESTS)("slow"), TEMPORARY),
        (foreign("oci.exceptions", "ConfigFileNotFound")("~/.oci"), PERMANENT),
        (foreign("oci.exceptions", "InvalidConfig")({}), PERMANENT),
    ],
)
def test_errors_of_oci(error, kind):
    assert kind_of(error) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (foreign("requests.exceptions", "ConnectionError", OSError)("refused"), TEMPORARY),
        (foreign("requests.exceptions", "Timeout", OSError)("slow"), TEMPORARY),
        (foreign("requests.exceptions", "SSLError", OSError)("certificate"), PERMANENT),
        (foreign("urllib3.exceptions", "ProtocolError")("cut"), TEMPORARY),
        (foreign("urllib3.exceptions", "MaxRetryError")("refused"), TEMPORARY),
        (foreign("urllib3.exceptions", "LocationParseError", foreign("urllib3.exceptions", "HTTPError"))(), PERMANENT),
        (foreign("aiohttp.client_exceptions", "ClientResponseError", status=503)(), TEMPORARY),
        (foreign("aiohttp.client_exceptions", "ClientResponseError", status=404)(), PERMANENT),
        (foreign("aiohttp.client_exceptions", "ClientOSError", OSError)(errno.ECONNRESET, "reset"), TEMPORARY),
    ],
)
def test_errors_of_the_libraries_below_the_drivers(error, kind):
    assert kind_of(error) is kind


# -- Retry-After -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (status_error(429, retry_after="7"), 7.0),
        (status_error(503, retry_after="0"), 0.0),
        (status_error(429, retry_after=" 12 "), 12.0),
        (answered("SlowDown", 503, **{"retry-after": "3"}), 3.0),
        (oci(429, retry_after="5"), 5.0),
        (status_error(429), None),
        (status_error(429, retry_after="soon"), None),
        (status_error(429, retry_after=""), None),
        (status_error(429, retry_after="-3"), None),
        (status_error(404, retry_after="7"), None),
    ],
)
def test_retry_after_in_seconds(error, seconds):
    assert classify(error).retry_after == seconds


def test_retry_after_as_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert classify(status_error(503, retry_after=later)).retry_after == pytest.approx(3600, abs=60)
    earlier = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    assert classify(status_error(503, retry_after=earlier)).retry_after == 0.0


# -- our own ---------------------------------------------------------------------------------------------------------


def ours(kind: type[errors.BackendError], *, temporary: bool | None = True) -> errors.BackendError:
    return kind("said so", member="s3", operation="save", temporary=temporary)


def caused(error: errors.BackendError, cause: Exception) -> errors.BackendError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ours(errors.RetriesExhausted), EXHAUSTED),
        (ours(errors.BreakerOpen), EXHAUSTED),
        (ours(errors.Overloaded), EXHAUSTED),
        (ours(errors.AttemptTimeout), TEMPORARY),
        (ours(errors.BackendError), TEMPORARY),
        (ours(errors.BackendError, temporary=False), PERMANENT),
        (ours(errors.BackendError, temporary=None), UNKNOWN),
        # the cause knows better
        (caused(ours(errors.BackendError), answered("SlowDown", 503)), THROTTLED),
        (caused(ours(errors.BackendError, temporary=None), Strange()), UNKNOWN),
        (caused(ours(errors.BackendError), Strange()), TEMPORARY),
        (caused(ours(errors.RetriesExhausted), ConnectionError()), EXHAUSTED),
        # everything else of ours would fail in the same way
        (errors.InvalidArgument("no"), PERMANENT),
        (errors.CapabilityMissing("no"), PERMANENT),
        (errors.CorruptCheckpoint("no", member="s3", thread_id="t", checkpoint_id=None), PERMANENT),
        (errors.StaleRead("no"), PERMANENT),
        (errors.JournalFull("no"), PERMANENT),
        (errors.QuorumError("no", known={}), EXHAUSTED),
    ],
)
def test_errors_of_ours(error, kind):
    assert kind_of(error) is kind


@pytest.mark.parametrize(
    ("error", "temporary"),
    [(ConnectionError(), True), (answered("SlowDown"), True), (answered("AccessDenied"), False), (Strange(), None)],
    ids=name_of,
)
async def test_what_a_backend_raises_is_named_and_judged_by_its_leaf(error, temporary):
    checkpointer = RetryingCheckpointer(FaultyCheckpointer(script=[on("load").fail_before(error)]), attempts=1)
    with pytest.raises(errors.BackendError) as caught:
        await checkpointer.load("t")
    assert (caught.value.member, caught.value.operation) == ("FaultyCheckpointer", "load")
    assert caught.value.temporary is temporary
    assert caught.value.__cause__ is error


# -- raised by the drivers themselves --------------------------------------------------------------------------------


@pytest.fixture
def nobody() -> Any:
    """A port on which nobody listens, and which is nobody else's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


async def ask_redis(port: int) -> None:
    client = Redis.from_url(f"redis://127.0.0.1:{port}")
    try:
        await client.get("key")
    finally:
        await client.aclose()


async def ask_postgres(port: int) -> None:
    await asyncpg.connect(f"postgresql://nobody@127.0.0.1:{port}/nothing?sslmode=disable")


async def ask_s3(port: int) -> None:
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )
    try:
        client.get_object(Bucket="bucket", Key="key")
    finally:
        client.close()


async def ask_s3_elsewhere(port: int) -> None:
    """boto3 blocks: from a thread, so that the loop can answer."""
    await asyncio.to_thread(asyncio.run, ask_s3(port))


async def ask_http(port: int) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize("ask", [ask_redis, ask_postgres, ask_s3, ask_http])
async def test_a_refused_connection_as_the_drivers_raise_it(ask: Callable[[int], Awaitable[None]], nobody: int):
    with pytest.raises(Exception) as caught:
        await ask(nobody)
    assert kind_of(caught.value) is TEMPORARY


@pytest.fixture
async def hangs_up() -> Any:
    """A server that hears one word and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("ask", [ask_redis, ask_postgres, ask_s3_elsewhere, ask_http])
async def test_a_reset_connection_as_the_drivers_raise_it(ask: Callable[[int], Awaitable[None]], hangs_up: int):
    with pytest.raises(Exception) as caught:
        await ask(hangs_up)
    assert kind_of(caught.value) is TEMPORARY


async def test_a_host_of_several_addresses_none_of_which_answers(nobody: int, monkeypatch: pytest.MonkeyPatch):
    """asyncio sums up what happened at each of them in an OSError without a number."""
    loop = asyncio.get_running_loop()
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{host}", nobody)) for host in (1, 2)]

    async def both(*_: Any, **__: Any) -> Any:
        return addresses

    monkeypatch.setattr(loop, "getaddrinfo", both)
    with pytest.raises(OSError, match="Multiple exceptions") as caught:
        await asyncpg.connect(f"postgresql://nobody@db.example:{nobody}/nothing?sslmode=disable")
    assert caught.value.errno is None
    assert kind_of(caught.value) is TEMPORARY
