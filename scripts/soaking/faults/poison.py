"""One item of a batch kills every engine that works on it: it fails alone, the others are answered as undisturbed."""

from __future__ import annotations

from testing.server import eventually

from .batch import Shape, replace_line
from .call import Call
from .errors import expect
from .testbed import Run, wait_for_engine

RUNS = 5
TOKEN_ID = 4242
# Written as sitecustomize.py, which Python imports at its start.
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
    line_number = run.draw.randrange(shape.items)
    poison = {"prompt": [100, TOKEN_ID, 100 + run.number], "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    batch = replace_line(run.batch(shape), line_number, poison)
    run.reference(batch)
    hooks = run.directory / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_HOOK)
    server = run.start(PYTHONPATH=hooks)
    lines = run.check(batch, Call(server.port, batch).answer(), but=frozenset({line_number}))
    run.facts |= {"poisoned": line_number, "restarts": int(server.metric("longhaul_engine_restarts_total"))}
    expect(
        lines[line_number].error == "engine_killed_by_item", f"the poisoned item's error is {lines[line_number].error}"
    )
    eventually(lambda: server.ping()[1].get("status") == "ready")
    wait_for_engine(server)
