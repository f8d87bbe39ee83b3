"""The engine is killed 1 to 5 times in the middle of a batch: a pause, and no token is generated twice."""

from __future__ import annotations

import random
import time

from testing.server import Server, eventually

from .batch import Shape
from .call import Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run, wait_for_engine

RUNS = 30
SMOLLM2_EVERY = 6
"""Every so many runs use the real model: five of thirty."""
_SHAPES = {"tiny": Shape(), "smollm2": Shape(typical=16, longest=64)}
_IMMEDIATE_SHARE = 0.2
"""Share of kills that come before the new engine has done anything. The server bears only few in a row."""


def play(run: Run) -> None:
    model = "smollm2" if run.number % SMOLLM2_EVERY == 0 else "tiny"
    batch = run.batch(_SHAPES[model])
    reference = run.reference(batch, model)
    server = run.start(model)
    call = Call(server.port, batch)
    kills = kill_engines(server, run.draw, reference.tokens, run.draw.randint(1, 5), call)
    run.check(batch, call.answer(), model)
    eventually(lambda: not server.metric("longhaul_sequences_running"))
    repeated = int(server.metric(TOKENS)) - reference.tokens
    run.facts |= {"model": model, "kills": len(kills), "tokens": reference.tokens, "twice": repeated}
    run.facts["resubmitted"] = int(server.metric("longhaul_sequences_resubmitted_total"))
    expect(bool(kills), "the batch was over before the first kill")
    restarts = int(server.metric("longhaul_engine_restarts_total"))
    expect(restarts == len(kills), f"{restarts} restarts after {len(kills)} kills")
    in_flight = STEPS_IN_FLIGHT * sum(kills)
    expect(repeated <= in_flight, f"{repeated} tokens were generated twice, and {in_flight} can have been in flight")
    expect(server.ping()[0] == 200, "after it the server is not ready")


def kill_engines(server: Server, draw: random.Random, tokens: int, count: int, call: Call) -> list[int]:
    """Kill the engine up to `count` times, fewer if the batch ends before.

    Returns the number of running sequences at each kill.
    """
    at = sorted(draw.randrange(1, max(2, int(0.9 * tokens))) for _ in range(count))
    killed: list[int] = []
    fruitless = 0
    for threshold in at:
        if fruitless < 2 and killed and draw.random() < _IMMEDIATE_SHARE:
            fruitless += 1
        elif not _wait_for_tokens(server, threshold, call):
            break
        time.sleep(draw.uniform(0, 0.05))  # the kill may come anywhere in a step
        engine = wait_for_engine(server)
        running = int(server.metric("longhaul_sequences_running"))
        if call.is_over:
            break
        engine.kill()
        killed.append(running)
        eventually(lambda dead=engine.pid: (new := server.engine) is not None and new.pid != dead)  # type: ignore[misc]
    return killed


def _wait_for_tokens(server: Server, tokens: float, call: Call) -> bool:
    """Wait for so many tokens. Returns False if the answer comes first."""
    while server.metric(TOKENS) < tokens:
        if call.is_over:
            return False
        time.sleep(0.005)
    return True
