"""One request in a thread and on a connection of its own, which can be cut."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from .answer_line import AnswerLine, parse_line
from .batch import JSON_LINES, Batch
from .errors import CheckFailed, expect

REQUEST_TIMEOUT_S = 900.0
"""Seconds after which a request counts as hanging."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)
    seconds: float
    """Seconds from the first byte sent to the last byte received."""

    @property
    def lines(self) -> list[AnswerLine]:
        """Parse the lines of a batch's answer. Raise CheckFailed unless its status is 200."""
        expect(self.status == 200, f"a batch was answered {self.status} {self.error.get('code')}")
        return [parse_line(json.loads(line)) for line in self.body.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """Return the error object, or an empty one if the body has none."""
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
    """A request that is sent when it is made. It owns its connection."""

    def __init__(self, port: int, batch: Batch, *, job: str | None = None, timeout_s: float | None = None) -> None:
        attributes = {"job": job, "timeout": None if timeout_s is None else f"{timeout_s:g}"}
        ours = ";".join(f"{name}={value}" for name, value in attributes.items() if value is not None)
        self._headers = {"Content-Type": JSON_LINES}
        if ours:
            self._headers["X-Amzn-SageMaker-Custom-Attributes"] = ours
        self._batch = batch
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
        self._answer: Answer | None = None
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._connection.request("POST", "/invocations", self._batch.body, self._headers)
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
        """Hang up before the answer has come."""
        if (sock := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def answer(self, within_s: float = REQUEST_TIMEOUT_S) -> Answer:
        """Wait for the answer. Raise CheckFailed if none comes in time or the connection was cut."""
        self._thread.join(within_s)
        expect(self.is_over, f"no answer within {within_s:.0f} s")
        if self._answer is None:
            raise CheckFailed(f"the connection ended with {self._error}")
        return self._answer
