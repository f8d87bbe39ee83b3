"""The engine stands still (SIGSTOP): noticed, replaced, and nothing is lost."""

from __future__ import annotations

import time

from testing.server import eventually

from .batch import Shape
from .call import Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run, engine_of, logged

RUNS = 10
STALL_S = 3.0
NOTICED_S = STALL_S + 2.0
"""The watch's ticks are counted, not its seconds: a busy machine makes them long."""


def play(run: Run) -> None:
    work = run.work(Shape())
    peace = run.peace(work)
    server = run.start(LONGHAUL_STALL_TIMEOUT_S=STALL_S)
    call = Call(server.port, work)
    stops = run.draw.randint(1, 2)
    at = sorted(run.draw.randrange(1, int(0.8 * peace.tokens)) for _ in range(stops))
    running, slowest_s = 0, 0.0
    for tokens in at:
        eventually(lambda due=tokens: server.metric(TOKENS) >= due)  # type: ignore[misc]
        engine = engine_of(server)
        running += int(server.metric("longhaul_sequences_running"))
        expect(not call.is_over, "the batch was over before the engine was stopped")
        engine.suspend()
        stopped = time.monotonic()
        eventually(lambda dead=engine.pid: (new := server.engine) is None or new.pid != dead)  # type: ignore[misc]
        slowest_s = max(slowest_s, time.monotonic() - stopped)
    run.check(work, call.answer())
    twice = int(server.metric(TOKENS)) - peace.tokens
    run.facts |= {"stops": stops, "tokens": peace.tokens, "twice": twice, "noticed after": f"{slowest_s:.1f} s"}
    deaths = [line for line in logged(server, "engine_died") if "no step for" in line["message"]]
    expect(len(deaths) == stops, f"the log tells of {len(deaths)} stalls after {stops} stops")
    restarts = int(server.metric("longhaul_engine_restarts_total"))
    expect(restarts == stops, f"{restarts} restarts after {stops} stops")
    expect(slowest_s <= NOTICED_S, f"noticed after {slowest_s:.1f} s")
    expect(twice <= STEPS_IN_FLIGHT * running, f"{twice} tokens were generated twice")
