"""The same request twice at once: one generation and equal answers, unless random seeds make two of it.

Another body under a job's name is a 409 that tells nothing about the job.
"""

from __future__ import annotations

import json
import re

from testing.server import Server, eventually

from .batch import Batch, Shape, draw_batch, draw_unseeded_batch
from .call import Answer, Call
from .errors import expect
from .testbed import STEPS_IN_FLIGHT, TOKENS, Run
from .throttle import Throttle

RUNS = 20
KINDS = ("deterministic", "named", "named, unseeded", "unseeded")
_UNSEEDED_TOKENS = 400
_THROTTLED_S = 3.0


def play(run: Run) -> None:
    kind = KINDS[run.number % len(KINDS)]
    run.facts["kind"] = kind
    server = run.testbed.shared_server(run.scenario)
    is_unseeded, job = "unseeded" in kind, run.name if "named" in kind else None
    batch = draw_unseeded_batch(run.name, _UNSEEDED_TOKENS) if is_unseeded else run.batch(Shape(items=24))
    tokens = _UNSEEDED_TOKENS if is_unseeded else run.reference(batch).tokens
    before = server.metric(TOKENS)
    answers = _ask_twice(run, server, batch, job, tokens / _THROTTLED_S)
    generated = int(server.metric(TOKENS) - before)
    run.facts |= {"tokens": tokens, "generated": generated}
    if not is_unseeded:
        for answer in answers:
            run.check(batch, answer)
    one, other = (answer.lines for answer in answers)
    due, slack = (2 * tokens, 0) if kind == "unseeded" else (tokens, STEPS_IN_FLIGHT * len(batch.lines))
    expect(abs(generated - due) <= slack, f"{generated} tokens were generated instead of {due}")
    expect(
        (one == other) == (kind != "unseeded"), "the answers differ" if kind != "unseeded" else "the same answer twice"
    )
    if job is not None:
        _check_known(run, server, batch, answers[0])


def _ask_twice(run: Run, server: Server, batch: Batch, job: str | None, per_s: float) -> list[Answer]:
    """Send the request twice, at the same moment or the second one while the first is being worked on."""
    is_late = run.draw.random() < 0.5
    run.facts["second"] = "later" if is_late else "at once"
    with Throttle(server, per_s=per_s) as throttle:
        calls = [Call(server.port, batch, job=job)]
        if is_late:
            throttle.wait_for(per_s * _THROTTLED_S * run.draw.uniform(0.1, 0.6))
            expect(not calls[0].is_over, "the first was over before the second came")
        calls.append(Call(server.port, batch, job=job))
        if job is not None and is_late:
            _check_conflict(run, server, job)
        answers = [call.answer() for call in calls]
    eventually(lambda: not server.metric("longhaul_sequences_running"))
    return answers


def _check_known(run: Run, server: Server, batch: Batch, before: Answer) -> None:
    """Check that a finished job costs nothing when it is sent again, and still refuses another body."""
    generated = server.metric(TOKENS)
    again = Call(server.port, batch, job=run.name).answer()
    expect(again.lines == before.lines, "asked again, the job's answer is another")
    more = int(server.metric(TOKENS) - generated)
    expect(not more, f"asked again, a whole job generated {more} tokens")
    _check_conflict(run, server, run.name)


def _check_conflict(run: Run, server: Server, job: str) -> None:
    """Check that two wrong bodies get the same answer, which holds nothing but what their sender knows."""
    bodies = []
    for number in range(2):
        wrong = draw_batch(f"{run.name} wrong {number}", Shape(items=1 + number))
        answer = Call(server.port, wrong, job=job).answer()
        found = f"another body under a known name was answered {answer.status} {answer.error.get('code')}"
        expect((answer.status, answer.error.get("code")) == (409, "job_conflict"), found)
        bodies.append(answer.body)
    expect(bodies[0] == bodies[1], "the 409 is not the same for each body")
    rest = json.dumps(json.loads(bodies[0])).replace(job, "")
    rest = rest.replace("409", "")
    expect(not re.search(r"\d|[0-9a-f]{16}", rest), "the 409 tells numbers or digests")
