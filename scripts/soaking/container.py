"""A soak: everything at once against a real server for an hour, then the property tests with many more examples.

traffic     `./serve` of a tiny model under right requests of every dialect (the same request has the same answer each
            time), bad documents, JSON lines with bad lines, hostile clients, killed engines, and pings all along. The
            server process lives, nothing hangs, every answer is right or documented, and no process grows.
properties  the suites of hypothesis and schemathesis and the journal's races, with `--effort` times their examples.

The same seed draws the same requests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from testing import ROOT
from testing.server import Server, eventually
from testing.tiny_models import save_tiny_model

from .ledger import Ledger
from .monitor import FILES, Monitor, Sample, spool_files, take_sample
from .traffic import Traffic

SUITES = (
    "tests/container/engine/supervisor/test_admission_fuzz.py",
    "tests/container/engine/worker/test_batch_fuzz.py",
    "tests/container/dialects/test_dialects_fuzz.py",
    "tests/container/journal/test_races.py",
    "tests/container/server/test_openapi.py",
)
PING_P99_S = 0.5
QUIET_TIMEOUT_S = 60.0
"""Seconds after the last request until nothing may run, wait or lie in the spool."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the traffic")
    parser.add_argument("--only", choices=["traffic", "properties"])
    parser.add_argument("--bound", type=float, default=90.0, metavar="SECONDS", help="longest that a request may take")
    parser.add_argument("--effort", type=int, default=20, help="factor on the number of the suite's examples")


def run(options: argparse.Namespace, faults: list[str]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    if options.only != "properties":
        results["traffic"] = soak(options.seed, options.minutes * 60, options.bound, faults)
    if options.only != "traffic":
        results["properties"] = check_properties(options.seed, options.effort, faults)
    return results


# Traffic


def soak(seed: int, seconds: float, bound_s: float, faults: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="longhaul-soak-") as name:
        directory = Path(name)
        (directory / "spool").mkdir()
        save_tiny_model(directory / "model", ROOT / ".models/SmolLM2-135M-Instruct")
        settings: dict[str, Any] = {
            "LONGHAUL_SPOOL_DIR": directory / "spool",
            "LONGHAUL_MAX_MODEL_LEN": 512,
            "LONGHAUL_MAX_NEW_TOKENS": 32,
            "LONGHAUL_KV_CACHE_TOKENS": 4096,  # a small cache, which makes the engine preempt sequences
            "LONGHAUL_MAX_JSON_BYTES": 4 << 20,
            "LONGHAUL_CLIENT_TIMEOUT_S": 5,
            "LONGHAUL_MAX_BODY_BYTES": 1 << 24,
        }
        with Server(directory / "model", directory / "log", **settings) as server:
            server.wait_until_ready()
            return _soak(server, directory, seed, seconds, bound_s, faults)


def _soak(
    server: Server, directory: Path, seed: int, seconds: float, bound_s: float, faults: list[str]
) -> dict[str, Any]:
    process, ledger = psutil.Process(server.process.pid), Ledger()
    before = take_sample(process)
    traffic = Traffic(server, ledger, seed=seed, seconds=seconds, bound_s=bound_s)
    monitor = Monitor(server)
    traffic.start()
    monitor.start()
    try:
        totals = show_progress(server, ledger, monitor, seconds)
    finally:
        traffic.end()
        monitor.end()
    faults += [str(finding) for finding in ledger.findings]
    p99_s = sorted(traffic.ping_s)[int(0.99 * len(traffic.ping_s))] if traffic.ping_s else float("inf")
    if p99_s > PING_P99_S:
        faults.append(f"/ping: p99 is {p99_s * 1000:.0f} ms; the bound is {PING_P99_S * 1000:.0f} ms")
    for name, growth in monitor.growths().items():
        faults += [f"{name}: {fault}" for fault in growth.faults()]
    faults += check_quiet(server, process, before, directory / "spool")
    faults += check_end(server)
    rates = quarters(totals)
    report(ledger, monitor, traffic, p99_s, rates)
    return {
        **ledger.as_json(),
        "requests_per_s_in_quarters": rates,
        "ping_p99_s": p99_s,
        "kills": [end - start for start, end in traffic.kills],
        "processes": monitor.as_json(),
    }


def show_progress(server: Server, ledger: Ledger, monitor: Monitor, seconds: float) -> list[tuple[float, int]]:
    """Show a line of progress until the time or the server ends.

    Returns the number of requests by elapsed seconds.
    """
    is_terminal, next_line_s = sys.stdout.isatty(), 0.0
    totals = [(0.0, 0)]
    while (elapsed_s := ledger.elapsed_s) < seconds and server.process.poll() is None:
        totals.append((elapsed_s, ledger.total()))
        bar = "█" * round(20 * elapsed_s / seconds)
        counts = ", ".join(f"{ledger.total(outcome)} {outcome}" for outcome in ("right", "refused", "done", "wrong"))
        total = f"{elapsed_s:.0f} of {seconds:.0f} s  {ledger.total()} requests"
        line = f"{bar:░<20} {total}: {counts}; {monitor.memory_mib()}"
        if is_terminal:
            print(f"\r\x1b[2K{line}", end="", flush=True)
        elif elapsed_s >= next_line_s:
            print(line, flush=True)
            next_line_s += 15
        time.sleep(min(1.0, seconds - elapsed_s))
    print(flush=True)
    return totals


def quarters(totals: list[tuple[float, int]]) -> list[float]:
    """Return the requests per second in each quarter of the time: a server that becomes slower shows here."""
    ends = [totals[(len(totals) - 1) * quarter // 4] for quarter in range(5)]
    return [(n - m) / max(t - s, 1e-9) for (s, m), (t, n) in pairwise(ends)]


def check_quiet(server: Server, process: psutil.Process, before: Sample, spool: Path) -> list[str]:
    """Check that nothing runs, waits or is held when no request is open."""
    if server.process.poll() is not None:
        return [f"the server ended with status {server.process.returncode}"]
    counts: dict[str, Callable[[], float]] = {
        "sequences still run": lambda: server.metric("longhaul_sequences_running"),
        "sequences still wait": lambda: server.metric("longhaul_sequences_waiting"),
        "requests are still open": lambda: server.metric("longhaul_requests_running"),
        "spool files are left": lambda: spool_files(process.pid, spool),
        "open files more than before": lambda: max(0, process.num_fds() - before.files - FILES),
    }
    faults = []
    deadline = time.monotonic() + QUIET_TIMEOUT_S
    for what, count in counts.items():
        try:
            eventually(partial(is_zero, count), max(1.0, deadline - time.monotonic()))
        except AssertionError:
            faults.append(f"{count():.0f} {what} {QUIET_TIMEOUT_S:.0f} s after the last request")
    return faults


def is_zero(count: Callable[[], float]) -> bool:
    return not count()


def check_end(server: Server) -> list[str]:
    """Check that SIGTERM ends the server with status 0, and that its log has no unexpected error."""
    faults = []
    server.send(signal.SIGTERM)
    try:
        if (status := server.exit_status()) != 0:
            faults.append(f"after SIGTERM the server ended with status {status}")
    except subprocess.TimeoutExpired:
        faults.append("SIGTERM did not end the server")
    errors = Counter(
        f"{line['message'].strip()} {_exception(line)}".strip() for line in _log_lines(server) if _is_unexpected(line)
    )
    return faults + [f"log, {count} times: {error}" for error, count in errors.items()]


def _log_lines(server: Server) -> list[dict[str, Any]]:
    """Parse the log. A line that is not a JSON object (a crash's last words) becomes an error of its own."""
    lines = []
    for text in server.log().splitlines():
        try:
            lines.append(dict(json.loads(text)))
        except (ValueError, TypeError):
            lines.append({"level": "ERROR", "message": "a line that is not a JSON object"})
    return lines


def _is_unexpected(line: dict[str, Any]) -> bool:
    return "traceback" in line or (line["level"] == "ERROR" and line.get("action") != "engine_died")


def _exception(line: dict[str, Any]) -> str:
    """Return the last line of the traceback without addresses, which differ each time."""
    last = str(line.get("traceback", "")).strip().rpartition("\n")[2]
    return re.sub("0x[0-9a-f]+", "0x", last)


def report(ledger: Ledger, monitor: Monitor, traffic: Traffic, p99_s: float, rates: list[float]) -> None:
    print(ledger.table())
    print(f"\nrequests a second, in each quarter of the time: {', '.join(f'{rate:.1f}' for rate in rates)}")
    print(f"{len(traffic.ping_s)} pings, p99 {p99_s * 1000:.0f} ms, slowest {max(traffic.ping_s) * 1000:.0f} ms")
    for start, end in traffic.kills:
        print(f"an engine killed, the next one served after {end - start:.1f} s")
    print("\nafter the warm-up, medians of the first and the last quarter (for memory, of each minute's minimum):")
    for name, growth in monitor.growths().items():
        print(
            f"{name}: {growth.memory_first_mib:.0f} to {growth.memory_last_mib:.0f} MiB "
            f"({growth.memory_mib_per_hour:+.0f} MiB an hour), "
            f"{growth.files_first:.0f} to {growth.files_last:.0f} files, "
            f"{growth.threads_first:.0f} to {growth.threads_last:.0f} threads, "
            + (f"{growth.samples} samples" if growth.samples else "too few samples to judge")
        )


# Properties


def check_properties(seed: int, effort: int, faults: list[str]) -> dict[str, Any]:
    print(f"\nproperties, {effort} times the suite's examples", flush=True)
    started = time.monotonic()
    status = subprocess.run(
        [sys.executable, "-m", "pytest", *SUITES, f"--hypothesis-seed={seed}", "-v"],
        cwd=ROOT,
        env=os.environ | {"FUZZ_EFFORT": str(effort), "PYTHONPATH": "."},
    ).returncode
    if status:
        faults.append(f"properties: pytest ended with status {status}; FUZZ_EFFORT={effort} --hypothesis-seed={seed}")
    return {"status": status, "seconds": time.monotonic() - started}
