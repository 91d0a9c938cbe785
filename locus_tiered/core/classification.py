"""Which errors are worth another try: tables, in one module, by the names of exceptions.

By name, so that no driver is imported that is not there anyway. An error that no table knows is ``UNKNOWN``: it
is not retried, and counted, so that somebody notices.

Sources: botocore's own retry tables (``botocore/data/_retry.json``, the "standard" mode), the redis-py and
asyncpg exception trees, SQLSTATE classes 08, 40, 53, 55P03, 57014 and 57P of the PostgreSQL manual (appendix A),
MySQL's client and server error references, ORA numbers that python-oracledb calls recoverable, RFC 9110
(408, 429, 502 to 504, ``Retry-After``), and errno(3).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from locus_tiered.core.errors import (
    AttemptTimeout,
    BackendError,
    BreakerOpen,
    LocusTieredError,
    Overloaded,
    QuorumError,
    RetriesExhausted,
)

__all__ = ["Kind", "Verdict", "classify"]


class Kind(StrEnum):
    """What trying again would do."""

    TEMPORARY = "temporary"
    """It may well work."""
    THROTTLED = "throttled"
    """It may work, but only after a longer pause."""
    PERMANENT = "permanent"
    """It would fail in the same way."""
    EXHAUSTED = "exhausted"
    """It was tried as often as allowed, or something below has decided against trying."""
    UNKNOWN = "unknown"
    """No table knows the error."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error is, and how many seconds the server asked to wait."""

    kind: Kind
    retry_after: float | None = None

    @property
    def temporary(self) -> bool | None:
        """For ``BackendError.temporary``: ``None`` where nobody knows."""
        if self.kind is Kind.UNKNOWN:
            return None
        return self.kind in (Kind.TEMPORARY, Kind.THROTTLED)


# The top-level package of an exception's module, and the names of its classes or their bases.
_BY_NAME: Mapping[str, Mapping[str, Kind]] = {
    "botocore": {
        "EndpointConnectionError": Kind.TEMPORARY,
        "ConnectionClosedError": Kind.TEMPORARY,
        "ConnectTimeoutError": Kind.TEMPORARY,
        "ReadTimeoutError": Kind.TEMPORARY,
        "ProxyConnectionError": Kind.TEMPORARY,
        "HTTPClientError": Kind.TEMPORARY,
        "ResponseStreamingError": Kind.TEMPORARY,
        "IncompleteReadError": Kind.TEMPORARY,
        "SSLError": Kind.PERMANENT,
        "NoCredentialsError": Kind.PERMANENT,
        "PartialCredentialsError": Kind.PERMANENT,
        "ParamValidationError": Kind.PERMANENT,
        "BotoCoreError": Kind.PERMANENT,
    },
    "redis": {
        "BusyLoadingError": Kind.TEMPORARY,
        "AuthenticationError": Kind.PERMANENT,
        "AuthorizationError": Kind.PERMANENT,
        "MaxConnectionsError": Kind.THROTTLED,
        "ConnectionError": Kind.TEMPORARY,
        "TimeoutError": Kind.TEMPORARY,
        "TryAgainError": Kind.TEMPORARY,
        "ClusterDownError": Kind.TEMPORARY,
        "MasterDownError": Kind.TEMPORARY,
        "ReadOnlyError": Kind.TEMPORARY,
        "OutOfMemoryError": Kind.THROTTLED,
        "RedisError": Kind.PERMANENT,
    },
    "asyncpg": {
        "ConnectionDoesNotExistError": Kind.TEMPORARY,
        "ClientConfigurationError": Kind.PERMANENT,
        "UnsupportedClientFeatureError": Kind.PERMANENT,
        "UnsupportedServerFeatureError": Kind.PERMANENT,
        "InterfaceError": Kind.TEMPORARY,
        # Also what a pooled connection says first after its server was restarted (observed), and "no primary".
        "InternalClientError": Kind.TEMPORARY,
    },
    "httpx": {
        "UnsupportedProtocol": Kind.PERMANENT,
        "LocalProtocolError": Kind.PERMANENT,
        "TransportError": Kind.TEMPORARY,
        "DecodingError": Kind.PERMANENT,
        "TooManyRedirects": Kind.PERMANENT,
        "InvalidURL": Kind.PERMANENT,
    },
    "httpcore": {
        "NetworkError": Kind.TEMPORARY,
        "TimeoutException": Kind.TEMPORARY,
        "RemoteProtocolError": Kind.TEMPORARY,
    },
    "opensearchpy": {
        "SSLError": Kind.PERMANENT,
        "ConnectionTimeout": Kind.TEMPORARY,
        "ConnectionError": Kind.TEMPORARY,
        "SerializationError": Kind.PERMANENT,
        "ImproperlyConfigured": Kind.PERMANENT,
    },
    "oci": {
        "ConnectTimeout": Kind.TEMPORARY,
        "RequestException": Kind.TEMPORARY,
        "ConfigFileNotFound": Kind.PERMANENT,
        "InvalidConfig": Kind.PERMANENT,
        "ClientError": Kind.PERMANENT,
    },
    "requests": {
        "SSLError": Kind.PERMANENT,
        "ConnectionError": Kind.TEMPORARY,
        "Timeout": Kind.TEMPORARY,
        "ChunkedEncodingError": Kind.TEMPORARY,
        "RequestException": Kind.PERMANENT,
    },
    "urllib3": {
        "SSLError": Kind.PERMANENT,
        "ProtocolError": Kind.TEMPORARY,
        "TimeoutError": Kind.TEMPORARY,
        "NewConnectionError": Kind.TEMPORARY,
        "MaxRetryError": Kind.TEMPORARY,
        "HTTPError": Kind.PERMANENT,
    },
    # Of the standard library: they are OSErrors whose errno is no errno.
    "socket": {"gaierror": Kind.TEMPORARY},
    "ssl": {
        "SSLEOFError": Kind.TEMPORARY,
        "SSLZeroReturnError": Kind.TEMPORARY,
        "SSLSyscallError": Kind.TEMPORARY,
        "SSLError": Kind.PERMANENT,
    },
    "pydantic_core": {"ValidationError": Kind.PERMANENT, "PydanticSerializationError": Kind.PERMANENT},
}

# AWS error codes, from botocore's "standard" retry mode.
_AWS_THROTTLED = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottledException",
        "TooManyRequestsException",
        "ProvisionedThroughputExceededException",
        "TransactionInProgressException",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "LimitExceededException",
        "RequestThrottled",
        "SlowDown",
        "PriorRequestNotComplete",
        "EC2ThrottledException",
    }
)
_AWS_TEMPORARY = frozenset(
    {
        "RequestTimeout",
        "RequestTimeoutException",
        "InternalError",
        "ServiceUnavailable",
        "OperationAborted",
        "ConditionalRequestConflict",
        "BucketAlreadyOwnedByYou",  # two processes made it at once
    }
)

_SQLSTATE_TEMPORARY = ("08", "40", "53", "57P", "55P03", "57014", "58030")
_MYSQL_TEMPORARY = frozenset({1040, 1053, 1158, 1159, 1160, 1161, 1205, 1213, 2002, 2003, 2006, 2013, 2014, 2055})
_ORA_TEMPORARY = frozenset(
    {28, 54, 60, 1033, 1034, 1089, 1090, 1092, 3113, 3114, 3135, 8177, 12153, 12170, 12514, 12516, 12518, 12520, 12521}
    | {12528, 12537, 12541, 12543, 12545, 12547, 12570, 12571, 12583, 25408}
)
# What python-oracledb says itself, without the database: not connected, pool empty, closed, timed out, refused.
_DPY_TEMPORARY = frozenset(
    {"DPY-1001", "DPY-4005", "DPY-4011", "DPY-4024", "DPY-4033", "DPY-6000", "DPY-6001", "DPY-6004", "DPY-6005"}
)
_ERRNO_TEMPORARY = frozenset(
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.EPIPE,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENETRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ESTALE,
    }
)
_ERRNO_THROTTLED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS})
_STATUS_TEMPORARY = frozenset({408, 425, 500, 502, 503, 504})


def classify(error: BaseException) -> Verdict:
    """What trying again after ``error`` would do."""
    if isinstance(error, LocusTieredError):
        return _own(error)
    for look in (_by_status, _by_database, _by_name, _by_os):
        verdict = look(error)
        if verdict is not None:
            return verdict
    if isinstance(error, TypeError | ValueError | NotImplementedError | AttributeError | LookupError | ImportError):
        return Verdict(Kind.PERMANENT)
    return Verdict(Kind.UNKNOWN)


def _own(error: LocusTieredError) -> Verdict:
    if isinstance(error, RetriesExhausted | BreakerOpen | Overloaded | QuorumError):
        return Verdict(Kind.EXHAUSTED)
    if isinstance(error, AttemptTimeout):
        return Verdict(Kind.TEMPORARY)
    if not isinstance(error, BackendError):
        return Verdict(Kind.PERMANENT)
    if error.__cause__ is not None:
        verdict = classify(error.__cause__)
        if verdict.kind is not Kind.UNKNOWN or error.temporary is None:
            return verdict
    if error.temporary is None:
        return Verdict(Kind.UNKNOWN)
    return Verdict(Kind.TEMPORARY if error.temporary else Kind.PERMANENT)


def _families(error: BaseException) -> Iterator[tuple[str, str]]:
    """Package and name of the error's class and of its bases, nearest first."""
    for kind in type(error).__mro__:
        yield kind.__module__.partition(".")[0], kind.__name__


def _by_name(error: BaseException) -> Verdict | None:
    for package, name in _families(error):
        kind = _BY_NAME.get(package, {}).get(name)
        if kind is not None:
            return Verdict(kind)
    return None


def _by_status(error: BaseException) -> Verdict | None:
    """Errors that carry an HTTP answer: botocore's ClientError, httpx, opensearch-py, oci."""
    response = getattr(error, "response", None)
    code, headers = "", None
    if isinstance(response, Mapping):  # botocore
        code = str(response.get("Error", {}).get("Code", ""))
        metadata = response.get("ResponseMetadata", {})
        status, headers = metadata.get("HTTPStatusCode"), metadata.get("HTTPHeaders")
    elif response is not None and _has_number(response, "status_code"):  # httpx, requests
        status, headers = response.status_code, getattr(response, "headers", None)
    elif _has_number(error, "status_code"):  # opensearch-py
        status = error.status_code  # type: ignore[attr-defined]
    elif _has_number(error, "status"):  # oci
        status, headers = error.status, getattr(error, "headers", None)  # type: ignore[attr-defined]
    else:
        return None
    wait = _retry_after(headers)
    if code in _AWS_THROTTLED or status == 429 or (status == 503 and wait is not None):
        return Verdict(Kind.THROTTLED, wait)
    if code in _AWS_TEMPORARY or status in _STATUS_TEMPORARY:
        return Verdict(Kind.TEMPORARY, wait)
    return Verdict(Kind.PERMANENT)


def _has_number(value: object, name: str) -> bool:
    """Whether ``value`` has a whole number under ``name``."""
    return isinstance(getattr(value, name, None), int)


def _retry_after(headers: Any) -> float | None:
    """``Retry-After`` in seconds (RFC 9110, 10.2.3): a number, or a date."""
    try:
        value = next((str(headers[name]) for name in ("retry-after", "Retry-After") if name in headers), None)
        if value is None:
            return None
        if value.strip().isdigit():
            return float(value)
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError, KeyError):
        return None
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else None


def _by_database(error: BaseException) -> Verdict | None:
    packages = {package for package, _ in _families(error)}
    state = getattr(error, "sqlstate", None)
    if "asyncpg" in packages and isinstance(state, str):
        return Verdict(Kind.TEMPORARY if state.startswith(_SQLSTATE_TEMPORARY) else Kind.PERMANENT)
    number = getattr(error, "errno", None)
    if "mysql" in packages and isinstance(number, int):
        return Verdict(Kind.TEMPORARY if number in _MYSQL_TEMPORARY else Kind.PERMANENT)
    if "oracledb" in packages:
        inner = error.args[0] if error.args else None
        code, own = getattr(inner, "code", None), getattr(inner, "full_code", None)
        recoverable = getattr(inner, "isrecoverable", False) or code in _ORA_TEMPORARY or own in _DPY_TEMPORARY
        return Verdict(Kind.TEMPORARY if recoverable else Kind.PERMANENT)
    return None


def _by_os(error: BaseException) -> Verdict | None:
    if isinstance(error, TimeoutError | ConnectionError | EOFError):
        return Verdict(Kind.TEMPORARY)
    if isinstance(error, OSError):
        if error.errno is None and str(error).startswith("Multiple exceptions: "):
            return Verdict(Kind.TEMPORARY)  # asyncio, when none of a host's addresses could be connected to
        if error.errno in _ERRNO_THROTTLED:
            return Verdict(Kind.THROTTLED)
        return Verdict(Kind.TEMPORARY if error.errno in _ERRNO_TEMPORARY else Kind.PERMANENT)
    return None
