"""Imported once by the server that forks the children: what every one of them would otherwise do at its start."""

from __future__ import annotations

import boto3

import tests.crash.child
import tests.integration.agents  # noqa: F401

# The models of the S3 API are read into the default session; nothing is connected to.
boto3.client("s3", region_name="us-east-1", aws_access_key_id="nobody", aws_secret_access_key="nothing").close()
