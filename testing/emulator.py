"""AWS's API on loopback, in a process of its own. MiniStack's name is known only here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3

from testing.server import eventually, free_port

REGION = "us-east-1"
ACCOUNT = "000000000000"
_SECRET = "local"


class Emulator:
    """An emulated AWS that listens when it is made, and keeps what it is given until `close`."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str], Any] = {}
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environment |= {
            "GATEWAY_PORT": str(self.port),
            "MINISTACK_HOST": "127.0.0.1",
            "SFTP_ENABLED": "0",
            "DOCKER_HOST": "unix:///nowhere",
            "LOG_LEVEL": "WARNING",
        }
        program = f"import uvicorn; uvicorn.run('ministack.app:app', host='127.0.0.1', port={self.port})"
        with (directory / "emulator.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program], env=environment, stdout=log, stderr=log, cwd=directory
            )
        eventually(self._answers)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that make boto3 use this emulator and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def client(self, service: str, region: str = REGION) -> Any:
        """Return a client, made once for each service and region."""
        with self._lock:
            if (service, region) not in self._clients:
                session = boto3.Session(aws_access_key_id=ACCOUNT, aws_secret_access_key=_SECRET, region_name=region)
                self._clients[service, region] = session.client(service, endpoint_url=self.url)
            return self._clients[service, region]

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            urllib.request.urlopen(f"{self.url}/_ministack/health", timeout=2).close()
        except OSError:
            return False
        return True
