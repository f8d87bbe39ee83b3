"""Jobs sent again, sent twice and abandoned at random while engines are killed: each answer is right."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter

from testing.server import Server, eventually

from .batch import Batch, Shape, draw_batch
from .call import Call
from .errors import CheckFailed, expect
from .testbed import TOKENS, Run, wait_for_engine

RUNS = 5
CLIENTS = 4
CALLS_EACH = 8
JOBS = 6
KILLS = 3
_SHAPE = Shape(items=16, typical=24, longest=200)


def play(run: Run) -> None:
    batches = [draw_batch(f"{run.name} job {number}", _SHAPE) for number in range(JOBS)]
    for batch in batches:
        run.reference(batch)
    clients = Clients(run, run.start(LONGHAUL_CHECKPOINT_INTERVAL_S=0.5), batches)
    clients.run()
    run.facts |= dict(sorted(clients.outcomes.items()))
    if clients.failures:
        raise CheckFailed("; ".join(sorted(set(clients.failures))))
    clients.finish()


class Clients:
    """Threads that send requests, the kills, and a count of what came of each call."""

    def __init__(self, run: Run, server: Server, batches: list[Batch]) -> None:
        self._run = run
        self._server = server
        self._batches = batches
        self._lock = threading.Lock()
        self._check_lock = threading.Lock()
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []

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
                wait_for_engine(self._server).kill()
                self._count("kills")
        for thread in threads:
            thread.join()

    def finish(self) -> None:
        """Check each job's last answer, and that nothing runs once no request is open."""
        for number, batch in enumerate(self._batches):
            self._run.check(batch, Call(self._server.port, batch, job=self._name(number)).answer())
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
                    self.failures.append(str(error) or type(error).__name__)

    def _ask(self, draw: random.Random) -> None:
        number = draw.randrange(JOBS)
        name = self._name(number) if draw.random() < 0.8 else None
        kind = draw.choice(["answered", "sent twice", "abandoned"])
        calls = [Call(self._server.port, self._batches[number], job=name) for _ in range(1 + (kind == "sent twice"))]
        if kind == "abandoned":
            time.sleep(draw.expovariate(2))
            kind = "answered" if calls[0].is_over else kind
            if kind == "abandoned":
                calls.pop().cut()
        self._count(kind)
        for call in calls:
            answer = call.answer()
            with self._check_lock:  # the reference server and the oracle serve one thread at a time
                self._run.check(self._batches[number], answer)

    def _name(self, number: int) -> str:
        return f"{self._run.name}-{number}"

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1
