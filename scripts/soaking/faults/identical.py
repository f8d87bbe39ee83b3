"""The same request twice at once: one generation and equal answers, where sampling can't make two of it.

Another body under a job's name is a 409 that says nothing of the job.
"""

from __future__ import annotations

import json
import re

from testing.server import Server, eventually

from .batch import Shape, Work, drawn, unseeded
from .call import Answer, Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run
from .throttle import Pace

RUNS = 20
KINDS = ("deterministic", "named", "named, unseeded", "unseeded")
_UNSEEDED_TOKENS = 400
_PACE_S = 3.0


def play(run: Run) -> None:
    kind = KINDS[run.number % len(KINDS)]
    run.facts["kind"] = kind
    server = run.ground.kept(run.scenario)
    is_unseeded, job = "unseeded" in kind, run.name if "named" in kind else None
    work = unseeded(run.name, _UNSEEDED_TOKENS) if is_unseeded else run.work(Shape(items=24))
    tokens = _UNSEEDED_TOKENS if is_unseeded else run.peace(work).tokens
    before = server.metric(TOKENS)
    answers = _ask_twice(run, server, work, job, tokens / _PACE_S)
    generated = int(server.metric(TOKENS) - before)
    run.facts |= {"tokens": tokens, "generated": generated}
    if not is_unseeded:
        for answer in answers:
            run.check(work, answer)
    one, other = (answer.lines for answer in answers)
    due, slack = (2 * tokens, 0) if kind == "unseeded" else (tokens, STEPS_IN_FLIGHT * len(work.lines))
    expect(abs(generated - due) <= slack, f"{generated} tokens were generated instead of {due}")
    expect(
        (one == other) == (kind != "unseeded"), "the answers differ" if kind != "unseeded" else "the same answer twice"
    )
    if job is not None:
        _check_known(run, server, work, answers[0])


def _ask_twice(run: Run, server: Server, work: Work, job: str | None, per_s: float) -> list[Answer]:
    """At the same moment, or the second while the first is at work."""
    is_late = run.draw.random() < 0.5
    run.facts["second"] = "later" if is_late else "at once"
    with Pace(server, per_s=per_s) as pace:
        calls = [Call(server.port, work, job=job)]
        if is_late:
            pace.wait_for(per_s * _PACE_S * run.draw.uniform(0.1, 0.6))
            expect(not calls[0].is_over, "the first was over before the second came")
        calls.append(Call(server.port, work, job=job))
        if job is not None and is_late:
            _check_conflict(run, server, job)
        answers = [call.answer() for call in calls]
    eventually(lambda: not server.metric("longhaul_sequences_running"))
    return answers


def _check_known(run: Run, server: Server, work: Work, before: Answer) -> None:
    """Asked again when it is whole, a job costs nothing; another body has no more luck than before."""
    generated = server.metric(TOKENS)
    again = Call(server.port, work, job=run.name).answer()
    expect(again.lines == before.lines, "asked again, the job's answer is another")
    more = int(server.metric(TOKENS) - generated)
    expect(not more, f"asked again, a whole job generated {more} tokens")
    _check_conflict(run, server, run.name)


def _check_conflict(run: Run, server: Server, job: str) -> None:
    """Two wrong bodies get the same words, which hold nothing but what their sender knows."""
    told = []
    for number in range(2):
        wrong = drawn(f"{run.name} wrong {number}", Shape(items=1 + number))
        answer = Call(server.port, wrong, job=job).answer()
        found = f"another body under a known name was answered {answer.status} {answer.error.get('code')}"
        expect((answer.status, answer.error.get("code")) == (409, "job_conflict"), found)
        told.append(answer.body)
    expect(told[0] == told[1], "the 409 is not the same for each body")
    rest = json.dumps(json.loads(told[0])).replace(job, "")
    rest = rest.replace("409", "")
    expect(not re.search(r"\d|[0-9a-f]{16}", rest), "the 409 tells numbers or digests")
