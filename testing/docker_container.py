"""A container run as SageMaker runs it: `docker run IMAGE serve`, no network, 64 MB of /dev/shm, no capabilities."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

DOCKER = os.environ.get("DOCKER", "docker")
TIMEOUT_S = 120.0
PYTHON = "/opt/longhaul/.venv/bin/python"

# Runs in the container: its network namespace can't be reached from here by every user who may run Docker.
_ASK = """
import http.client, json, sys
method, path, headers, body, timeout = json.load(sys.stdin)
connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=timeout)
try:
    connection.request(method, path, None if body is None else body.encode(), headers)
    answer = connection.getresponse()
    print(json.dumps([answer.status, dict(answer.getheaders()), answer.read().decode()]))
except OSError as error:
    print(json.dumps([0, {}, str(error)]))
"""


def docker(*arguments: str, check: bool = True, timeout: float = TIMEOUT_S, **options: Any) -> str:
    """Run the Docker client and return its stdout. Fail with its stderr."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [DOCKER, *arguments], capture_output=True, text=True, timeout=timeout, **options
    )
    assert not check or done.returncode == 0, f"docker {arguments[0]}: {done.stderr.strip()}"
    return done.stdout


@dataclass(frozen=True)
class Answer:
    status: int
    """HTTP status; 0 if nothing answered."""
    headers: dict[str, str]
    text: str

    @cached_property
    def json(self) -> Any:
        return json.loads(self.text)


class Container:
    def __init__(self, image: str, *options: str, command: tuple[str, ...] = ("serve",)) -> None:
        self.started = time.monotonic()
        self.id = docker("run", "--detach", *options, image, *command).strip()

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> Answer:
        if body is not None and not isinstance(body, str):
            body, headers = json.dumps(body), {"Content-Type": "application/json"} | (headers or {})
        question = json.dumps([method, path, headers or {}, body, timeout])
        status, got, text = json.loads(self.run(PYTHON, "-c", _ASK, input=question))
        return Answer(status, got, text)

    def run(self, *command: str, input: str = "") -> str:
        return docker("exec", "-i", self.id, *command, input=input)

    def wait_until_ready(self) -> float:
        """Wait until /ping answers 200. Returns the seconds since `docker run`."""
        while (answer := self.ask("GET", "/ping", timeout=2)).status != 200:
            assert self.is_running, f"ended with status {self.exit_code}:\n{self.log()}"
            assert time.monotonic() - self.started < TIMEOUT_S, f"{answer}\n{self.log()}"
            time.sleep(0.1)
        return time.monotonic() - self.started

    def wait_for_log(self, action: str) -> None:
        """Wait until a line of the log has this action."""
        with self._follow() as lines:
            for line in lines:
                if line.get("action") == action:
                    return
        raise AssertionError(f"the container ended without logging {action}:\n{self.log()}")

    @contextlib.contextmanager
    def _follow(self) -> Iterator[Iterator[dict[str, Any]]]:
        command = [DOCKER, "logs", "--follow", self.id]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as reader:
            assert reader.stdout is not None
            try:
                yield (json.loads(line) for line in reader.stdout)
            finally:
                reader.kill()

    def log(self) -> str:
        return subprocess.run(
            [DOCKER, "logs", self.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S
        ).stdout

    @property
    def is_running(self) -> bool:
        return bool(self.state["Running"])

    @property
    def exit_code(self) -> int:
        return int(self.state["ExitCode"])

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return state

    def stop(self) -> float:
        """Send SIGTERM and, after SageMaker's 30 s, SIGKILL. Returns the seconds until the container ended."""
        started = time.monotonic()
        docker("stop", "--time", "30", self.id)
        return time.monotonic() - started

    def wait(self) -> int:
        return int(docker("wait", self.id))

    def remove(self) -> None:
        docker("rm", "--force", "--volumes", self.id, check=False)


def as_sagemaker(model: Path) -> tuple[str, ...]:
    return (
        "--volume",
        f"{model}:/opt/ml/model:ro",
        "--network=none",
        "--shm-size=64m",
        "--memory=3g",
        "--pids-limit=512",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    )


READ_ONLY = ("--read-only", "--tmpfs=/tmp:rw,mode=1777")
