"""SIGTERM in the middle of a batch that can't be finished: a 503 that names the job, and exit status 0.

The next server finishes the job.
"""

from __future__ import annotations

import signal
import subprocess
import time

from testing.server import Server, eventually

from .batch import Shape, draw_batch
from .call import Answer, Call
from .container import THROTTLED_S, check_continued
from .errors import CheckFailed, expect
from .testbed import Run, wait_for_engine
from .throttle import Throttle

RUNS = 6
WITHIN_S = 25.0
EXIT_S = 30.0
"""Seconds after SIGTERM at which SageMaker kills."""
INTERVAL_S = 60.0
"""Checkpoint interval: so long that only the shutdown can have journalled what the next server has."""


def play(run: Run) -> None:
    engine = ("slow", "stopped", "killed")[run.number % 3]
    run.facts["engine"] = engine
    batch = run.batch(Shape())
    reference = run.reference(batch)
    server = run.start(LONGHAUL_CHECKPOINT_INTERVAL_S=INTERVAL_S)
    call = Call(server.port, batch, job=run.name)
    # The rest would now take four times as long as the shutdown allows.
    with Throttle(server, per_s=reference.tokens / THROTTLED_S) as throttle:
        throttle.wait_for(reference.tokens * run.draw.uniform(0.2, 0.5))
        throttle.per_s = reference.tokens / (8 * WITHIN_S)
        if engine == "stopped":
            throttle.max_tokens = 0
        if engine == "killed":
            wait_for_engine(server).kill()
        server.send(signal.SIGTERM)
        signalled = time.monotonic()
        _check_closed(server, run)
        answer = call.answer(within_s=WITHIN_S)
        seconds = time.monotonic() - signalled
        status = _exit_status(server, EXIT_S - seconds)
    run.facts |= {"answered after": f"{seconds:.1f} s", "exit after": f"{time.monotonic() - signalled:.1f} s"}
    _check_answer(run, answer, seconds)
    expect(status == 0, f"exit status {status}")
    check_continued(run, batch, run.start(), before=throttle.tokens, may_be_lost=throttle.in_flight)


def _check_answer(run: Run, answer: Answer, seconds: float) -> None:
    error = answer.error
    expect(answer.status == 503, f"answered {answer.status} {error.get('code')}")
    expect(error.get("code") == "shutting_down", f"the code is {error.get('code')}")
    expect(error.get("job") == run.name, "the answer does not name the job")
    expect(error.get("resumable") is True, "the answer does not say that the job is resumable")
    expect(seconds <= WITHIN_S, f"answered {seconds:.1f} s after SIGTERM")


def _check_closed(server: Server, run: Run) -> None:
    """Check that /ping turns bad at once and no new request is accepted."""
    eventually(lambda: server.ping()[0] != 200, within_s=1.0)
    try:
        answer = Call(server.port, draw_batch(f"{run.name} late", Shape(items=1))).answer(within_s=WITHIN_S)
    except CheckFailed:  # the server has stopped listening
        return
    expect(answer.status == 503, f"a request after SIGTERM was answered {answer.status}")


def _exit_status(server: Server, within_s: float) -> int | None:
    try:
        return server.exit_status(within_s)
    except subprocess.TimeoutExpired:
        return None
