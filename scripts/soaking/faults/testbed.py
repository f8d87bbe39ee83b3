"""The testbed of all runs: directories, models, reference servers, an emulated S3, and the servers of one run."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from testing import ROOT
from testing.emulator import Emulator
from testing.server import Server, eventually
from testing.tiny_models import save_tiny_model

from .answer_line import AnswerLine
from .batch import Batch, Shape, draw_batch
from .call import Answer
from .reference_server import MAX_MODEL_LEN, ReferenceAnswer, ReferenceServer

SMOLLM2 = ROOT / ".models/SmolLM2-135M-Instruct"
BUCKET = "soak"
TOKENS = "longhaul_generation_tokens_total"
STEPS_IN_FLIGHT = 2
WRITE_S = 1.0
"""Seconds that writing a checkpoint may take; tokens generated meanwhile are in the next one."""


class Testbed:
    """Everything that all runs share, until `close`."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self._reference_servers: dict[str, ReferenceServer] = {}
        self._emulator: Emulator | None = None
        self._shared_servers: dict[str, Server] = {}
        self._tiny = directory / "model"
        save_tiny_model(self._tiny, SMOLLM2)

    def model_dir(self, model: str) -> Path:
        return self._tiny if model == "tiny" else SMOLLM2

    def reference_server(self, model: str = "tiny") -> ReferenceServer:
        if model not in self._reference_servers:
            (own := self.directory / f"undisturbed-{model}").mkdir()
            share = 0.05 if model == "tiny" else 0.5
            self._reference_servers[model] = ReferenceServer(self.model_dir(model), own, server_settings(model), share)
        return self._reference_servers[model]

    @property
    def reference_servers(self) -> dict[str, ReferenceServer]:
        return self._reference_servers

    @property
    def emulator(self) -> Emulator:
        if self._emulator is None:
            self._emulator = Emulator(self.directory)
            self._emulator.client("s3").create_bucket(Bucket=BUCKET)
        return self._emulator

    def shared_server(self, name: str) -> Server:
        """Return the scenario's server for runs that do no harm, started at the first call."""
        if name not in self._shared_servers:
            (own := self.directory / f"shared-{name}").mkdir()
            settings = server_settings("tiny") | {"LONGHAUL_CHECKPOINT_URI": own / "journal"}
            self._shared_servers[name] = Server(self._tiny, own / "log", **settings)
        return self._shared_servers[name].wait_until_ready()

    def end_shared_servers(self) -> None:
        """End the shared servers, so that the next run gets new ones."""
        for name, server in self._shared_servers.items():
            server.close()
            (self.directory / f"shared-{name}").rename(self.directory / f"ended-{name}-{time.monotonic_ns()}")
        self._shared_servers = {}

    def close(self) -> None:
        self.end_shared_servers()
        for server in self._reference_servers.values():
            server.close()
        if self._emulator is not None:
            self._emulator.close()


def server_settings(model: str) -> dict[str, Any]:
    """Return the settings of a server except the place of its journal."""
    settings: dict[str, Any] = {"LONGHAUL_DTYPE": "float32", "LONGHAUL_MAX_MODEL_LEN": MAX_MODEL_LEN}
    return settings | ({"LONGHAUL_THREADS": 2} if model != "tiny" else {})


class Run:
    """One run of a scenario, with its servers and its random choices."""

    def __init__(self, testbed: Testbed, scenario: str, number: int, seed: int) -> None:
        self.testbed = testbed
        self.scenario = scenario
        self.number = number
        self.name = f"{scenario}-{number}-{seed}"
        """Name of the run, which can be a job's name."""
        self.draw = random.Random(f"{seed} {scenario} {number}")
        self.facts: dict[str, Any] = {}
        self.directory = testbed.directory / self.name
        self.directory.mkdir()
        self._seed = seed
        self._servers: list[Server] = []
        self.open = contextlib.ExitStack()
        """Callbacks that are called when the run is closed."""

    @property
    def journal_dir(self) -> Path:
        return self.directory / "journal"

    def s3_settings(self, url: str | None = None) -> dict[str, Any]:
        """Return settings for a journal in the emulated S3, or behind a proxy's URL."""
        return {
            "LONGHAUL_CHECKPOINT_URI": f"s3://{BUCKET}/{self.name}",
            "AWS_ENDPOINT_URL": url or self.testbed.emulator.url,
            "AWS_ACCESS_KEY_ID": "000000000000",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
        }

    def start(self, model: str = "tiny", **settings: Any) -> Server:
        """Start a server with this run's journal and wait until it is ready. It ends with the run."""
        whole = server_settings(model) | {"LONGHAUL_CHECKPOINT_URI": self.journal_dir} | settings
        log = self.directory / f"log-{len(self._servers)}"
        server = Server(self.testbed.model_dir(model), log, **whole)
        self._servers.append(server)
        return server.wait_until_ready()

    def batch(self, shape: Shape, *, shared: int | None = None) -> Batch:
        """Draw this run's own batch, or one of the `shared` batches that all runs of a seed share."""
        number = self.number if shared is None else self.number % shared
        return draw_batch(f"{self._seed} {self.scenario} {number}", shape)

    def reference(self, batch: Batch, model: str = "tiny") -> ReferenceAnswer:
        return self.testbed.reference_server(model).answer_to(batch)

    def check(
        self, batch: Batch, answer: Answer, model: str = "tiny", *, but: frozenset[int] = frozenset()
    ) -> list[AnswerLine]:
        """Parse the answer's lines. Raise CheckFailed unless it is whole and equal to the undisturbed one."""
        lines = answer.lines
        self.testbed.reference_server(model).check(batch, lines, but=but)
        return lines

    def close(self) -> None:
        self.open.close()
        for server in self._servers:
            kill_container(server)
            server.close()

    def delete_files(self) -> None:
        """Delete the run's files."""
        shutil.rmtree(self.directory, ignore_errors=True)


def wait_for_engine(server: Server) -> psutil.Process:
    def found() -> psutil.Process | None:
        assert server.process.poll() is None, "the server process has ended"
        return server.engine

    engine = eventually(found)
    assert engine is not None
    return engine


def kill_container(server: Server) -> None:
    """Kill all processes at once, as the end of a container does."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(server.process.pid)
        process.suspend()  # a stopped process starts no new one meanwhile
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    server.process.kill()
    server.process.wait()


def log_lines(server: Server, action: str) -> list[dict[str, Any]]:
    """Return the log's lines of one action. A last line may be half written."""
    return [line for line in _parsed_lines(server) if line.get("action") == action]


def _parsed_lines(server: Server) -> Iterator[dict[str, Any]]:
    for text in server.log().splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line
