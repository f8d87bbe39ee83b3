"""A tree's real server process, started under the recorder, and small chats sent to it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .recorder import Event

_RECORDER = Path(__file__).with_name("recorder.py")
_START_S = 300.0
_QUIET_S = 1.5
"""Time before and after a request: what earlier requests left to do is done by then."""
_CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


class RecordedServer:
    """Owns the process, its journal and the recorder's link. It is ready once it is entered."""

    def __init__(self, root: Path, model_dir: Path) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="longhaul-trace-")
        self._log = Path(self._directory.name) / "log"
        self._port = _free_port()
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [_python(root), "-P", str(_RECORDER), str(theirs.fileno()), str(root)],
                cwd=root,
                env=self._environment(root, model_dir),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._link = ours
        self._lines = ours.makefile("rw")

    def _environment(self, root: Path, model_dir: Path) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LONGHAUL_", "HF_"))}
        return kept | {
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(root),
            "PYTHONDONTWRITEBYTECODE": "1",  # the tree may belong to another user
            "LONGHAUL_MODEL": str(model_dir),
            "LONGHAUL_PORT": str(self._port),
            "LONGHAUL_THREADS": "1",
            "LONGHAUL_KV_CACHE_TOKENS": "32768",
            "LONGHAUL_MAX_BATCH_TOKENS": "128",
            "LONGHAUL_CHECKPOINT_URI": f"{self._directory.name}/journal",
        }

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self._log.read_text()[-4000:]
                self.close()
                sys.exit(f"the server did not become ready; its log ends with:\n{log}")
            time.sleep(0.2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and removes its journal and log. The engine ends with its server."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lines.close()
        self._link.close()
        self._directory.cleanup()

    def chat(self) -> None:
        """Sends one small chat on a connection of its own and waits for its answer."""
        body, headers = json.dumps(_CHAT), {"content-type": "application/json"}
        status, answer = self._request("POST", "/invocations", body, headers)
        if status != 200:
            sys.exit(f"the chat was answered with {status}: {answer!r}")

    def record_chat(self) -> list[Event]:
        """Sends a chat while nothing else happens. Returns what the server did meanwhile and shortly after."""
        time.sleep(_QUIET_S)
        self._command("start")
        self.chat()
        time.sleep(_QUIET_S)
        return [Event(*event) for event in json.loads(self._command("stop"))]

    def _command(self, command: str) -> str:
        self._lines.write(f"{command}\n")
        self._lines.flush()
        return self._lines.readline()

    def _is_ready(self) -> bool:
        try:
            return self._request("GET", "/ping")[0] == 200
        except OSError:
            return False

    def _request(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _python(root: Path) -> str:
    own = root / ".venv/bin/python"
    return str(own) if own.exists() else sys.executable


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
