"""A `./serve` process to measure: its address, its memory, and how quickly it answers `/ping` meanwhile."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from testing import ROOT

_INTERVAL_S = 0.02


class Served:
    """A server, started when it is made and ended by `close`. Its journal is its own, so that it continues no
    other's work. `checkout` is the folder whose `./serve` it is."""

    def __init__(self, model_dir: Path, checkout: Path = ROOT, **settings: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._checkpoints = tempfile.TemporaryDirectory(prefix="longhaul-bench-")
        environment = os.environ | {
            "LONGHAUL_CHECKPOINT_URI": f"{self._checkpoints.name}/journal",
            "LONGHAUL_MODEL": str(model_dir),
            "LONGHAUL_PORT": str(self.port),
            "LONGHAUL_LOG_LEVEL": "WARNING",
        }
        environment |= {name: str(value) for name, value in settings.items()}
        self.process = subprocess.Popen([checkout / "serve"], cwd=checkout, env=environment)
        while self._ping() != 200:
            if self.process.poll() is not None:
                sys.exit("the server ended before it was ready")
            time.sleep(0.2)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)

    def _ping(self) -> int:
        connection = self.connect()
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """Watch memory and `/ping` while the body of the `with` runs."""
        watch = Watch(psutil.Process(self.process.pid).memory_info().rss)
        over = threading.Event()
        threads = [
            threading.Thread(target=self._watch_memory, args=(watch, over)),
            threading.Thread(target=self._watch_pings, args=(watch, over)),
        ]
        for thread in threads:
            thread.start()
        try:
            yield watch
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _watch_memory(self, watch: Watch, over: threading.Event) -> None:
        process = psutil.Process(self.process.pid)
        while not over.wait(_INTERVAL_S):
            watch.rss_peak = max(watch.rss_peak, process.memory_info().rss)

    def _watch_pings(self, watch: Watch, over: threading.Event) -> None:
        connection = self.connect()
        while not over.wait(_INTERVAL_S):
            started = time.perf_counter()
            connection.request("GET", "/ping")
            response = connection.getresponse()
            response.read()
            watch.pings_s.append(time.perf_counter() - started)
            watch.bad_pings += response.status != 200
        connection.close()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self._checkpoints.cleanup()


@dataclass(slots=True)
class Watch:
    """Resident memory of the server process in bytes, and the seconds that each ping took."""

    rss_before: int
    rss_peak: int = 0
    pings_s: list[float] = field(default_factory=list)
    bad_pings: int = 0

    @property
    def growth_mb(self) -> float:
        return (self.rss_peak - self.rss_before) / 1e6

    @property
    def ping_p99_ms(self) -> float:
        return 1e3 * statistics.quantiles(self.pings_s, n=100)[98]

    @property
    def ping_max_ms(self) -> float:
        return 1e3 * max(self.pings_s)
