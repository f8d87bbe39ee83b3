"""One request on a connection and in a thread of its own, which can be cut."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from .answer_line import Told, told
from .batch import JSON_LINES, Work
from .errors import Wrong, expect

PATIENCE_S = 900.0
"""What no request takes unless it hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)
    seconds: float
    """From the first byte sent to the last received."""

    @property
    def lines(self) -> list[Told]:
        """Raises Wrong unless it is a whole batch's answer."""
        expect(self.status == 200, f"a batch was answered {self.status} {self.error.get('code')}")
        return [told(json.loads(line)) for line in self.body.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """Empty where the body is none."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return dict(json.loads(self.body)["error"])
        return {}

    @property
    def resumed_tokens(self) -> int:
        return int(self.headers.get("x-longhaul-resumed-tokens", "0"))

    @property
    def is_cut(self) -> bool:
        return self.headers.get("x-longhaul-finish-reason") == "deadline"


class Call:
    """Sent at once. Owns its connection."""

    def __init__(self, port: int, work: Work, *, job: str | None = None, timeout_s: float | None = None) -> None:
        attributes = {"job": job, "timeout": None if timeout_s is None else f"{timeout_s:g}"}
        ours = ";".join(f"{name}={value}" for name, value in attributes.items() if value is not None)
        self._headers = {"Content-Type": JSON_LINES}
        if ours:
            self._headers["X-Amzn-SageMaker-Custom-Attributes"] = ours
        self._work = work
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        self._answer: Answer | None = None
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._connection.request("POST", "/invocations", self._work.body, self._headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._error = type(error).__name__
            return
        finally:
            self._connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        self._answer = Answer(status=response.status, headers=headers, body=body, seconds=time.monotonic() - began)

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def cut(self) -> None:
        """Hang up without having been answered."""
        if (sock := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def answer(self, within_s: float = PATIENCE_S) -> Answer:
        """Raises Wrong if there is none, or the connection was cut."""
        self._thread.join(within_s)
        expect(self.is_over, f"no answer within {within_s:.0f} s")
        if self._answer is None:
            raise Wrong(f"the connection ended with {self._error}")
        return self._answer
