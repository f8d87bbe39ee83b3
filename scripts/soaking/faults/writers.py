"""Two servers on one job and one journal: both answer right, one writes, and a third reads what is not mixed."""

from __future__ import annotations

import signal
from typing import Any

from testing.server import Server, eventually

from .batch import Shape
from .call import Call
from .container import INTERVAL_S, PACE_S, check_continued
from .errors import expect
from .testbed import TOKENS, Run, kill_container, logged
from .throttle import Pace

RUNS = 9


def play(run: Run) -> None:
    way = ("takeover", "race", "takeover, killed")[run.number % 3]
    is_s3 = run.draw.random() < 0.5
    run.facts |= {"way": way, "journal": "S3" if is_s3 else "directory"}
    settings: dict[str, Any] = {"LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
    settings |= run.s3_settings() if is_s3 else {}
    work = run.work(Shape())
    peace = run.peace(work)
    first, second = run.start(**settings), run.start(**settings)
    before = may_be_lost = 0
    per_s = peace.tokens / PACE_S
    with Pace(first, per_s=per_s) as one, Pace(second, per_s=per_s) as other:
        call = Call(first.port, work, job=run.name)
        if way != "race":
            one.wait_for(peace.tokens * run.draw.uniform(0.2, 0.6))
        again = Call(second.port, work, job=run.name)
        if way == "takeover, killed":
            # The second knows what the first had journalled; of what both know most is its own.
            eventually(lambda: other.tokens > 0)
            eventually(lambda: logged(first, "job_lost"))
            kept = sum(line["tokens"] for line in logged(second, "job_resumed"))
            other.wait_for(other.tokens + run.draw.uniform(0.1, 0.8) * (peace.tokens - kept - other.tokens))
            before, may_be_lost = kept + other.tokens, other.worth(INTERVAL_S) + other.in_flight
            kill_container(second)
        else:
            run.check(work, again.answer())
            before = peace.tokens
        run.check(work, call.answer())
    _check_loser(run, way, first, second)
    for server in (first, second):
        # The last of a job is journalled at latest then.
        server.send(signal.SIGTERM)
        if way != "takeover, killed" or server is first:
            expect(server.exit_status() == 0, f"exit status {server.process.returncode} after SIGTERM")
    third = run.start(**settings)
    if way == "takeover, killed":
        check_continued(run, work, third, before=before, may_be_lost=may_be_lost)
    else:
        run.check(work, Call(third.port, work, job=run.name).answer())
        generated = int(third.metric(TOKENS))
        expect(not generated, f"the job was whole, and the third server generated {generated} tokens")


def _check_loser(run: Run, way: str, first: Server, second: Server) -> None:
    lost = [len(logged(server, "job_lost")) for server in (first, second)]
    run.facts["lost"] = f"{lost[0]} and {lost[1]}"
    expect(sum(lost) == 1, f"the job was lost by {lost[0]} and {lost[1]} of the two writers")
    expect(way == "race" or lost[0] == 1, "the newer server lost the job to the older one")
