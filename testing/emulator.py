"""A MiniStack of the tests' own, on a loopback port, keeping nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import boto3

from testing.server import eventually, free_port


class Emulator:
    """Has what fleet.py and its kin ask of a backend. `close` it."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
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

    def client(self, service: str) -> Any:
        with self._lock:
            if service not in self._clients:
                self._clients[service] = boto3.Session(
                    aws_access_key_id="000000000000", aws_secret_access_key="local", region_name="us-east-1"
                ).client(service, endpoint_url=self.url)
            return self._clients[service]

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
