"""The mix: clients that ask, break and abuse at once, pings all along, and an engine killed now and then."""

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
from .request import CANARY, Question, difference, of_bad_document, of_large_document, pool

CLIENTS = 6
EACH_KIND = 12
"""Right requests of each kind in a pool, asked again and again."""
POOL_LASTS = 250
"""Requests of a client; then it draws from the next pool. What was asked before is mostly told from the journal: with
one pool alone the engine has ever less to do."""
LASTING_SHARE = 0.1
"""Drawn from the first pool all along: nothing that is asked a thousand times may become slower."""
LARGE_SHARE = 0.02
"""Each costs a process of its own a second or two."""
PING_EVERY_S = 0.1
RECOVERY_BOUND_S = 60.0
FIRST_KILL_S = 40.0
KILL_EVERY_S = (215.0, 300.0)
"""Also within the crash budget of engines that have generated nothing."""
KILLS_END = 1 / 3
"""Of the time: the last engine lives long enough to tell whether it grows."""


class Traffic:
    """Owns the client threads, and knows what was answered before."""

    def __init__(self, server: Server, ledger: Ledger, *, seed: int, seconds: float, bound_s: float) -> None:
        self._server = server
        self._ledger = ledger
        self._seed = seed
        self._seconds = seconds
        self._bound_s = bound_s
        self._pools: dict[int, list[Question]] = {}
        large = random.Random(f"{seed} large")
        self._large = [of_large_document(large) for _ in range(EACH_KIND)]
        self._told: dict[Question, Any] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.kills: list[tuple[float, float]] = []
        """From the engine's death until the next one served, on the monotonic clock."""
        self.ping_s: list[float] = []
        works = [*(partial(self._ask_on, client) for client in range(CLIENTS)), self._ping_on, self._kill_on]
        self._threads = [threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in works]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Nothing new; what is under way has its bound."""
        self._over.set()
        deadline = time.monotonic() + 2 * self._bound_s + RECOVERY_BOUND_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self._ledger.find("client", "a client did not come to its end")

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self._ledger.find("client", f"the soak's own thread ended with {type(error).__name__}: {error}")

    # Clients

    def _ask_on(self, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=self._bound_s)
        number = 0
        while not self._over.is_set():
            number += 1
            self._ask_one(connection, f"{self._seed}/{client}/{number}", self._pool(number // POOL_LASTS))
        connection.close()

    def _pool(self, number: int) -> list[Question]:
        with self._lock:
            if number not in self._pools:
                self._pools[number] = pool(f"{self._seed} pool {number}", EACH_KIND)
            return self._pools[number]

    def _ask_one(self, connection: http.client.HTTPConnection, name: str, questions: list[Question]) -> None:
        draw = random.Random(name)
        right = draw.choice(self._pool(0) if draw.random() < LASTING_SHARE else questions)
        chance = draw.random()
        if chance < LARGE_SHARE:
            right = draw.choice(self._large)
        if chance < 0.55:
            self._time(right.kind, name, lambda: self._judge(right, _post(connection, right)))
        elif chance < 0.8:
            bad = of_bad_document(draw)
            self._time(bad.kind, name, lambda: self._judge_bad(_post(connection, bad)))
        else:
            self._attack(right, draw, name)

    def _attack(self, right: Question, draw: random.Random, name: str) -> None:
        kind = draw.choice(list(ATTACKS))
        target = Target(port=self._server.port, question=right, bound_s=self._bound_s)

        def attack() -> str:
            answer = ATTACKS[kind](target, draw)
            return "done" if answer is None else self._judge(right, answer)

        self._time(kind, name, attack)

    def _time(self, kind: str, name: str, work: Callable[[], str]) -> None:
        """Count what the work says it came to; whatever it raises is a finding."""
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

    def _judge(self, question: Question, answer: Answer) -> str:
        status, body = answer
        if status != 200:
            raise Unexpected(f"a right request was answered {status} {_code(body)}")
        told = question.told(body)
        with self._lock:
            before = self._told.setdefault(question, told)
        if told != before:
            raise Unexpected(f"another answer than before{difference(before, told)}")
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

    def _ping_on(self) -> None:
        while not self._over.wait(PING_EVERY_S):
            since = time.monotonic()
            status, said = self._server.ping()
            self.ping_s.append(time.monotonic() - since)
            if status != 200:
                self._ledger.find("ping", f"answered {status} {said.get('status')}: {said.get('reason')}")

    def _kill_on(self) -> None:
        draw = random.Random(f"{self._seed} kills")
        started = time.monotonic()
        next_s = min(FIRST_KILL_S, self._seconds / 4)
        while not self._over.wait(max(0.0, started + next_s - time.monotonic())):
            if next_s > self._seconds * KILLS_END:
                return
            self._kill()
            next_s += draw.uniform(*KILL_EVERY_S)

    def _kill(self) -> None:
        self.kills.append((time.monotonic(), float("inf")))
        dead = self._server.kill_engine()
        deadline = time.monotonic() + RECOVERY_BOUND_S
        while time.monotonic() < deadline:
            engine = self._server.engine
            if engine is not None and engine.pid != dead and self._server.ping()[1].get("status") == "ready":
                self.kills[-1] = (self.kills[-1][0], time.monotonic())
                return
            time.sleep(0.1)
        self._ledger.find("kill", f"no new engine after {RECOVERY_BOUND_S:.0f} s")


def _post(connection: http.client.HTTPConnection, question: Question) -> Answer:
    try:
        connection.request("POST", question.path, question.body, question.headers)
        response = connection.getresponse()
        return response.status, response.read()
    except BaseException:
        connection.close()  # what is left of it is of no use to the next request
        raise


def _code(body: bytes) -> str | None:
    """The error's code, where the body is an error as documented."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]) if error.keys() == {"message", "type", "param", "code"} else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
