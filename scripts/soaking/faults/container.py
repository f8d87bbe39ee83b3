"""kill -9 of the whole container at about half; a new one is sent the same body and name and goes on.

Every second run's journal lies on S3.
"""

from __future__ import annotations

from typing import Any

from testing.server import Server, eventually

from .batch import Shape, Work
from .call import Answer, Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run, kill_container, logged
from .throttle import Pace

RUNS = 10
INTERVAL_S = 1.0
PACE_S = 12.0
"""So long the whole batch would take, on a machine that can."""


def play(run: Run) -> None:
    is_s3 = run.number % 2 == 0
    settings: dict[str, Any] = {"LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
    settings |= run.s3_settings() if is_s3 else {}
    run.facts["journal"] = "S3" if is_s3 else "directory"
    work = run.work(Shape())
    peace = run.peace(work)
    server = run.start(**settings)
    Call(server.port, work, job=run.name)
    with Pace(server, per_s=peace.tokens / PACE_S) as pace:
        pace.wait_for(peace.tokens * run.draw.uniform(0.35, 0.65))
        before, may_be_lost = pace.tokens, pace.worth(INTERVAL_S) + pace.in_flight
        kill_container(server)
    check_continued(run, work, run.start(**settings), before=before, may_be_lost=may_be_lost)


def check_continued(run: Run, work: Work, server: Server, *, before: int, may_be_lost: int) -> Answer:
    """A new server answers as if nothing had been, and generates again no more than may be lost."""
    peace = run.peace(work)
    answer = Call(server.port, work, job=run.name).answer()
    run.check(work, answer)
    eventually(lambda: not server.metric("longhaul_sequences_running"))
    generated = int(server.metric(TOKENS))
    again = before + generated - peace.tokens
    resumed = answer.resumed_tokens
    run.facts |= {"tokens": peace.tokens, "before": before, "resumed": resumed, "again": again, "bound": may_be_lost}
    expect(answer.headers.get("x-longhaul-job") == run.name, "the answer does not tell its job")
    expect(again <= may_be_lost, f"{again} tokens were generated again; {may_be_lost} may have been lost")
    lost = before - resumed
    expect(lost <= may_be_lost, f"{lost} tokens of {before} were not resumed; {may_be_lost} may have been lost")
    expect(resumed <= before + may_be_lost, f"{resumed} tokens resumed, of {before}")
    counted = int(server.metric("longhaul_tokens_resumed_total"))
    expect(counted == resumed, f"the metric counts {counted} resumed tokens, the answer {resumed}")
    lines = logged(server, "job_resumed")
    told = sum(line["tokens"] for line in lines)
    expect(told == resumed, f"the log tells of {told} resumed tokens, the answer of {resumed}")
    # What a stop string cuts off is generated, counted and journalled or not, by the moment.
    apart, slack = abs(resumed + generated - peace.tokens), STEPS_IN_FLIGHT * len(work.lines)
    expect(apart <= slack, f"{resumed} resumed and {generated} generated are not {peace.tokens} in all")
    return answer
