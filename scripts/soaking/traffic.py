"""The traffic: clients that ask, break and abuse at once, pings all along, and an engine killed now and then."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from testing.server import Server

from .hostile import ATTACKS, Answer, Target, Unexpected
from .ledger import Ledger
from .request import CANARY, Request, difference, draw_bad_document, draw_large_document, draw_pool

CLIENTS = 6
POOL_REQUESTS_PER_KIND = 12
"""Number of right requests of each kind in a pool, sent again and again."""
REQUESTS_PER_POOL = 250
"""Number of requests after which a client draws from the next pool. Repeated requests are mostly answered from the
journal: one pool alone would leave the engine less and less to do."""
LASTING_SHARE = 0.1
"""Share of requests drawn from the first pool all along: a request sent a thousand times may not become slower."""
LARGE_SHARE = 0.02
"""Share of large documents. Each takes a process of its own a second or two."""
PING_INTERVAL_S = 0.1
RECOVERY_TIMEOUT_S = 60.0
FIRST_KILL_S = 40.0
KILL_INTERVAL_S = (215.0, 300.0)
"""Seconds between kills, drawn between the two; within the crash budget of engines that have generated nothing."""
KILLS_SHARE = 1 / 3
"""Share of the time with kills: the last engine lives long enough to tell whether it grows."""


class Traffic:
    """The client threads, and the answers that were given before."""

    def __init__(self, server: Server, ledger: Ledger, *, seed: int, seconds: float, bound_s: float) -> None:
        self._server = server
        self._ledger = ledger
        self._seed = seed
        self._seconds = seconds
        self._bound_s = bound_s
        self._pools: dict[int, list[Request]] = {}
        large = random.Random(f"{seed} large")
        self._large = [draw_large_document(large) for _ in range(POOL_REQUESTS_PER_KIND)]
        self._answers: dict[Request, Any] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.kills: list[tuple[float, float]] = []
        """Monotonic times of each engine's death and of the next one's first answer."""
        self.ping_s: list[float] = []
        works = [*(partial(self._run_client, client) for client in range(CLIENTS)), self._run_pings, self._run_kills]
        self._threads = [threading.Thread(target=self._run_guarded, args=(work,), daemon=True) for work in works]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Start no new request, and wait for the open ones."""
        self._over.set()
        deadline = time.monotonic() + 2 * self._bound_s + RECOVERY_TIMEOUT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._ledger.find("client", "a client did not come to its end")

    def _run_guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._ledger.find("client", f"the soak's own thread ended with {type(error).__name__}: {error}")

    # Clients

    def _run_client(self, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=self._bound_s)
        number = 0
        while not self._over.is_set():
            number += 1
            self._send(connection, f"{self._seed}/{client}/{number}", self._pool(number // REQUESTS_PER_POOL))
        connection.close()

    def _pool(self, number: int) -> list[Request]:
        with self._lock:
            if number not in self._pools:
                self._pools[number] = draw_pool(f"{self._seed} pool {number}", POOL_REQUESTS_PER_KIND)
            return self._pools[number]

    def _send(self, connection: http.client.HTTPConnection, name: str, requests: list[Request]) -> None:
        draw = random.Random(name)
        right = draw.choice(self._pool(0) if draw.random() < LASTING_SHARE else requests)
        chance = draw.random()
        if chance < LARGE_SHARE:
            right = draw.choice(self._large)
        if chance < 0.55:
            self._time(right.kind, name, lambda: self._judge(right, _post(connection, right)))
        elif chance < 0.8:
            bad = draw_bad_document(draw)
            self._time(bad.kind, name, lambda: self._judge_bad(_post(connection, bad)))
        else:
            self._attack(right, draw, name)

    def _attack(self, right: Request, draw: random.Random, name: str) -> None:
        kind = draw.choice(list(ATTACKS))
        target = Target(port=self._server.port, request=right, bound_s=self._bound_s)

        def attack() -> str:
            answer = ATTACKS[kind](target, draw)
            return "done" if answer is None else self._judge(right, answer)

        self._time(kind, name, attack)

    def _time(self, kind: str, name: str, work: Callable[[], str]) -> None:
        """Count the outcome that `work` returns; what it raises becomes a finding."""
        since = time.monotonic()
        try:
            outcome = work()
        except Unexpected as wrong:
            outcome = "wrong"
            self._ledger.find(kind, str(wrong), name)
        except (OSError, http.client.HTTPException) as error:
            outcome = "wrong"
            self._ledger.find(kind, f"the connection ended with {type(error).__name__}", name)
        seconds = time.monotonic() - since
        self._ledger.count(kind, outcome, seconds)
        if seconds > self._bound_s:
            self._ledger.find(kind, f"took {seconds:.0f} s", name)

    def _judge(self, request: Request, answer: Answer) -> str:
        status, body = answer
        if status != 200:
            raise Unexpected(f"a right request was answered {status} {_code(body)}")
        stable = request.stable_answer(body)
        with self._lock:
            before = self._answers.setdefault(request, stable)
        if stable != before:
            raise Unexpected(f"another answer than before{difference(before, stable)}")
        return "right"

    def _judge_bad(self, answer: Answer) -> str:
        status, body = answer
        if status == 200:
            return "taken"
        if CANARY.encode() in body:
            raise Unexpected(f"the error {status} quotes its request")
        if 400 <= status < 500 and _code(body):
            return "refused"
        raise Unexpected(f"a bad request was answered {status} {_code(body)}")

    # Pings and kills

    def _run_pings(self) -> None:
        while not self._over.wait(PING_INTERVAL_S):
            since = time.monotonic()
            status, body = self._server.ping()
            self.ping_s.append(time.monotonic() - since)
            if status != 200:
                self._ledger.find("ping", f"answered {status} {body.get('status')}: {body.get('reason')}")

    def _run_kills(self) -> None:
        draw = random.Random(f"{self._seed} kills")
        started = time.monotonic()
        next_s = min(FIRST_KILL_S, self._seconds / 4)
        while not self._over.wait(max(0.0, started + next_s - time.monotonic())):
            if next_s > self._seconds * KILLS_SHARE:
                return
            self._kill()
            next_s += draw.uniform(*KILL_INTERVAL_S)

    def _kill(self) -> None:
        self.kills.append((time.monotonic(), float("inf")))
        dead = self._server.kill_engine()
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while time.monotonic() < deadline:
            engine = self._server.engine
            if engine is not None and engine.pid != dead and self._server.ping()[1].get("status") == "ready":
                self.kills[-1] = (self.kills[-1][0], time.monotonic())
                return
            time.sleep(0.1)
        self._ledger.find("kill", f"no new engine after {RECOVERY_TIMEOUT_S:.0f} s")


def _post(connection: http.client.HTTPConnection, request: Request) -> Answer:
    try:
        connection.request("POST", request.path, request.body, request.headers)
        response = connection.getresponse()
        return response.status, response.read()
    except BaseException:
        connection.close()  # the next request can't use what is left of it
        raise


def _code(body: bytes) -> str | None:
    """Return the error's code if the body is an error in the documented form."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]) if error.keys() == {"message", "type", "param", "code"} else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
