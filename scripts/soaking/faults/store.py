"""The journal's store is broken for a minute: generation continues, and the journal is made whole again.

Run by run: an S3 that refuses, answers errors, is slow, cuts connections, and a directory on a full disk (a small
tmpfs, if one may be mounted). Afterwards the container is killed, and the next one loses no more than usual.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.server import Server, eventually

from .batch import Shape, draw_batch
from .broken_s3 import BrokenS3, State
from .call import Call
from .container import check_continued
from .errors import CannotRun, CheckFailed, expect
from .testbed import WRITE_S, Run, kill_container, log_lines
from .throttle import Throttle

RUNS = 5
INTERVAL_S = 1.0
DETECTION_TIMEOUT_S = 60.0
"""Seconds within which the failure must show: a client retries for a while before it gives a store up."""
RECOVERY_TIMEOUT_S = 90.0
"""Seconds within which the journal must be whole again: the server retries a broken store less and less often."""
_WAYS: tuple[State | str, ...] = ("refuses", "errors", "slow", "cuts", "full disk")
_DISK = "4m"
_BROKEN, _ERRORS = "longhaul_journal_broken", "longhaul_journal_errors_total"


def play(run: Run) -> None:
    way = _WAYS[(run.number - 1) % len(_WAYS)]
    run.facts["store"] = way
    settings, set_broken = _full_disk(run) if way == "full disk" else _broken_s3(run, way)
    broken_s: float = run.testbed.options.broken_s
    settings |= {"LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
    # Few sequences, so that steps are short and other requests are answered between the stops of the engine.
    batch = run.batch(Shape(items=8, typical=400, longest=2000))
    reference = run.reference(batch)
    server = run.start(**settings)
    call = Call(server.port, batch, job=run.name)
    # The rate leaves the batch unfinished when the store works again.
    with Throttle(server, per_s=reference.tokens / (DETECTION_TIMEOUT_S + broken_s + RECOVERY_TIMEOUT_S)) as throttle:
        throttle.wait_for(reference.tokens * 0.02)
        expect(server.metric(_BROKEN) == 0, "the journal is broken before its store is")
        well_until = throttle.tokens
        set_broken(True)
        _check_noticed(run, server)
        others = _check_others(run, server, broken_s)
        expect(server.metric(_BROKEN) == 1, "the metric says that the journal is well, and its store is broken")
        meanwhile = throttle.tokens - well_until
        set_broken(False)
        _check_healed(run, server)
        time.sleep(INTERVAL_S + WRITE_S)
        before, may_be_lost = throttle.tokens - others, throttle.tokens_at_risk(INTERVAL_S) + throttle.in_flight
        expect(not call.is_over, "the job was over before its container was killed")
        expect(may_be_lost < meanwhile - others, "too little was generated meanwhile to tell what was healed")
        kill_container(server)
    run.facts["meanwhile"] = meanwhile - others
    check_continued(run, batch, run.start(**settings), before=before, may_be_lost=may_be_lost)


def _check_noticed(run: Run, server: Server) -> None:
    began = time.monotonic()
    eventually(lambda: server.metric(_BROKEN) == 1, DETECTION_TIMEOUT_S)
    run.facts["noticed after"] = f"{time.monotonic() - began:.0f} s"
    warnings = [line for line in log_lines(server, "journal_broken") if line["level"] in ("WARNING", "ERROR")]
    expect(bool(warnings), "there is no warning of the broken journal")
    expect(server.metric(_ERRORS) > 0, "no error of the journal is counted")


def _check_others(run: Run, server: Server, broken_s: float) -> int:
    """Check that other invocations are answered all the while, with and without a name.

    Returns the tokens generated for all of them. A request without a name may be answered from the journal if it was
    written while it ran.
    """
    answered = tokens = 0
    until = time.monotonic() + broken_s
    while time.monotonic() < until or not answered:
        answered += 1
        batch = draw_batch(f"{run.name} meanwhile {answered % 4}", Shape(items=2, typical=16, longest=24))
        name = f"{run.name}-{answered}" if answered % 2 else None
        answer = Call(server.port, batch, job=name).answer()
        run.check(batch, answer)
        tokens += run.reference(batch).tokens - answer.resumed_tokens
        expect(server.ping()[0] == 200, "the server is not ready while its journal is broken")
    run.facts["answered meanwhile"] = answered
    return tokens


def _check_healed(run: Run, server: Server) -> None:
    began = time.monotonic()
    eventually(lambda: server.metric(_BROKEN) == 0, RECOVERY_TIMEOUT_S)
    run.facts["healed after"] = f"{time.monotonic() - began:.0f} s"
    expect(bool(log_lines(server, "journal_healed")), "the log does not tell that the journal is well again")


Switch = Callable[[bool], None]


def _broken_s3(run: Run, way: str) -> tuple[dict[str, Any], Switch]:
    front = BrokenS3(run.testbed.emulator.url)
    run.open.callback(front.close)

    def switch(is_broken: bool) -> None:
        front.state = way if is_broken else "well"  # type: ignore[assignment]
        if not is_broken and not front.broken:
            raise CheckFailed("the broken store was never asked")

    return run.s3_settings(front.url), switch


def _full_disk(run: Run) -> tuple[dict[str, Any], Switch]:
    line_number = run.directory / "disk"
    line_number.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=700", "tmpfs", str(line_number)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise CannotRun("a tmpfs can't be mounted here")
    run.open.callback(subprocess.run, ["umount", "-l", str(line_number)], capture_output=True)
    ballast = line_number / "ballast"

    def switch(is_broken: bool) -> None:
        _fill(ballast) if is_broken else ballast.unlink()

    return {"LONGHAUL_CHECKPOINT_URI": line_number / "journal"}, switch


def _fill(ballast: Path) -> None:
    """Fill the disk to the last page."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
