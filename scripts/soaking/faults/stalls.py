"""The engine stands still (SIGSTOP): it is noticed and replaced, and no token is lost."""

from __future__ import annotations

import time

from testing.server import eventually

from .batch import Shape
from .call import Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run, log_lines, wait_for_engine

RUNS = 10
STALL_S = 3.0
DETECTION_TIMEOUT_S = STALL_S + 2.0
"""Seconds within which a stall must be noticed. The server counts ticks, not seconds: a busy machine makes them long.
"""


def play(run: Run) -> None:
    batch = run.batch(Shape())
    reference = run.reference(batch)
    server = run.start(LONGHAUL_STALL_TIMEOUT_S=STALL_S)
    call = Call(server.port, batch)
    stops = run.draw.randint(1, 2)
    at = sorted(run.draw.randrange(1, int(0.8 * reference.tokens)) for _ in range(stops))
    running, slowest_s = 0, 0.0
    for tokens in at:
        eventually(lambda due=tokens: server.metric(TOKENS) >= due)  # type: ignore[misc]
        engine = wait_for_engine(server)
        running += int(server.metric("longhaul_sequences_running"))
        expect(not call.is_over, "the batch was over before the engine was stopped")
        engine.suspend()
        stopped = time.monotonic()
        eventually(lambda dead=engine.pid: (new := server.engine) is None or new.pid != dead)  # type: ignore[misc]
        slowest_s = max(slowest_s, time.monotonic() - stopped)
    run.check(batch, call.answer())
    repeated = int(server.metric(TOKENS)) - reference.tokens
    run.facts |= {"stops": stops, "tokens": reference.tokens, "twice": repeated, "noticed after": f"{slowest_s:.1f} s"}
    deaths = [line for line in log_lines(server, "engine_died") if "no step for" in line["message"]]
    expect(len(deaths) == stops, f"the log tells of {len(deaths)} stalls after {stops} stops")
    restarts = int(server.metric("longhaul_engine_restarts_total"))
    expect(restarts == stops, f"{restarts} restarts after {stops} stops")
    expect(slowest_s <= DETECTION_TIMEOUT_S, f"noticed after {slowest_s:.1f} s")
    expect(repeated <= STEPS_IN_FLIGHT * running, f"{repeated} tokens were generated twice")
