"""A real `./serve` process with a real socket and a log file, for tests to use and to abuse."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from testing import ROOT

TIMEOUT_S = 180.0
"""Seconds after which something counts as hanging."""

T = TypeVar("T")


def eventually(question: Callable[[], T], within_s: float = TIMEOUT_S) -> T:
    """Ask until the answer is true, and return it. Fail if there is none in time.

    What has taken longer is asked for more rarely, every 0.1 s in the end: to answer costs a server CPU time, too.
    """
    started = time.monotonic()
    while not (answer := question()):
        passed_s = time.monotonic() - started
        assert passed_s < within_s, f"not within {within_s:g} s"
        time.sleep(min(max(0.01, passed_s / 20), 0.1))
    return answer


def free_port() -> int:
    """Choose a free port at random, below those that the system gives to clients."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port


def _is_engine(command: list[str]) -> bool:
    """Return whether it is an engine's command, before or after the engine has renamed itself."""
    return "container.engine.worker.process" in command or command[:1] == ["longhaul-engine"]


class Server:
    """A server, started when it is made. `close` leaves no process behind, in whatever state it is."""

    def __init__(self, model_dir: str | Path, log: Path, *, command: tuple[str, ...] = (), **settings: object) -> None:
        """`settings`: environment variables. `command`: what goes in front of `./serve`."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LONGHAUL_", "HF_"))}
        environment |= {
            "HF_HUB_OFFLINE": "1",
            "LONGHAUL_MODEL": str(model_dir),
            "LONGHAUL_PORT": str(self.port),
            "LONGHAUL_THREADS": "1",
            "LONGHAUL_KV_CACHE_TOKENS": "32768",
            "LONGHAUL_MAX_BATCH_TOKENS": "128",
            # A journal of its own: in a shared one, the same request of another test would continue what this one left.
            "LONGHAUL_CHECKPOINT_URI": f"{log.absolute()}.checkpoints",
        }
        environment |= {name: str(value) for name, value in settings.items()}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, str(ROOT / "serve")], env=environment, stdout=output, stderr=output
            )
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)
        self._threads = ThreadPoolExecutor(64)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._threads.shutdown()
        self._client.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Its state

    def ping(self) -> tuple[int, dict[str, Any]]:
        """Return status and body; status 0 if nothing listens."""
        try:
            answer = self._client.get("/ping")
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    def wait_until_ready(self) -> Server:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.log()
            return self.ping()[0] == 200

        eventually(is_ready)
        return self

    def metric(self, name: str) -> float:
        """Return a metric's sum over all labels."""
        lines = self._client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def metrics(self) -> str:
        return self._client.get("/metrics").text

    def log(self) -> str:
        return self._log.read_text()

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines()]

    @property
    def engine(self) -> psutil.Process | None:
        """The engine's process if one is alive. The server has other children: readers of large documents."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.status() != psutil.STATUS_ZOMBIE and _is_engine(child.cmdline()):
                        return child
        return None

    # Requests and signals

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def post(self, path: str = "/invocations", **request: Any) -> httpx.Response:
        return self._client.post(path, **request)

    def ask(self, document: object, path: str = "/invocations") -> Any:
        """Send a document and return the answer's JSON. Fail unless the status is 200."""
        response = self.post(path, json=document)
        assert response.status_code == 200, response.text
        return response.json()

    def ask_lines(self, lines: list[object]) -> list[Any]:
        body = "".join(json.dumps(line) + "\n" for line in lines)
        response = self.post(content=body, headers={"content-type": "application/jsonlines"})
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def post_soon(self, path: str = "/invocations", **request: Any) -> Future[httpx.Response]:
        return self._threads.submit(self.post, path, **request)

    def start_endless(self, requests: int = 1) -> list[Future[httpx.Response]]:
        """Start requests that generate longer than any test lasts, and wait until all of them run."""
        before = self.metric("longhaul_sequences_running")
        started = [self.post_soon(json=endless(f"{number} is")) for number in range(requests)]
        eventually(lambda: self.metric("longhaul_sequences_running") >= before + requests)
        return started

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill_engine(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send the engine a signal, SIGKILL by default. Returns its pid."""
        engine = self.engine
        assert engine is not None, "the engine is not there"
        engine.send_signal(number)
        return engine.pid

    def exit_status(self, within_s: float = 90.0) -> int:
        return self.process.wait(within_s)


def lasting(prompt: str, tokens: int) -> dict[str, object]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": tokens, "ignore_eos": True}}


def endless(prompt: str) -> dict[str, object]:
    return lasting(prompt, 8000)
