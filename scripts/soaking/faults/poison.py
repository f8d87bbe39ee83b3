"""One item of a batch kills whatever engine works on it: it fails alone, the others are answered as in peace."""

from __future__ import annotations

from testing.server import eventually

from .batch import Shape, with_line
from .call import Call
from .errors import expect
from .testbed import Run, engine_of

RUNS = 5
TOKEN_ID = 4242
# Python imports a module of this name at its start.
_HOOK = f"""
import sys

if "container.engine.worker.process" in sys.orig_argv:
    import os, resource
    from container.engine.worker.sampler import Sampler

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    row_of = Sampler._row

    def row_unless_poisoned(self, state, *others):
        if {TOKEN_ID} in state.initial_tokens[: state.logit_processor_kwargs["prompt_tokens"]]:
            os.abort()
        return row_of(self, state, *others)

    Sampler._row = row_unless_poisoned
"""


def play(run: Run) -> None:
    shape = Shape()
    place = run.draw.randrange(shape.items)
    poison = {"prompt": [100, TOKEN_ID, 100 + run.number], "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    work = with_line(run.work(shape), place, poison)
    run.peace(work)
    hooks = run.directory / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_HOOK)
    server = run.start(PYTHONPATH=hooks)
    lines = run.check(work, Call(server.port, work).answer(), but=frozenset({place}))
    run.facts |= {"poisoned": place, "restarts": int(server.metric("longhaul_engine_restarts_total"))}
    expect(lines[place].error == "engine_killed_by_item", f"the poisoned item's error is {lines[place].error}")
    eventually(lambda: server.ping()[1].get("status") == "ready")
    engine_of(server)
