"""AWS's API on loopback, in a process of its own. The only place that knows which emulator it is: moto's server.

`python tests/emulated_aws.py` serves on a free port and prints it.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Any

import boto3

REGION = "eu-west-1"


class EmulatedAws:
    """Started and listening when it is there. It keeps what it is told until `close`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        assert port, f"the emulator ended with status {self._process.wait()}"
        self.url = f"http://127.0.0.1:{port}"

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
        return boto3.Session(region_name=region, **keys).client(service, endpoint_url=self.url)  # type: ignore[call-overload]

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve()
