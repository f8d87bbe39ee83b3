"""The embedded emulator's process: MiniStack on a socket that `backend` opened, with all its data in one directory.

    python -m endpoint.backend.emulator --socket FD --data-dir DIR --settings JSON

It listens nowhere else, starts no SFTP, MQTT or Docker, and refuses web pages (MiniStack itself lets any page do all).
All of its state but S3's objects is saved when it ends by SIGTERM, and only then.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import uvicorn
from filelock import FileLock, Timeout
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from endpoint.origin_guard import OriginGuard
from endpoint.process import Process, identity_of

SERVICES = frozenset({"s3", "sns", "sqs", "sts", "iam", "ecr", "logs", "monitoring"})
"""Services it has, by the names that requests are signed for."""
SETTINGS_PATH = "/_longhaul/emulator"
"""Path of the settings that the emulator was started with, and its process id."""
RUNNING_FILE = "process.json"
_SHUTDOWN_TIMEOUT_S = 2
"""Seconds that open requests are waited for: a long poll may have 20 s to go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The emulator's process and port. It records them itself: a gateway killed meanwhile can't lose track of it."""

    pid: int
    identity: str
    port: int

    @property
    def process(self) -> Process:
        return Process(self.pid, self.identity)

    def save(self, data_dir: Path) -> None:
        new = data_dir / f"{RUNNING_FILE}.new"
        new.write_text(json.dumps(asdict(self)))
        new.replace(data_dir / RUNNING_FILE)


def read_running(data_dir: Path) -> Running | None:
    """Return what the latest emulator of `data_dir` recorded, though it may have ended since."""
    try:
        return Running(**json.loads((data_dir / RUNNING_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    arguments = parser.parse_args()
    lock = FileLock(arguments.data_dir / "lock", blocking=False)  # held until this process ends, however it ends
    try:
        lock.acquire()
    except Timeout:
        sys.exit(f"another emulator uses {arguments.data_dir}")
    listener = socket.socket(fileno=arguments.socket)
    identity = identity_of(os.getpid())
    assert identity is not None, "this process runs"
    Running(pid=os.getpid(), identity=identity, port=listener.getsockname()[1]).save(arguments.data_dir)
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.environ.update(environment(arguments.data_dir, arguments.settings))
    from ministack.app import app

    accept_all_signers()
    config = uvicorn.Config(
        _Emulator(app, arguments.settings),
        lifespan="on",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
    )
    uvicorn.Server(config).run([listener])


def environment(data_dir: Path, settings: dict[str, str]) -> dict[str, str]:
    """Return MiniStack's settings, which it reads as it is imported."""
    temporary = data_dir / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        "SERVICES": ",".join(sorted(SERVICES)),
        # Queue URLs and the like name the gateway.
        "MINISTACK_HOST": settings["host"],
        "GATEWAY_PORT": settings["port"],
        "MINISTACK_ACCOUNT_ID": settings["account"],
        "MINISTACK_REGION": settings["region"],
        "PERSIST_STATE": "1",
        "STATE_DIR": str(data_dir / "state"),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(data_dir / "s3"),
        "TMPDIR": str(temporary),
        "LOG_LEVEL": "WARNING",  # at INFO the content of every notification is logged
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "DOCKER_HOST": f"unix://{data_dir}/no-docker",
    }


def accept_all_signers() -> None:
    """Have presigned URLs work whoever signed them: MiniStack checks the signatures of these, and of nothing else.

    They still expire.
    """
    from ministack.services import s3

    resolve = s3.resolve_credential
    s3.resolve_credential = lambda *_: resolve("test")
    s3.signatures_match = lambda *_: True


class _Emulator:
    def __init__(self, app: ASGIApp, settings: dict[str, str]) -> None:
        self._app = app
        self._guard = OriginGuard()
        self._settings = json.dumps(settings | {"pid": os.getpid()}).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if self._guard.rejection_reason(headers):
                await Response(status_code=403)(scope, receive, send)
            elif scope["path"] == SETTINGS_PATH:
                await Response(self._settings)(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        # A WebSocket is refused by not being accepted.


if __name__ == "__main__":
    main()
