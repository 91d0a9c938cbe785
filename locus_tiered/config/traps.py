"""Spellings that the SDK's checkpointers accept and then do something else with, or refuse only when first used."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

__all__ = ["options", "short"]

Found = tuple[str, str, str | None]
"""An option, what is wrong with it, and what to write."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def _scheme(value: Any) -> str | None:
    match = _SCHEME.match(value) if isinstance(value, str) else None
    return match[1].lower() if match else None


def _url(option: str, given: Mapping[str, Any], schemes: Collection[str], example: str) -> Iterator[Found]:
    value = given.get(option)
    if isinstance(value, str) and value and _scheme(value) not in schemes:
        yield option, f"must begin with {' or '.join(f'{each}://' for each in schemes)}", f"write {example}"


def _redis(given: Mapping[str, Any]) -> Iterator[Found]:
    value = given.get("url")
    if isinstance(value, str) and re.match(r"redis://(rediss?|unix)://", value):
        yield "url", "begins with two schemes", 'with TLS write "rediss://host:6379", without "redis://host:6379"'
    else:
        yield from _url("url", given, ("redis", "rediss", "unix"), '"rediss://host:6379" (TLS) or "redis://host:6379"')
    for option in ("host", "port", "password", "username"):
        if option in given:
            yield option, f"unknown key {option!r}", 'it goes into url: "redis://user:password@host:port/0"'
    if "ttl" in given:
        yield "ttl", "unknown key 'ttl'", "did you mean 'ttl_seconds'?"


def _database(kind: str, scheme: str) -> Callable[[Mapping[str, Any]], Iterator[Found]]:
    def look(given: Mapping[str, Any]) -> Iterator[Found]:
        for option in ("database", "host"):
            if _scheme(given.get(option)):
                what = "the name of a database" if option == "database" else "a host's name"
                yield option, f"is a connection string, not {what}", f'write dsn: "{scheme}://..." instead'
        for option in ("url", "connection_string", "uri"):
            if option in given:
                yield option, f"unknown key {option!r}", "did you mean 'dsn'?"
        yield from _dsn(given, scheme)
        if given.get("dsn"):
            for option in ("host", "port", "database", "user", "password"):
                if option in given:
                    yield option, f"{kind} ignores it beside dsn", "write it into dsn, or leave dsn out"

    return look


def _dsn(given: Mapping[str, Any], scheme: str) -> Iterator[Found]:
    schemes = ("postgresql", "postgres") if scheme == "postgresql" else ("mysql", "mysql+connector")
    yield from _url("dsn", given, schemes, f'"{scheme}://user:password@host/database"')


def _pg(given: Mapping[str, Any]) -> Iterator[Found]:
    yield from _dsn(given, "postgresql")
    for option in ("host", "database", "user", "password", "port", "url"):
        if option in given:
            yield option, f"unknown key {option!r}", 'pg takes dsn: "postgresql://user:password@host/database"'
    for option, other in (("table_name", "table"), ("schema_name", "schema")):
        if option in given:
            yield option, f"unknown key {option!r}", f"did you mean {other!r}? table_name is postgresql's"


def _s3(given: Mapping[str, Any]) -> Iterator[Found]:
    bucket = given.get("bucket")
    if isinstance(bucket, str) and ("/" in bucket):
        yield "bucket", "is the name of a bucket, without s3:// and path", "write bucket: agents, and prefix: path/"
    yield from _url("endpoint_url", given, ("http", "https"), '"https://host:port"')
    for option, other in (
        ("region", "region_name"),
        ("endpoint", "endpoint_url"),
        ("access_key", "aws_access_key_id"),
        ("secret_key", "aws_secret_access_key"),
    ):
        if option in given:
            yield option, f"unknown key {option!r}", f"did you mean {other!r}?"
    if ("aws_access_key_id" in given) != ("aws_secret_access_key" in given):
        other = "aws_secret_access_key" if "aws_access_key_id" in given else "aws_access_key_id"
        yield "", f"half a pair of keys: {other} is missing", "write both, or none and let boto3 find them"


def _oci(given: Mapping[str, Any]) -> Iterator[Found]:
    bucket = given.get("bucket_name")
    if isinstance(bucket, str) and "/" in bucket:
        yield "bucket_name", "is the name of a bucket, without its namespace", "write namespace: beside it"
    if "bucket" in given:
        yield "bucket", "unknown key 'bucket'", "did you mean 'bucket_name'?"
    if "bucket_name" in given and not given.get("namespace"):
        yield "namespace", "is missing", "write namespace: your tenancy's, which `oci os ns get` prints"
    kinds = ("api_key", "security_token", "instance_principal", "resource_principal")
    auth = given.get("auth_type")
    if isinstance(auth, str) and auth not in kinds:  # OCIBucketBackend takes any other for api_key
        yield "auth_type", "is no way to sign in", f"one of {', '.join(kinds)}"


def _oracle(given: Mapping[str, Any]) -> Iterator[Found]:
    if "database" in given:
        hint = 'write dsn: "host:1521/service", a TNS name, or host, port and service_name'
        yield "database", "unknown key 'database'", hint
    elif not given.get("dsn") and not (given.get("host") and given.get("service_name")):
        yield "", "says no database", 'write dsn: "host:1521/service", or host and service_name'


def _opensearch(given: Mapping[str, Any]) -> Iterator[Found]:
    if isinstance(given.get("hosts"), str):
        yield "hosts", "must be a list", 'write hosts: ["host:9200"]'
    if ("username" in given) != ("password" in given):
        yield "", "half a pair: username and password go together", "write both, or none"


def _http(given: Mapping[str, Any]) -> Iterator[Found]:
    yield from _url("base_url", given, ("http", "https"), '"https://host/api"')
    if "url" in given:
        yield "url", "unknown key 'url'", "did you mean 'base_url'?"


_TRAPS: Mapping[str, Callable[[Mapping[str, Any]], Iterator[Found]]] = {
    "redis": _redis,
    "postgresql": _database("postgresql", "postgresql"),
    "mysql": _database("mysql", "mysql"),
    "pg": _pg,
    "s3": _s3,
    "oci": _oci,
    "oracle": _oracle,
    "opensearch": _opensearch,
    "http": _http,
}


def options(kind: str, given: Mapping[str, Any]) -> Iterator[Found]:
    """What is wrong with the options of one store, beyond their types."""
    if kind in _TRAPS:
        yield from _TRAPS[kind](given)


def short(kind: str, value: object) -> str | None:
    """What to write instead of a text where options belong, as ``get_checkpointer("redis:...")`` takes one."""
    scheme = _scheme(value)
    if not isinstance(value, str):
        return None
    if kind == "redis":
        return f'write redis: {{url: "{scheme if scheme in ("redis", "rediss", "unix") else "redis"}://host:6379"}}'
    if kind in ("postgresql", "mysql"):
        option = "dsn" if scheme else "database"
        return f'write {kind}: {{{option}: "{f"{scheme}://..." if scheme else "..."}"}}'
    if kind == "oci":
        return "write oci: {bucket_name: ..., namespace: ...}"
    if kind in ("directory", "file"):
        return f"write {kind}: {{{'path' if kind == 'directory' else 'base_dir'}: ...}}"
    return None
