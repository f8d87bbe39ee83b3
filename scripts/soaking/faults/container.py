"""kill -9 of the whole container at about half; a new one gets the same body and name and continues the job.

Every second run keeps its journal on S3.
"""

from __future__ import annotations

from typing import Any

from testing.server import Server, eventually

from .batch import Batch, Shape
from .call import Answer, Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run, kill_container, log_lines
from .throttle import Throttle

RUNS = 10
INTERVAL_S = 1.0
THROTTLED_S = 12.0
"""Seconds that the whole batch takes at the throttled rate, on a machine that is fast enough."""


def play(run: Run) -> None:
    is_s3 = run.number % 2 == 0
    settings: dict[str, Any] = {"LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
    settings |= run.s3_settings() if is_s3 else {}
    run.facts["journal"] = "S3" if is_s3 else "directory"
    batch = run.batch(Shape())
    reference = run.reference(batch)
    server = run.start(**settings)
    Call(server.port, batch, job=run.name)
    with Throttle(server, per_s=reference.tokens / THROTTLED_S) as throttle:
        throttle.wait_for(reference.tokens * run.draw.uniform(0.35, 0.65))
        before, may_be_lost = throttle.tokens, throttle.tokens_at_risk(INTERVAL_S) + throttle.in_flight
        kill_container(server)
    check_continued(run, batch, run.start(**settings), before=before, may_be_lost=may_be_lost)


def check_continued(run: Run, batch: Batch, server: Server, *, before: int, may_be_lost: int) -> Answer:
    """Check that a new server answers correctly and generates again no more tokens than may be lost."""
    reference = run.reference(batch)
    answer = Call(server.port, batch, job=run.name).answer()
    run.check(batch, answer)
    eventually(lambda: not server.metric("longhaul_sequences_running"))
    generated = int(server.metric(TOKENS))
    again = before + generated - reference.tokens
    resumed = answer.resumed_tokens
    run.facts |= {
        "tokens": reference.tokens,
        "before": before,
        "resumed": resumed,
        "again": again,
        "bound": may_be_lost,
    }
    expect(answer.headers.get("x-longhaul-job") == run.name, "the answer does not tell its job")
    expect(again <= may_be_lost, f"{again} tokens were generated again; {may_be_lost} may have been lost")
    lost = before - resumed
    expect(lost <= may_be_lost, f"{lost} tokens of {before} were not resumed; {may_be_lost} may have been lost")
    expect(resumed <= before + may_be_lost, f"{resumed} tokens resumed, of {before}")
    counted = int(server.metric("longhaul_tokens_resumed_total"))
    expect(counted == resumed, f"the metric counts {counted} resumed tokens, the answer {resumed}")
    lines = log_lines(server, "job_resumed")
    logged = sum(line["tokens"] for line in lines)
    expect(logged == resumed, f"the log tells of {logged} resumed tokens, the answer of {resumed}")
    # Tokens that a stop string cuts off may or may not be counted and journalled, depending on the moment.
    apart, slack = abs(resumed + generated - reference.tokens), STEPS_IN_FLIGHT * len(batch.lines)
    expect(apart <= slack, f"{resumed} resumed and {generated} generated are not {reference.tokens} in all")
    return answer
