"""The AWS behind the gateway, with S3, SNS, SQS, STS, IAM, ECR, Logs and CloudWatch: an embedded emulator or a URL.

The embedded emulator (MiniStack) is a process in a session of its own, with its data under `data_dir`/backend. It
outlives the gateway and is adopted by the next one, with all that it holds. `stop` ends it cleanly: then all is there
after the next start, but for multipart uploads that were not completed.

If it is killed (kill -9, no memory left) and started again:

* S3 keeps buckets and objects, with metadata and tags, and never shows half an object; what is set for a bucket
  (versioning, policy, CORS, notifications, ...) is as at the last clean stop, and multipart uploads are gone.
* Queues and their messages, topics, subscriptions, log groups and their lines, metrics, roles and repositories are as
  at the last clean stop: what came since is gone, and messages received and deleted since are in their queues again.
* A power cut can cost objects as well: nothing is forced to the disk.

It holds each object that is sent or received whole in memory. It would take an access key of twelve digits for the
account of that number: the gateway lets none through but the endpoint's own. When the gateway's port changes, queues
keep the URL that they were made with, and answer at either.
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
from typing import Any

import aiohttp
import botocore.config
import botocore.session
import psutil

from endpoint.backend.emulator import RUNNING_FILE, SERVICES, SETTINGS_PATH, Running, read_running
from endpoint.process import Process
from endpoint.settings import ROOT, Settings

_START_TIMEOUT_S = 60.0
_ANSWER_TIMEOUT_S = 5.0
_STOP_TIMEOUT_S = 30.0
_STOP_SUSPENDED_TIMEOUT_S = 5.0
_WATCH_INTERVAL_S = 0.25
_RETRY_INTERVAL_S = 5.0

logger = logging.getLogger(__name__)
_client_lock = threading.Lock()


class BackendError(Exception):
    """The backend doesn't start or doesn't answer."""


class Backend:
    """Owns the emulator's process and the file that records it."""

    services: frozenset[str] | None
    """Services it has, by the names that requests are signed for; None where only the backend can know."""

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
        """Process id of the emulator."""
        return self._running.pid if self._running else None

    async def start(self) -> None:
        """Adopt the emulator that runs in this data directory, else start one and wait until it answers.

        An emulator that was started with other settings (say, another port of the gateway) is restarted cleanly.
        Raises BackendError.
        """
        if not self._is_embedded:
            try:
                async with _http(_ANSWER_TIMEOUT_S) as http, http.get(self.url):
                    logger.info("backend at %s", self.url)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise BackendError(f"no answer from the backend at {self.url}: {error}") from error
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
        """Restart the emulator when it dies, and log what that loses, until cancelled."""
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            if self._is_stopped or self._running is None or self._running.process.is_alive:
                continue
            logger.error(
                "The backend died (pid %d). Objects in S3 are kept; queues and their messages, topics, subscriptions,"
                " roles, repositories, logs and metrics since its last clean shutdown are lost",
                self._running.pid,
            )
            await self._running.process.wait()  # until its last thread has ended, it keeps its lock
            try:
                await self._launch()
            except BackendError:
                logger.exception("The backend does not start again; next attempt in %g s", _RETRY_INTERVAL_S)
                await asyncio.sleep(_RETRY_INTERVAL_S)

    async def stop(self) -> None:
        """Shut the emulator down cleanly, so that it saves its state, even if this backend didn't start or adopt it."""
        self._is_stopped = True
        if self._is_embedded:
            self._running = self._running or read_running(self._dir)
            await self._end()
            (self._dir / RUNNING_FILE).unlink(missing_ok=True)
        self.close()

    def client(self, service: str) -> Any:
        """Return a cached boto3 client for use in threads. It takes nothing from the user's AWS settings."""
        with _client_lock:
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
        """Close the clients' connections; the emulator stays."""
        with _client_lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    @property
    def _emulator_settings(self) -> dict[str, str]:
        """Settings that an emulator must have been started with to be adopted."""
        settings = self._settings
        return {
            "data_dir": str(self._dir.resolve()),
            "host": settings.host,
            "port": str(settings.port),
            "region": settings.region,
            "account": settings.account,
        }

    async def _adopt(self) -> bool:
        """Adopt a running emulator with our settings, or end one with others. Returns whether one was adopted."""
        self._running = read_running(self._dir)
        if self._running is None or not self._running.process.is_alive:
            return False
        if not await self._answers(self._running, _ANSWER_TIMEOUT_S):
            await self._end()
            return False
        logger.info("backend adopted: pid %d at %s", self._running.pid, self.url)
        return True

    async def _answers(self, running: Running, timeout_s: float) -> bool:
        """Return whether it answers as the recorded process, started with the settings that we have."""
        url = f"http://127.0.0.1:{running.port}{SETTINGS_PATH}"
        try:
            async with _http(timeout_s) as http, http.get(url) as answer:
                settings = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return bool(settings == self._emulator_settings | {"pid": running.pid})

    async def _launch(self) -> None:
        environment = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
        environment |= {  # without the user's settings for AWS, LocalStack or MiniStack
            "HOME": str(self._dir),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        listener = _listen(self._running.port if self._running else 0)
        port: int = listener.getsockname()[1]
        with listener:
            process = Process.start(
                [
                    *(sys.executable, "-m", f"{__package__}.emulator", "--socket", str(listener.fileno())),
                    *("--data-dir", str(self._dir), "--settings", json.dumps(self._emulator_settings)),
                ],
                environment,
                self._dir / "log",
                self._dir,
                [listener.fileno()],
            )
        self._running = Running(pid=process.pid, identity=process.identity, port=port)
        # The socket listens already, so this waits for the answer, and fails at once if the process dies.
        if not await self._answers(self._running, _START_TIMEOUT_S):
            await self._end()
            raise BackendError(f"the backend did not start; see {self._dir / 'log'}")
        logger.info("backend started: pid %d at %s", self._running.pid, self.url)

    async def _end(self) -> None:
        if self._running is None:
            return
        is_suspended = False
        with contextlib.suppress(psutil.Error):
            is_suspended = psutil.Process(self._running.pid).status() == psutil.STATUS_STOPPED
        grace_s = _STOP_SUSPENDED_TIMEOUT_S if is_suspended else _STOP_TIMEOUT_S
        if not await self._running.process.end(grace_s):
            logger.error("The backend (pid %d) did not end in %g s: killed", self._running.pid, grace_s)


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
    """Return a session that reads neither profile nor user files. One thread at a time may make a client with it."""
    return botocore.session.Session(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )


def _http(timeout_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s))


def _listen(port: int) -> socket.socket:
    """Listen on loopback, on `port` if it is free, so that clients made before a restart go on."""
    with contextlib.suppress(OSError):
        return socket.create_server(("127.0.0.1", port), backlog=512)
    return socket.create_server(("127.0.0.1", 0), backlog=512)
