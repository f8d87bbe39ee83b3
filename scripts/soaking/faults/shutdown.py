"""SIGTERM in the midst of a batch that can't be finished, whatever its engine does: 503 that names the job, exit 0.

The next server finishes the job.
"""

from __future__ import annotations

import signal
import subprocess
import time

from testing.server import Server, eventually

from .batch import Shape, drawn
from .call import Answer, Call
from .container import PACE_S, check_continued
from .errors import Wrong, expect
from .testbed import Run, engine_of
from .throttle import Pace

RUNS = 6
WITHIN_S = 25.0
EXIT_S = 30.0
"""When SageMaker kills."""
INTERVAL_S = 60.0
"""So long that only the shutdown can have journalled what the next server knows."""


def play(run: Run) -> None:
    engine = ("slow", "stopped", "killed")[run.number % 3]
    run.facts["engine"] = engine
    work = run.work(Shape())
    peace = run.peace(work)
    server = run.start(LONGHAUL_CHECKPOINT_INTERVAL_S=INTERVAL_S)
    call = Call(server.port, work, job=run.name)
    # Paced, it would take four times as long as there is.
    with Pace(server, per_s=peace.tokens / PACE_S) as pace:
        pace.wait_for(peace.tokens * run.draw.uniform(0.2, 0.5))
        pace.per_s = peace.tokens / (8 * WITHIN_S)
        if engine == "stopped":
            pace.most = 0
        if engine == "killed":
            engine_of(server).kill()
        server.send(signal.SIGTERM)
        told = time.monotonic()
        _check_closed(server, run)
        answer = call.answer(within_s=WITHIN_S)
        seconds = time.monotonic() - told
        status = _exit_status(server, EXIT_S - seconds)
    run.facts |= {"answered after": f"{seconds:.1f} s", "exit after": f"{time.monotonic() - told:.1f} s"}
    _check_answer(run, answer, seconds)
    expect(status == 0, f"exit status {status}")
    check_continued(run, work, run.start(), before=pace.tokens, may_be_lost=pace.in_flight)


def _check_answer(run: Run, answer: Answer, seconds: float) -> None:
    error = answer.error
    expect(answer.status == 503, f"answered {answer.status} {error.get('code')}")
    expect(error.get("code") == "shutting_down", f"the code is {error.get('code')}")
    expect(error.get("job") == run.name, "the answer does not name the job")
    expect(error.get("resumable") is True, "the answer does not say that the job is resumable")
    expect(seconds <= WITHIN_S, f"answered {seconds:.1f} s after SIGTERM")


def _check_closed(server: Server, run: Run) -> None:
    """/ping says so at once, and nothing new is taken."""
    eventually(lambda: server.ping()[0] != 200, within_s=1.0)
    try:
        answer = Call(server.port, drawn(f"{run.name} late", Shape(items=1))).answer(within_s=WITHIN_S)
    except Wrong:  # it listens no more
        return
    expect(answer.status == 503, f"a request after SIGTERM was answered {answer.status}")


def _exit_status(server: Server, within_s: float) -> int | None:
    try:
        return server.exit_status(within_s)
    except subprocess.TimeoutExpired:
        return None
