"""Two servers with one job and one journal: both answer correctly, one writes, and a third reads an unmixed journal."""

from __future__ import annotations

import signal
from typing import Any

from testing.server import Server, eventually

from .batch import Shape
from .call import Call
from .container import INTERVAL_S, THROTTLED_S, check_continued
from .errors import expect
from .testbed import TOKENS, Run, kill_container, log_lines
from .throttle import Throttle

RUNS = 9


def play(run: Run) -> None:
    way = ("takeover", "race", "takeover, killed")[run.number % 3]
    is_s3 = run.draw.random() < 0.5
    run.facts |= {"way": way, "journal": "S3" if is_s3 else "directory"}
    settings: dict[str, Any] = {"LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
    settings |= run.s3_settings() if is_s3 else {}
    batch = run.batch(Shape())
    reference = run.reference(batch)
    first, second = run.start(**settings), run.start(**settings)
    before = may_be_lost = 0
    per_s = reference.tokens / THROTTLED_S
    with Throttle(first, per_s=per_s) as one, Throttle(second, per_s=per_s) as other:
        call = Call(first.port, batch, job=run.name)
        if way != "race":
            one.wait_for(reference.tokens * run.draw.uniform(0.2, 0.6))
        again = Call(second.port, batch, job=run.name)
        if way == "takeover, killed":
            # The second has what the first had journalled; most of the rest it has generated itself.
            eventually(lambda: other.tokens > 0)
            eventually(lambda: log_lines(first, "job_lost"))
            resumed = sum(line["tokens"] for line in log_lines(second, "job_resumed"))
            other.wait_for(other.tokens + run.draw.uniform(0.1, 0.8) * (reference.tokens - resumed - other.tokens))
            before, may_be_lost = resumed + other.tokens, other.tokens_at_risk(INTERVAL_S) + other.in_flight
            kill_container(second)
        else:
            run.check(batch, again.answer())
            before = reference.tokens
        run.check(batch, call.answer())
    _check_loser(run, way, first, second)
    for server in (first, second):
        # Everything of a job is journalled at SIGTERM at the latest.
        server.send(signal.SIGTERM)
        if way != "takeover, killed" or server is first:
            expect(server.exit_status() == 0, f"exit status {server.process.returncode} after SIGTERM")
    third = run.start(**settings)
    if way == "takeover, killed":
        check_continued(run, batch, third, before=before, may_be_lost=may_be_lost)
    else:
        run.check(batch, Call(third.port, batch, job=run.name).answer())
        generated = int(third.metric(TOKENS))
        expect(not generated, f"the job was whole, and the third server generated {generated} tokens")


def _check_loser(run: Run, way: str, first: Server, second: Server) -> None:
    lost = [len(log_lines(server, "job_lost")) for server in (first, second)]
    run.facts["lost"] = f"{lost[0]} and {lost[1]}"
    expect(sum(lost) == 1, f"the job was lost by {lost[0]} and {lost[1]} of the two writers")
    expect(way == "race" or lost[0] == 1, "the newer server lost the job to the older one")
