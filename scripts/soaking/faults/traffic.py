"""Jobs sent again, sent twice and abandoned at random, while engines are killed: each answer is right."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

from testing.server import Server, eventually

from .batch import Shape, Work, drawn
from .call import Call
from .errors import Wrong, expect
from .testbed import TOKENS, Run, engine_of

RUNS = 5
CLIENTS = 4
CALLS_EACH = 8
JOBS = 6
KILLS = 3
_SHAPE = Shape(items=16, typical=24, longest=200)


def play(run: Run) -> None:
    works = [drawn(f"{run.name} job {number}", _SHAPE) for number in range(JOBS)]
    for work in works:
        run.peace(work)
    clients = Clients(run, run.start(LONGHAUL_CHECKPOINT_INTERVAL_S=0.5), works)
    clients.run()
    run.facts |= dict(sorted(clients.outcomes.items()))
    if clients.wrong:
        raise Wrong("; ".join(sorted(set(clients.wrong))))
    clients.finish()


class Clients:
    """Owns the threads, the kills, and what came of each call."""

    def __init__(self, run: Run, server: Server, works: list[Work]) -> None:
        self._run = run
        self._server = server
        self._works = works
        self._lock = threading.Lock()
        self._check_lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        threads = [threading.Thread(target=self._ask_on, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        draw = random.Random(f"{self._run.name} kills")
        for _ in range(KILLS):
            due = self._server.metric(TOKENS) + draw.randrange(200, 1500)
            while self._server.metric(TOKENS) < due and any(thread.is_alive() for thread in threads):
                time.sleep(0.02)
            if any(thread.is_alive() for thread in threads):
                engine_of(self._server).kill()
                self._count("kills")
        for thread in threads:
            thread.join()

    def finish(self) -> None:
        """Each job's last answer; and when nobody asks any more, nothing runs."""
        for number, work in enumerate(self._works):
            self._run.check(work, Call(self._server.port, work, job=self._name(number)).answer())
        for metric in ("longhaul_sequences_running", "longhaul_sequences_waiting", "longhaul_requests_running"):
            eventually(lambda left=metric: not self._server.metric(left))  # type: ignore[misc]
        expect(self._server.ping()[0] == 200, "after it the server is not ready")
        expect(self.outcomes["kills"] > 0, "the clients were done before the first kill")

    def _ask_on(self, client: int) -> None:
        draw = random.Random(f"{self._run.name} client {client}")
        for _ in range(CALLS_EACH):
            try:
                self._ask(draw)
            except Exception as error:
                with self._lock:
                    self.wrong.append(str(error) or type(error).__name__)

    def _ask(self, draw: random.Random) -> None:
        number = draw.randrange(JOBS)
        name = self._name(number) if draw.random() < 0.8 else None
        kind = draw.choice(["answered", "sent twice", "abandoned"])
        calls = [Call(self._server.port, self._works[number], job=name) for _ in range(1 + (kind == "sent twice"))]
        if kind == "abandoned":
            time.sleep(draw.expovariate(2))
            kind = "answered" if calls[0].is_over else kind
            if kind == "abandoned":
                calls.pop().cut()
        self._count(kind)
        for call in calls:
            answer = call.answer()
            with self._check_lock:  # the answers in peace and the oracle are for one at a time
                self._run.check(self._works[number], answer)

    def _name(self, number: int) -> str:
        return f"{self._run.name}-{number}"

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1
