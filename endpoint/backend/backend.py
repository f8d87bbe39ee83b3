"""What S3, SNS, SQS, STS, IAM, ECR, Logs and CloudWatch are here: an embedded emulator (MiniStack) or a URL.

The embedded one is a process of its own session, with its data under `data_dir`/backend. It outlives the gateway and is
adopted by the next one, with all that it holds. `stop` ends it cleanly: then all is there after the next start, but for
uploads in parts that were not completed.

If it is killed (kill -9, no memory left) and started again:

* S3 keeps buckets and objects, with metadata and tags, and never shows half an object; what is set for a bucket
  (versioning, policy, CORS, notifications, ...) is as at the last clean stop, and uploads in parts are gone.
* Queues and their messages, topics, subscriptions, log groups and their lines, metrics, roles and repositories are as
  at the last clean stop: what came since is gone, and messages received and deleted since are in their queues again.
* A power cut can cost objects as well: nothing is forced to the disk.

It holds an object that comes or goes whole in memory. An access key of twelve digits is to it the account of that
number, with buckets and queues of its own. Queues keep the URL that they were made with when the gateway's port
changes; they answer at either.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp
import botocore.config
import botocore.session
import psutil

from endpoint.backend.emulator import IDENTITY_PATH, RUNNING_FILE, SERVICES, Running, read_running
from endpoint.process import Process
from endpoint.settings import ROOT, Settings

_START_S = 60.0
_ANSWER_S = 5.0
_STOP_S = 30.0
_STOP_SUSPENDED_S = 5.0
_LOOK_EVERY_S = 0.25
_RETRY_S = 5.0

log = logging.getLogger(__name__)
_making = threading.Lock()


class BackendError(Exception):
    """The backend doesn't start, or doesn't answer."""


class Backend:
    """Owns the emulator's process and the file that says which it is."""

    services: frozenset[str] | None
    """That it has, by the names that requests are signed for; None where only it can know."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._is_embedded = settings.backend == "embedded"
        self.services = SERVICES if self._is_embedded else None
        self._dir = settings.data_dir / "backend"
        self._running: Running | None = None
        self._is_stopped = False
        self._clients: dict[tuple[str, str], Any] = {}

    @property
    def url(self) -> str:
        if not self._is_embedded:
            return self._settings.backend.rstrip("/")
        assert self._running is not None, "not started"
        return f"http://127.0.0.1:{self._running.port}"

    @property
    def pid(self) -> int | None:
        """Of the emulator."""
        return self._running.pid if self._running else None

    async def start(self) -> None:
        """Adopts the running one of this data directory, else starts one and waits until it answers.

        One that was started with other settings (say, another port of the gateway) is restarted cleanly.
        Raises BackendError.
        """
        if not self._is_embedded:
            await self._reach()
            return
        self._dir.mkdir(parents=True, exist_ok=True)
        if await self._adopt():
            return
        try:
            await self._launch()
        except BackendError:
            # An earlier gateway may have started one just before it was killed.
            if not await self._adopt():
                raise

    async def watch(self) -> None:
        """Restarts it when it dies, and logs what that loses. Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._is_stopped or self._running is None or self._running.process.is_alive:
                continue
            log.error(
                "The backend died (pid %d). Objects in S3 are kept; queues and their messages, topics, subscriptions,"
                " roles, repositories, logs and metrics since its last clean shutdown are lost",
                self._running.pid,
            )
            await self._running.process.wait()  # until its last thread has ended, it keeps its lock
            try:
                await self._launch()
            except BackendError:
                log.exception("The backend does not start again; next attempt in %g s", _RETRY_S)
                await asyncio.sleep(_RETRY_S)

    async def stop(self) -> None:
        """Clean shutdown, so that it saves its state. Also of one that an earlier gateway left and nobody adopted."""
        self._is_stopped = True
        if self._is_embedded:
            self._running = self._running or read_running(self._dir)
            await self._end()
            (self._dir / RUNNING_FILE).unlink(missing_ok=True)
        self.close()

    def client(self, service: str) -> Any:
        """A boto3 client to it: cached, for use in threads. Takes nothing from the user's AWS settings."""
        with _making:
            key = (service, self.url)
            if key not in self._clients:
                self._clients[key] = _session().create_client(
                    service,
                    region_name=self._settings.region,
                    endpoint_url=self.url,
                    # LocalStack and MiniStack read the account from a key of twelve digits.
                    aws_access_key_id=self._settings.account,
                    aws_secret_access_key="none",
                    config=botocore.config.Config(**_CLIENT_CONFIG),
                )
            return self._clients[key]

    def close(self) -> None:
        """The clients' connections, when the gateway alone ends. The emulator stays."""
        with _making:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    @property
    def _identity(self) -> dict[str, str]:
        """What it must have been started with to be adopted."""
        settings = self._settings
        return {
            "data_dir": str(self._dir.resolve()),
            "host": settings.host,
            "port": str(settings.port),
            "region": settings.region,
            "account": settings.account,
        }

    async def _reach(self) -> None:
        try:
            async with _http(_ANSWER_S) as http, http.get(self.url):
                log.info("backend at %s", self.url)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BackendError(f"no answer from the backend at {self.url}: {error}") from error

    async def _adopt(self) -> bool:
        """One that runs but isn't as wanted is ended."""
        self._running = read_running(self._dir)
        if self._running is None or not self._running.process.is_alive:
            return False
        if not await self._answers(self._running, _ANSWER_S):
            await self._end()
            return False
        log.info("backend adopted: pid %d at %s", self._running.pid, self.url)
        return True

    async def _answers(self, running: Running, within_s: float) -> bool:
        """As the process that we think it is, started with the settings that we have."""
        url = f"http://127.0.0.1:{running.port}{IDENTITY_PATH}"
        try:
            async with _http(within_s) as http, http.get(url) as answer:
                identity = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return bool(identity == self._identity | {"pid": running.pid})

    async def _launch(self) -> None:
        listener = _listen(self._running.port if self._running else 0)
        port: int = listener.getsockname()[1]
        with listener:
            process = Process.start(
                [
                    *(sys.executable, "-m", f"{__package__}.emulator", "--socket", str(listener.fileno())),
                    *("--data-dir", str(self._dir), "--identity", json.dumps(self._identity)),
                ],
                _child_environment(self._dir),
                self._dir / "log",
                self._dir,
                [listener.fileno()],
            )
        self._running = Running(pid=process.pid, identity=process.identity, port=port)
        # The socket listens already, so this waits for the answer, and fails at once if the process dies.
        if not await self._answers(self._running, _START_S):
            await self._end()
            raise BackendError(f"the backend did not start; see {self._dir / 'log'}")
        log.info("backend started: pid %d at %s", self._running.pid, self.url)

    async def _end(self) -> None:
        if self._running is None:
            return
        is_suspended = False
        with contextlib.suppress(psutil.Error):
            is_suspended = psutil.Process(self._running.pid).status() == psutil.STATUS_STOPPED
        grace_s = _STOP_SUSPENDED_S if is_suspended else _STOP_S
        if not await self._running.process.end(grace_s):
            log.error("The backend (pid %d) did not end in %g s: killed", self._running.pid, grace_s)


_CLIENT_CONFIG: dict[str, Any] = {  # a dict, for the types of botocore know less than it does
    "connect_timeout": 5,
    "read_timeout": 70,
    # Outlasts a restart of the embedded emulator.
    "retries": {"mode": "standard", "total_max_attempts": 6},
    "max_pool_connections": 64,
    "s3": {"addressing_style": "path", "us_east_1_regional_endpoint": "regional"},
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "disable_request_compression": True,
    "inject_host_prefix": False,
    "ignore_configured_endpoint_urls": True,
    "use_fips_endpoint": False,
    "use_dualstack_endpoint": False,
    "account_id_endpoint_mode": "disabled",
    "defaults_mode": "legacy",
    "proxies": {},
}


@functools.cache  # it keeps the services' models, which are slow to read
def _session() -> botocore.session.Session:
    """That reads no profile and none of the user's files. One thread at a time may make a client with it."""
    return botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )


def _http(within_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=within_s))


def _listen(port: int) -> socket.socket:
    """On loopback, on that port if it can be had, so that clients made before a restart go on."""
    with contextlib.suppress(OSError):
        return socket.create_server(("127.0.0.1", port), backlog=512)
    return socket.create_server(("127.0.0.1", 0), backlog=512)


def _child_environment(home: Path) -> dict[str, str]:
    """Nothing of the user's settings for AWS, LocalStack or MiniStack."""
    inherited = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
    return inherited | {
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
