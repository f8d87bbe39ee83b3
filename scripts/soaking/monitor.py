"""The memory, files and threads of processes, sampled all along, and whether they grow."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from testing.server import Server

INTERVAL_S = 2.0
SERVER_WARM_UP_S = 120.0
ENGINE_WARM_UP_S = 600.0
"""Seconds that are not judged: allocators and caches fill, in an engine with a kernel for each number of rows, up to a
bound that `container/engine/supervisor/environment.py` sets; the growth is steep for about ten minutes."""
MIN_SAMPLES = 150
"""Number of samples after the warm-up, five minutes, below which a process is not judged."""
FLOOR_WINDOW_S = 60.0
"""Length of the windows whose minimum of memory is judged: what is held, not what a step takes and gives back (the
logits of a step of many rows are 50 MiB)."""
MEMORY_MIB_PER_HOUR = 48.0
MEMORY_MIB = 12.0
"""Bounds of memory. It grows if its slope is above the first, and the last quarter's median is above the first
quarter's by the second."""
FILES = 8
THREADS = 4
"""Bounds of open files and threads: how far the last quarter's median may be above the first quarter's."""


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    memory_mib: float
    files: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Growth of one process after its warm-up. Quarters are medians; for memory, medians of each minute's minimum."""

    samples: int
    """Number of samples after the warm-up."""
    memory_mib_per_hour: float
    memory_first_mib: float
    memory_last_mib: float
    files_first: float
    files_last: float
    threads_first: float
    threads_last: float

    def faults(self) -> list[str]:
        if self.samples < MIN_SAMPLES:
            return []
        found = []
        gain = self.memory_last_mib - self.memory_first_mib
        if self.memory_mib_per_hour > MEMORY_MIB_PER_HOUR and gain > MEMORY_MIB:
            found.append(
                f"memory grows by {self.memory_mib_per_hour:.0f} MiB an hour ({gain:.0f} MiB from the first to the last"
                f" quarter; bounds: {MEMORY_MIB_PER_HOUR:.0f} and {MEMORY_MIB:.0f})"
            )
        if self.files_last - self.files_first > FILES:
            found.append(f"open files grow from {self.files_first:.0f} to {self.files_last:.0f}")
        if self.threads_last - self.threads_first > THREADS:
            found.append(f"threads grow from {self.threads_first:.0f} to {self.threads_last:.0f}")
        return found


class Monitor:
    """Samples of every process that was seen: the server process, and each engine by its pid."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process = psutil.Process(server.process.pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: dict[str, list[Sample]] = defaultdict(list)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self._sample("server", self._process)
            if (engine := self._server.engine) is not None:
                self._sample(f"engine {engine.pid}", engine)

    def _sample(self, name: str, process: psutil.Process) -> None:
        try:
            sample = take_sample(process)
        except psutil.Error:  # it has died
            return
        self.samples[name].append(sample)

    def memory_mib(self) -> str:
        """Describe the newest sample of each process that is alive."""
        newest = [(name.split()[0], samples[-1]) for name, samples in list(self.samples.items())]
        alive = [(name, s) for name, s in newest if s.at_s > time.monotonic() - 2 * INTERVAL_S]
        return ", ".join(f"{name} {sample.memory_mib:.0f} MiB" for name, sample in alive)

    def growths(self) -> dict[str, Growth]:
        return {
            name: compute_growth(samples, SERVER_WARM_UP_S if name == "server" else ENGINE_WARM_UP_S)
            for name, samples in self.samples.items()
        }

    def as_json(self) -> dict[str, Any]:
        return {name: asdict(growth) for name, growth in self.growths().items()}


def take_sample(process: psutil.Process) -> Sample:
    with process.oneshot():
        return Sample(time.monotonic(), process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())


def compute_growth(samples: list[Sample], warm_up_s: float) -> Growth:
    """Compute the growth. A process that ended within its warm-up is shown but not judged."""
    warm = [sample for sample in samples if sample.at_s >= samples[0].at_s + warm_up_s] or samples
    first, last = _quarters(warm)
    floors = _floors(warm)
    first_floors, last_floors = _quarters(floors)
    slope = 0.0
    if len(floors) > 1:
        slope = statistics.linear_regression([s.at_s for s in floors], [s.memory_mib for s in floors]).slope
    return Growth(
        samples=0 if warm is samples else len(warm),
        memory_mib_per_hour=slope * 3600,
        memory_first_mib=statistics.median(s.memory_mib for s in first_floors),
        memory_last_mib=statistics.median(s.memory_mib for s in last_floors),
        files_first=statistics.median(s.files for s in first),
        files_last=statistics.median(s.files for s in last),
        threads_first=statistics.median(s.threads for s in first),
        threads_last=statistics.median(s.threads for s in last),
    )


def _floors(samples: list[Sample]) -> list[Sample]:
    """Select the sample with the least memory in each minute."""
    minutes: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        minutes[int((sample.at_s - samples[0].at_s) / FLOOR_WINDOW_S)].append(sample)
    return [min(minute, key=lambda sample: sample.memory_mib) for minute in minutes.values()]


def _quarters(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Return the first and the last quarter."""
    quarter = max(1, len(samples) // 4)
    return samples[:quarter], samples[-quarter:]


def spool_files(pid: int, directory: Path) -> int:
    """Count the spool's files: those with a name, and those that only an open descriptor keeps."""
    count = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(descriptor).startswith(str(directory))
        except OSError:
            continue
    return count + len(list(directory.iterdir()))
