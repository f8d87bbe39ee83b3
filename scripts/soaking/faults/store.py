"""The journal's store is broken for a minute: generation goes on, it is told, and the journal is made whole again.

Run by run: S3 that refuses, answers errors, is slow, cuts connections, and a directory on a full disk (a small tmpfs,
where this may be mounted). Afterwards the container is killed, and the next one loses no more than ever.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.server import Server, eventually

from .batch import Shape, drawn
from .broken_s3 import BrokenS3, State
from .call import Call
from .container import check_continued
from .errors import CannotRun, Wrong, expect
from .testbed import WRITE_S, Run, kill_container, logged
from .throttle import Pace

RUNS = 5
INTERVAL_S = 1.0
NOTICED_S = 60.0
"""A client tries for a while before it gives a store up."""
HEALED_S = 90.0
"""The server asks a broken store ever more seldom."""
_WAYS: tuple[State | str, ...] = ("refuses", "errors", "slow", "cuts", "full disk")
_DISK = "4m"
_BROKEN, _ERRORS = "longhaul_journal_broken", "longhaul_journal_errors_total"


def play(run: Run) -> None:
    way = _WAYS[(run.number - 1) % len(_WAYS)]
    run.facts["store"] = way
    settings, set_broken = _full_disk(run) if way == "full disk" else _broken_s3(run, way)
    broken_s: float = run.ground.options.broken_s
    settings |= {"LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
    # Few sequences: a step of a paced engine is short, and others are answered between.
    work = run.work(Shape(items=8, typical=400, longest=2000))
    peace = run.peace(work)
    server = run.start(**settings)
    call = Call(server.port, work, job=run.name)
    # At this pace it is not whole when the store is well again.
    with Pace(server, per_s=peace.tokens / (NOTICED_S + broken_s + HEALED_S)) as pace:
        pace.wait_for(peace.tokens * 0.02)
        expect(server.metric(_BROKEN) == 0, "the journal is broken before its store is")
        well_until = pace.tokens
        set_broken(True)
        _check_noticed(run, server)
        others = _check_others(run, server, broken_s)
        expect(server.metric(_BROKEN) == 1, "the metric says that the journal is well, and its store is broken")
        meanwhile = pace.tokens - well_until
        set_broken(False)
        _check_healed(run, server)
        time.sleep(INTERVAL_S + WRITE_S)
        before, may_be_lost = pace.tokens - others, pace.worth(INTERVAL_S) + pace.in_flight
        expect(not call.is_over, "the job was over before its container was killed")
        expect(may_be_lost < meanwhile - others, "too little was generated meanwhile to tell what was healed")
        kill_container(server)
    run.facts["meanwhile"] = meanwhile - others
    check_continued(run, work, run.start(**settings), before=before, may_be_lost=may_be_lost)


def _check_noticed(run: Run, server: Server) -> None:
    began = time.monotonic()
    eventually(lambda: server.metric(_BROKEN) == 1, NOTICED_S)
    run.facts["noticed after"] = f"{time.monotonic() - began:.0f} s"
    warnings = [line for line in logged(server, "journal_broken") if line["level"] in ("WARNING", "ERROR")]
    expect(bool(warnings), "there is no warning of the broken journal")
    expect(server.metric(_ERRORS) > 0, "no error of the journal is counted")


def _check_others(run: Run, server: Server, broken_s: float) -> int:
    """Other invocations are answered all the while, named or not: the tokens that were generated for all.

    The same one without a name may be answered from the journal, if it was written while it ran.
    """
    answered = tokens = 0
    until = time.monotonic() + broken_s
    while time.monotonic() < until or not answered:
        answered += 1
        work = drawn(f"{run.name} meanwhile {answered % 4}", Shape(items=2, typical=16, longest=24))
        name = f"{run.name}-{answered}" if answered % 2 else None
        answer = Call(server.port, work, job=name).answer()
        run.check(work, answer)
        tokens += run.peace(work).tokens - answer.resumed_tokens
        expect(server.ping()[0] == 200, "the server is not ready while its journal is broken")
    run.facts["answered meanwhile"] = answered
    return tokens


def _check_healed(run: Run, server: Server) -> None:
    began = time.monotonic()
    eventually(lambda: server.metric(_BROKEN) == 0, HEALED_S)
    run.facts["healed after"] = f"{time.monotonic() - began:.0f} s"
    expect(bool(logged(server, "journal_healed")), "the log does not tell that the journal is well again")


Switch = Callable[[bool], None]


def _broken_s3(run: Run, way: str) -> tuple[dict[str, Any], Switch]:
    front = BrokenS3(run.ground.emulator.url)
    run.open.callback(front.close)

    def switch(is_broken: bool) -> None:
        front.state = way if is_broken else "well"  # type: ignore[assignment]
        if not is_broken and not front.broken:
            raise Wrong("the broken store was never asked")

    return run.s3_settings(front.url), switch


def _full_disk(run: Run) -> tuple[dict[str, Any], Switch]:
    place = run.directory / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=700", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise CannotRun("a tmpfs can't be mounted here")
    run.open.callback(subprocess.run, ["umount", "-l", str(place)], capture_output=True)
    ballast = place / "ballast"

    def switch(is_broken: bool) -> None:
        _fill(ballast) if is_broken else ballast.unlink()

    return {"LONGHAUL_CHECKPOINT_URI": place / "journal"}, switch


def _fill(ballast: Path) -> None:
    """To the last page."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
