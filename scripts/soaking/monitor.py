"""What the processes hold: memory, files and threads, sampled all along, and whether that grows."""

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

EVERY_S = 2.0
EDGE_WARM_UP_S = 120.0
ENGINE_WARM_UP_S = 600.0
"""Not judged: allocators and caches fill, an engine's with a kernel for each number of rows, up to a bound that
`container/engine/supervisor/environment.py` sets: steep for about ten minutes."""
FEWEST_SAMPLES = 150
"""After it, five minutes: what lived for less tells nothing."""
FLOOR_S = 60.0
"""Of memory, the least in each such time is judged: what is held, and not what a step takes and gives back at once (the
logits of a step of many rows are 50 MiB)."""
MEMORY_MIB_PER_HOUR = 48.0
MEMORY_MIB = 12.0
"""Memory grows if its slope is above the first and the last quarter's median lies above the first's by the second."""
FILES = 8
THREADS = 4
"""The last quarter's median may lie above the first's by so many."""


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    memory_mib: float
    files: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Of one process after its warm-up. Quarters are medians; of memory, those of each minute's least."""

    samples: int
    """After the warm-up."""
    memory_mib_per_hour: float
    memory_first_mib: float
    memory_last_mib: float
    files_first: float
    files_last: float
    threads_first: float
    threads_last: float

    def faults(self) -> list[str]:
        if self.samples < FEWEST_SAMPLES:
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


class Watch:
    """Owns the samples of every process that was seen: the edge, and each engine by its pid."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._edge = psutil.Process(server.process.pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample_on, daemon=True)
        self.samples: dict[str, list[Sample]] = defaultdict(list)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _sample_on(self) -> None:
        while not self._over.wait(EVERY_S):
            self._sample("edge", self._edge)
            if (engine := self._server.engine) is not None:
                self._sample(f"engine {engine.pid}", engine)

    def _sample(self, name: str, process: psutil.Process) -> None:
        try:
            sample = sampled(process)
        except psutil.Error:  # it died in between
            return
        self.samples[name].append(sample)

    def memory_mib(self) -> str:
        """The newest of each process that is alive."""
        newest = [(name.split()[0], samples[-1]) for name, samples in list(self.samples.items())]
        alive = [(name, s) for name, s in newest if s.at_s > time.monotonic() - 2 * EVERY_S]
        return ", ".join(f"{name} {sample.memory_mib:.0f} MiB" for name, sample in alive)

    def growths(self) -> dict[str, Growth]:
        return {
            name: growth(samples, EDGE_WARM_UP_S if name == "edge" else ENGINE_WARM_UP_S)
            for name, samples in self.samples.items()
        }

    def as_json(self) -> dict[str, Any]:
        return {name: asdict(growth) for name, growth in self.growths().items()}


def sampled(process: psutil.Process) -> Sample:
    with process.oneshot():
        return Sample(time.monotonic(), process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())


def growth(samples: list[Sample], warm_up_s: float) -> Growth:
    """What there is is told, too, of a process that didn't outlive its warm-up."""
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
    """The one with the least memory in each minute."""
    minutes: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        minutes[int((sample.at_s - samples[0].at_s) / FLOOR_S)].append(sample)
    return [min(minute, key=lambda sample: sample.memory_mib) for minute in minutes.values()]


def _quarters(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The first and the last."""
    quarter = max(1, len(samples) // 4)
    return samples[:quarter], samples[-quarter:]


def spool_files(pid: int, directory: Path) -> int:
    """Those with a name, and those that only an open descriptor keeps."""
    held = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            held += os.readlink(descriptor).startswith(str(directory))
        except OSError:
            continue
    return held + len(list(directory.iterdir()))
