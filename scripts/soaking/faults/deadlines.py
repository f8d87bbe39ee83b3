"""Work that needs four times as long as its caller waits: answered in time, marked, and whole after enough calls."""

from __future__ import annotations

from .batch import Shape, Work
from .call import Answer, Call
from .errors import expect
from .testbed import TOKENS, Run
from .throttle import Pace

RUNS = 100
TIMES_LONGER = 4
TIMEOUTS_S = (2, 3, 4)
MOST_CALLS = 60
_WORKS = 8
"""That the runs share."""
_SHAPE = Shape(items=48, typical=24, longest=200)


def play(run: Run) -> None:
    work = run.work(_SHAPE, of=_WORKS)
    peace, timeout_s = run.peace(work), run.draw.choice(TIMEOUTS_S)
    server = run.ground.kept(run.scenario)
    before, kept, calls, in_flight = server.metric(TOKENS), 0, 0, 0
    with Pace(server, per_s=peace.tokens / (TIMES_LONGER * timeout_s)) as pace:
        while (answer := Call(server.port, work, job=run.name, timeout_s=timeout_s).answer()).is_cut:
            calls += 1
            kept = check_cut(run, work, answer, timeout_s, kept)
            expect(calls < MOST_CALLS, f"not whole after {calls} calls of {timeout_s} s")
            in_flight = pace.in_flight
    _check_in_time(answer, timeout_s)
    expect(calls > 0, "the first call had time enough: the deadline was not tried")
    run.check(work, answer)
    generated = int(server.metric(TOKENS) - before)
    again = generated - peace.tokens
    run.facts |= {"timeout": f"{timeout_s} s", "calls": calls + 1, "tokens": peace.tokens, "again": again}
    expect(again <= calls * in_flight, f"{again} tokens were generated again, {calls * in_flight} were in flight")


def check_cut(run: Run, work: Work, answer: Answer, timeout_s: float, kept: int) -> int:
    """The tokens that it holds. `kept`: those of the answer before, which this one must have been spared."""
    _check_in_time(answer, timeout_s)
    lines = answer.lines
    expect(len(lines) == len(work.lines), f"{len(lines)} lines for {len(work.lines)} items")
    marked = 0
    for number, line in enumerate(lines):
        if line.error is not None:
            marked += 1
            expect(line.error == "deadline_exceeded", f"item {number} is an error: {line.error}")
        else:
            marked += any(choice.is_cut for choice in line.choices)
            run.ground.undisturbed().check_line(work, number, line)
    expect(marked > 0, "the answer says that it is cut, and no item is")
    resumed = answer.resumed_tokens
    expect(resumed >= kept, f"{resumed} tokens resumed; the answer before had {kept}")
    return sum(line.generated for line in lines)


def _check_in_time(answer: Answer, timeout_s: float) -> None:
    expect(answer.seconds <= timeout_s, f"the answer took {answer.seconds:.2f} s of {timeout_s} s")
