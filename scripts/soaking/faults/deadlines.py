"""Batches that need four times as long as their caller waits: answered in time, marked, and whole in the end."""

from __future__ import annotations

from .batch import Batch, Shape
from .call import Answer, Call
from .errors import expect
from .testbed import TOKENS, Run
from .throttle import Throttle

RUNS = 100
TIMES_LONGER = 4
TIMEOUTS_S = (2, 3, 4)
MAX_CALLS = 60
_BATCHES = 8
"""Number of batches that the runs share."""
_SHAPE = Shape(items=48, typical=24, longest=200)


def play(run: Run) -> None:
    batch = run.batch(_SHAPE, shared=_BATCHES)
    reference, timeout_s = run.reference(batch), run.draw.choice(TIMEOUTS_S)
    server = run.testbed.shared_server(run.scenario)
    before, kept, calls, in_flight = server.metric(TOKENS), 0, 0, 0
    with Throttle(server, per_s=reference.tokens / (TIMES_LONGER * timeout_s)) as throttle:
        while (answer := Call(server.port, batch, job=run.name, timeout_s=timeout_s).answer()).is_cut:
            calls += 1
            kept = check_cut(run, batch, answer, timeout_s, kept)
            expect(calls < MAX_CALLS, f"not whole after {calls} calls of {timeout_s} s")
            in_flight = throttle.in_flight
    _check_in_time(answer, timeout_s)
    expect(calls > 0, "the first call had time enough: the deadline was not tried")
    run.check(batch, answer)
    generated = int(server.metric(TOKENS) - before)
    again = generated - reference.tokens
    run.facts |= {"timeout": f"{timeout_s} s", "calls": calls + 1, "tokens": reference.tokens, "again": again}
    expect(again <= calls * in_flight, f"{again} tokens were generated again, {calls * in_flight} were in flight")


def check_cut(run: Run, batch: Batch, answer: Answer, timeout_s: float, kept: int) -> int:
    """Check a partial answer and return the number of tokens in it.

    `kept`: tokens of the previous answer, which must not have been generated again.
    """
    _check_in_time(answer, timeout_s)
    lines = answer.lines
    expect(len(lines) == len(batch.lines), f"{len(lines)} lines for {len(batch.lines)} items")
    marked = 0
    for number, line in enumerate(lines):
        if line.error is not None:
            marked += 1
            expect(line.error == "deadline_exceeded", f"item {number} is an error: {line.error}")
        else:
            marked += any(choice.is_cut for choice in line.choices)
            run.testbed.reference_server().check_line(batch, number, line)
    expect(marked > 0, "the answer says that it is cut, and no item is")
    resumed = answer.resumed_tokens
    expect(resumed >= kept, f"{resumed} tokens resumed; the answer before had {kept}")
    return sum(line.generated for line in lines)


def _check_in_time(answer: Answer, timeout_s: float) -> None:
    expect(answer.seconds <= timeout_s, f"the answer took {answer.seconds:.2f} s of {timeout_s} s")
