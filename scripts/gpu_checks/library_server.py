"""`transformers serve --continuous-batching` as a process to measure."""

from __future__ import annotations

import http.client
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

from testing.server import free_port

from .random_model import text_of
from .requirements import WANTED
from .settings import NotHere


class LibraryServer:
    """The server, started when it is made and ended by `close`. Raises NotHere where it lacks a module."""

    def __init__(self, model_dir: Path, device: str, dtype: str) -> None:
        if absent := [name for name in WANTED if importlib.util.find_spec(name) is None]:
            raise NotHere(f"no module {', '.join(absent)}")
        self._model, self._port = str(model_dir), free_port()
        program = "from transformers.cli.transformers import main; main()"
        options = ["--continuous-batching", "--attn-implementation", "sdpa", "--device", device, "--dtype", dtype]
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", self._model, *options, "--port", str(self._port)]
        )
        while not self._is_up():
            assert self._process.poll() is None, "transformers serve ended before it was ready"
            time.sleep(0.2)

    def _is_up(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def complete(self, prompt: list[int], new_tokens: int) -> int:
        """Have one prompt completed greedily. Returns the number of new tokens."""
        document = {
            "model": self._model,
            "prompt": text_of(prompt),
            "max_tokens": new_tokens,
            "temperature": 0,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(document), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200, body
        return int(json.loads(body)["usage"]["completion_tokens"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
