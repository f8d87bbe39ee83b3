"""A soak: one unseeded request is sent again and again; each whole answer is another text, whatever befalls the server.

The request is short (answered before the journal is written) or long, a document or JSON lines. Between and in answers
the server is stopped and killed, also right behind an answer's last byte; clients hang up there, or leave halfway. Only
a request that comes after one that was cut may continue it, and no whole answer is told as abandoned.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testing import ROOT
from testing.server import TIMEOUT_S, Server, eventually
from testing.tiny_models import save_tiny_model

INTERVAL_S = 0.1
SHORT_TOKENS, LONG_TOKENS = 16, 150
WAYS = {
    "answered": 30,
    "hung up behind the last byte": 40,
    "two at once": 10,
    "cut in the middle": 8,
    "stopped between": 3,
    "stopped in the middle": 3,
    "killed behind the last byte": 4,
    "killed in the middle": 3,
}
"""Fates of a request, with the weights with which they are drawn."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--answers", type=int, default=200, help="whole answers to each form of the request")


def run(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="longhaul-distinct-") as name:
        directory = Path(name)
        save_tiny_model(directory / "model", ROOT / ".models/SmolLM2-135M-Instruct")
        for length, tokens in (("short", SHORT_TOKENS), ("long", LONG_TOKENS)):
            for form in ("document", "lines"):
                title = f"{length} {form}"
                body = {"prompt": f"A {title} is", "max_tokens": tokens, "temperature": 1.0, "ignore_eos": True}
                draw = random.Random(f"{options.seed} {title}")
                trial = Trial(directory / title.replace(" ", "-"), directory / "model", form, body, draw)
                results[title] = trial.play(options.answers)
                faults += [f"{title}: {fault}" for fault in trial.faults]
                print(f"{title}: {json.dumps(results[title])}", flush=True)
    return results


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that came to its last byte."""

    id: str
    texts: tuple[str, ...]
    resumed_tokens: int


@dataclass(slots=True)
class Trial:
    """One form of the request, with a journal of its own and the servers that come and go."""

    directory: Path
    model: Path
    form: str
    body: dict[str, Any]
    draw: random.Random
    faults: list[str] = field(default_factory=list)
    answers: list[Whole] = field(default_factory=list)
    cuts: int = 0
    """Requests that were cut, and that no answer has continued yet."""
    servers: list[Server] = field(default_factory=list)

    def play(self, answers: int) -> dict[str, Any]:
        self.directory.mkdir()
        befallen: Counter[str] = Counter()
        try:
            self._start()
            while len(self.answers) < answers:
                (way,) = self.draw.choices(list(WAYS), list(WAYS.values()))
                befallen[way] += 1
                self._play(way)
            self._check_log()
        finally:
            for server in self.servers:
                server.close()
        texts = Counter(text for answer in self.answers for text in answer.texts)
        repeated = sum(count - 1 for count in texts.values())
        if repeated:
            self.faults.append(f"{repeated} texts came again")
        return {
            "answers": len(self.answers),
            "texts": len(texts),
            "resumed": sum(answer.resumed_tokens > 0 for answer in self.answers),
            "servers": len(self.servers),
        } | befallen

    @property
    def _server(self) -> Server:
        return self.servers[-1]

    def _start(self) -> None:
        settings: dict[str, Any] = {
            "LONGHAUL_CHECKPOINT_URI": self.directory / "journal",
            "LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S,
        }
        log = self.directory / f"log-{len(self.servers)}"
        self.servers.append(Server(self.model, log, **settings).wait_until_ready())

    def _play(self, way: str) -> None:
        server = self._server
        match way:
            case "two at once":
                threads = [threading.Thread(target=self._ask) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            case "cut in the middle":
                self._leave_halfway()
            case "stopped between":
                self._stop()
            case "stopped in the middle":
                asking = threading.Thread(target=self._ask)
                asking.start()
                self._wait_for_tokens()
                self._stop()
                asking.join()
            case "killed in the middle":
                self._leave_halfway(signal.SIGKILL)
                server.exit_status()
                self._start()
            case "killed behind the last byte":
                self._ask(then=lambda: server.send(signal.SIGKILL))
                server.exit_status()
                self._start()
            case _:
                self._ask(is_kept_open=way == "answered")

    def _stop(self) -> None:
        self._server.send(signal.SIGTERM)
        if (status := self._server.exit_status()) != 0:
            self.faults.append(f"after SIGTERM the server ended with status {status}")
        self._start()

    def _request(self) -> bytes:
        body = json.dumps(self.body)
        kind, body = ("json", body) if self.form == "document" else ("jsonlines", f"{body}\n{body}\n")
        head = f"Host: a\r\nContent-Type: application/{kind}\r\nContent-Length: {len(body)}"
        return f"POST /invocations HTTP/1.1\r\n{head}\r\n\r\n{body}".encode()

    def _ask(self, then: Any = None, *, is_kept_open: bool = False) -> None:
        """Send the request and note its answer. `then` is called behind the last byte, where else the client leaves."""
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=TIMEOUT_S) as connection:
            connection.sendall(self._request())
            received = b""
            while b"\r\n\r\n" not in received:
                received += _more(connection)
            head, _, body = received.partition(b"\r\n\r\n")
            status, *lines = head.decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            while len(body) < int(headers["content-length"]):
                body += _more(connection)
            if then is not None:
                then()
            elif is_kept_open:
                eventually(lambda: headers["x-longhaul-invocation-id"] in self._server.log())
        if " 503 " in status:
            self.cuts += 1
        elif " 200 " in status:
            self._note(headers, body)
        else:
            self.faults.append(f"an answer is {status}")

    def _note(self, headers: dict[str, str], body: bytes) -> None:
        texts = tuple(json.loads(line)["choices"][0]["text"] for line in body.splitlines())
        whole = Whole(headers["x-longhaul-invocation-id"], texts, int(headers.get("x-longhaul-resumed-tokens", "0")))
        self.answers.append(whole)
        if whole.resumed_tokens:
            self.cuts -= 1
            if self.cuts < 0:
                self.faults.append(f"answer {len(self.answers)} was resumed, and no request before it was cut")

    def _leave_halfway(self, number: signal.Signals | None = None) -> None:
        before, abandoned = self._server.metric("longhaul_generation_tokens_total"), self._abandoned()
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=TIMEOUT_S) as connection:
            connection.sendall(self._request())
            self._wait_for_tokens(before)
            if number is not None:
                self._server.send(number)
        if number is None:
            eventually(lambda: self._server.metric("longhaul_requests_running") == 0)
            self.cuts += self._abandoned() > abandoned
        else:
            self.cuts += 1

    def _abandoned(self) -> int:
        return sum(line.get("status") == 499 for line in self._server.log_lines())

    def _wait_for_tokens(self, before: float | None = None) -> None:
        server = self._server
        since = server.metric("longhaul_generation_tokens_total") if before is None else before
        some = self.body["max_tokens"] * self.draw.uniform(0, 0.8)
        eventually(
            lambda: (
                server.metric("longhaul_generation_tokens_total") > since + some
                or server.metric("longhaul_requests_running") == 0
            )
        )

    def _check_log(self) -> None:
        eventually(lambda: self._server.metric("longhaul_requests_running") == 0)
        whole = {answer.id for answer in self.answers}
        for server in self.servers:
            for line in server.log_lines():
                if line.get("action") == "invocation_end" and line["status"] == 499 and line["invocation_id"] in whole:
                    self.faults.append("a whole answer is told as abandoned")
                if line["level"] == "ERROR":
                    self.faults.append(f"the log has an error: {line['message']}")


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionError("the answer ends too early")
    return data
