"""The engine is killed 1 to 5 times in the midst of a batch: a pause, and nothing is generated twice."""

from __future__ import annotations

import random
import time

from testing.server import Server, eventually

from .batch import Shape
from .call import Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run, engine_of

RUNS = 30
SMOLLM2_EVERY = 6
"""Five of thirty."""
_SHAPES = {"tiny": Shape(), "smollm2": Shape(typical=16, longest=64)}
_AT_ONCE = 0.2
"""The share of kills that come before the new engine has done anything. The server bears few in a row."""


def play(run: Run) -> None:
    model = "smollm2" if run.number % SMOLLM2_EVERY == 0 else "tiny"
    work = run.work(_SHAPES[model])
    peace = run.peace(work, model)
    server = run.start(model)
    call = Call(server.port, work)
    kills = kill(server, run.draw, peace.tokens, run.draw.randint(1, 5), call)
    run.check(work, call.answer(), model)
    eventually(lambda: not server.metric("longhaul_sequences_running"))
    twice = int(server.metric(TOKENS)) - peace.tokens
    run.facts |= {"model": model, "kills": len(kills), "tokens": peace.tokens, "twice": twice}
    run.facts["resubmitted"] = int(server.metric("longhaul_sequences_resubmitted_total"))
    expect(bool(kills), "the batch was over before the first kill")
    restarts = int(server.metric("longhaul_engine_restarts_total"))
    expect(restarts == len(kills), f"{restarts} restarts after {len(kills)} kills")
    most = STEPS_IN_FLIGHT * sum(kills)
    expect(twice <= most, f"{twice} tokens were generated twice, and {most} can have been in flight")
    expect(server.ping()[0] == 200, "after it the server is not ready")


def kill(server: Server, draw: random.Random, tokens: int, count: int, call: Call) -> list[int]:
    """The sequences that ran at each kill. Fewer kills where the batch is over too soon."""
    at = sorted(draw.randrange(1, max(2, int(0.9 * tokens))) for _ in range(count))
    killed: list[int] = []
    fruitless = 0
    for threshold in at:
        if fruitless < 2 and killed and draw.random() < _AT_ONCE:
            fruitless += 1
        elif not _reaches(server, threshold, call):
            break
        time.sleep(draw.uniform(0, 0.05))  # anywhere in a step
        engine = engine_of(server)
        running = int(server.metric("longhaul_sequences_running"))
        if call.is_over:
            break
        engine.kill()
        killed.append(running)
        eventually(lambda dead=engine.pid: (new := server.engine) is not None and new.pid != dead)  # type: ignore[misc]
    return killed


def _reaches(server: Server, tokens: float, call: Call) -> bool:
    """False where the answer comes first."""
    while server.metric(TOKENS) < tokens:
        if call.is_over:
            return False
        time.sleep(0.005)
    return True
