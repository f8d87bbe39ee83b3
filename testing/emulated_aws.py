"""AWS's API on loopback, in a process of its own. The only place that knows which emulator it is: MiniStack."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType
from typing import Any

import boto3
import httpx

from testing.server import eventually, free_port

REGION = "eu-west-1"


class EmulatedAws:
    """Started and listening when it is there. It keeps what it is told until `close`."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "SFTP_ENABLED": "0", "LOG_LEVEL": "ERROR"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self._process.poll() is None, f"the emulator ended with status {self._process.returncode}"
        try:
            return httpx.get(self.url, trust_env=False).status_code > 0
        except httpx.TransportError:
            return False

    def __enter__(self) -> EmulatedAws:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """What leads boto3 here, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def client(self, service: str, region: str = REGION) -> Any:
        keys: dict[str, Any] = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        return boto3.Session(region_name=region, **keys).client(service, endpoint_url=self.url)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
