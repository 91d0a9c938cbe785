"""The object operations of OCI Object Storage over HTTP, for the real ``oci`` client: no server of it can run here.

It stands in for the server only. The client is Oracle's, made by ``OCIBucketBackend`` itself from a config file; it
signs every request with the key of that file, and a request whose signature does not hold is answered 401.

Written after https://docs.oracle.com/en-us/iaas/api/#/en/objectstorage/20160918/ (GetBucket, CreateBucket, PutObject,
GetObject, DeleteObject, ListObjects) and https://docs.oracle.com/en-us/iaas/Content/API/Concepts/signingrequests.htm.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from locus.memory.backends.oci_bucket import OCIBucketBackend

from locus_tiered import Layer, Leaf

_PATH = re.compile(r"/n/([^/]+)/b(?:/([^/]+)(?:/o(?:/(.+))?)?)?")


class OciStandIn:
    """A namespace with buckets. ``requests`` counts what was asked for, by method."""

    def __init__(self, folder: Path) -> None:
        self.namespace = "mytenancy"
        self.buckets: dict[str, dict[str, tuple[bytes, datetime, str]]] = {}
        self.requests: dict[str, int] = {}
        self._lock = threading.Lock()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.folder = folder
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, answer = outer._answer(self, body)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_PUT = do_POST = do_DELETE = _serve

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def config_file(self, **changed: str) -> Path:
        """A config file as ``oci setup config`` writes one."""
        key_file = self.folder / "oci_key.pem"
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key_file.write_bytes(self._key.private_bytes(encoding, form, serialization.NoEncryption()))
        values = {
            "user": "ocid1.user.oc1..aaaa",
            "fingerprint": ":".join(["ab"] * 16),
            "tenancy": "ocid1.tenancy.oc1..aaaa",
            "region": "eu-frankfurt-1",
            "key_file": str(key_file),
            **changed,
        }
        file = self.folder / "oci_config"
        file.write_text("[DEFAULT]\n" + "".join(f"{name}={value}\n" for name, value in values.items()))
        for each in (key_file, file):
            each.chmod(0o600)
        return file

    def reach(self, stack: Layer) -> None:
        """Give the clients below ``stack`` this server's address; no config file can, as Oracle's are always TLS."""
        for layer in stack.walk():
            if isinstance(layer, Leaf) and isinstance(layer.backend, OCIBucketBackend):
                layer.backend._get_client().base_client.endpoint = self.url

    # -- requests ------------------------------------------------------------------------------------

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self._lock:
            self.requests[request.command] = self.requests.get(request.command, 0) + 1
            if not self._is_signed(request):
                return _error(401, "NotAuthenticated", "the signature does not hold")
            address = urlsplit(request.path)
            match = _PATH.fullmatch(address.path)
            if match is None or unquote(match[1]) != self.namespace:
                return _error(404, "NamespaceNotFound", "no such namespace")
            query = {name: values[-1] for name, values in parse_qs(address.query).items()}
            bucket, name = (None if part is None else unquote(part) for part in match.group(2, 3))
            return self._operation(request, bucket, name, query, body)

    def _operation(
        self, request: BaseHTTPRequestHandler, bucket: str | None, name: str | None, query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if bucket is None:
            made = json.loads(body)["name"]
            self.buckets.setdefault(made, {})
            return _json({"name": made, "namespace": self.namespace})
        objects = self.buckets.get(bucket)
        if objects is None:
            return _error(404, "BucketNotFound", f"either the bucket named {bucket!r} does not exist, or you may not")
        if name is None:
            if urlsplit(request.path).path.endswith("/o"):
                return _json(_listing(objects, query))
            return _json({"name": bucket, "namespace": self.namespace})
        if request.command == "PUT":
            objects[name] = (body, datetime.now(UTC), request.headers.get("Content-Type") or "")
            return 200, {"etag": "e"}, b""
        if name not in objects:
            return _error(404, "ObjectNotFound", f"the object {name!r} does not exist")
        if request.command == "DELETE":
            del objects[name]
            return 204, {}, b""
        content, _, kind = objects[name]
        return 200, {"Content-Type": kind}, content

    def _is_signed(self, request: BaseHTTPRequestHandler) -> bool:
        given = dict(re.findall(r'(\w+)="([^"]*)"', request.headers.get("Authorization") or ""))
        if given.get("algorithm") != "rsa-sha256" or not {"date", "host"} <= set(given.get("headers", "").split()):
            return False
        lines = (
            f"{name}: {request.command.lower()} {request.path}"
            if name == "(request-target)"
            else f"{name}: {request.headers.get(name)}"
            for name in given["headers"].split()
        )
        signature = base64.b64decode(given.get("signature", ""))
        try:
            self._key.public_key().verify(signature, "\n".join(lines).encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


def _listing(objects: dict[str, tuple[bytes, datetime, str]], query: dict[str, str]) -> dict[str, Any]:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    limit, start = int(query.get("limit", 1000)), query.get("start", "")
    found: list[dict[str, Any]] = []
    prefixes: list[str] = []
    for name in sorted(objects):
        if not name.startswith(prefix) or name < start:
            continue
        folder, cut, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else ("", "", "")
        if cut and f"{prefix}{folder}{cut}" in prefixes:
            continue
        if len(found) + len(prefixes) == limit:
            return {"objects": found, "prefixes": prefixes, "nextStartWith": name}
        if cut:
            prefixes.append(f"{prefix}{folder}{cut}")
        else:
            content, modified, _ = objects[name]
            found.append({"name": name, "size": len(content), "timeModified": modified.isoformat()})
    return {"objects": found, "prefixes": prefixes}


def _json(value: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int, code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps({"code": code, "message": message}).encode()


@contextmanager
def oci_stand_in(folder: Path) -> Iterator[OciStandIn]:
    """One that listens; stopped afterwards."""
    server = OciStandIn(folder)
    server._thread.start()
    try:
        yield server
    finally:
        server._server.shutdown()
        server._server.server_close()
        server._thread.join(5)
