"""Where runs take place: directories, models, servers in peace, an emulated S3, and the servers of one run."""

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
from testing.tiny_model import save_tiny_model

from .answer_line import Told
from .batch import Shape, Work, drawn
from .call import Answer
from .reference_server import MAX_MODEL_LEN, Peace, Undisturbed

SMOLLM2 = ROOT / ".models/SmolLM2-135M-Instruct"
BUCKET = "soak"
TOKENS = "longhaul_generation_tokens_total"
STEPS_IN_FLIGHT = 2
WRITE_S = 1.0
"""That a checkpoint may take: what is generated meanwhile is in the next one."""


class Ground:
    """Owns what all runs share. `close` it."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.directory = directory
        self.options = options
        self._undisturbed: dict[str, Undisturbed] = {}
        self._emulator: Emulator | None = None
        self._kept: dict[str, Server] = {}
        self._tiny = directory / "model"
        save_tiny_model(self._tiny, SMOLLM2)

    def model_dir(self, model: str) -> Path:
        return self._tiny if model == "tiny" else SMOLLM2

    def undisturbed(self, model: str = "tiny") -> Undisturbed:
        if model not in self._undisturbed:
            (own := self.directory / f"undisturbed-{model}").mkdir()
            share = 0.05 if model == "tiny" else 0.5
            self._undisturbed[model] = Undisturbed(self.model_dir(model), own, settings_of(model), share)
        return self._undisturbed[model]

    @property
    def all_undisturbed(self) -> dict[str, Undisturbed]:
        return self._undisturbed

    @property
    def emulator(self) -> Emulator:
        if self._emulator is None:
            self._emulator = Emulator(self.directory)
            self._emulator.client("s3").create_bucket(Bucket=BUCKET)
        return self._emulator

    def kept(self, name: str) -> Server:
        """The server of all runs that do it no harm, by the name of their scenario."""
        if name not in self._kept:
            (own := self.directory / f"kept-{name}").mkdir()
            settings = settings_of("tiny") | {"LONGHAUL_CHECKPOINT_URI": own / "journal"}
            self._kept[name] = Server(self._tiny, own / "log", **settings)
        return self._kept[name].wait_until_ready()

    def end_kept(self) -> None:
        """The next run gets new ones."""
        for name, server in self._kept.items():
            server.close()
            (self.directory / f"kept-{name}").rename(self.directory / f"ended-{name}-{time.monotonic_ns()}")
        self._kept = {}

    def close(self) -> None:
        self.end_kept()
        for one in self._undisturbed.values():
            one.close()
        if self._emulator is not None:
            self._emulator.close()


def settings_of(model: str) -> dict[str, Any]:
    """All that a server is told but where its journal lies."""
    settings: dict[str, Any] = {"LONGHAUL_DTYPE": "float32", "LONGHAUL_MAX_MODEL_LEN": MAX_MODEL_LEN}
    return settings | ({"LONGHAUL_THREADS": 2} if model != "tiny" else {})


class Run:
    """Owns the servers of one run, and what is drawn for it."""

    def __init__(self, ground: Ground, scenario: str, number: int, seed: int) -> None:
        self.ground = ground
        self.scenario = scenario
        self.number = number
        self.name = f"{scenario}-{number}-{seed}"
        """Fit for a job's."""
        self.draw = random.Random(f"{seed} {scenario} {number}")
        self.facts: dict[str, Any] = {}
        self.directory = ground.directory / self.name
        self.directory.mkdir()
        self._seed = seed
        self._servers: list[Server] = []
        self.open = contextlib.ExitStack()
        """Closed with the run."""

    @property
    def journal_dir(self) -> Path:
        return self.directory / "journal"

    def s3_settings(self, url: str | None = None) -> dict[str, Any]:
        """A journal in the emulated S3, or behind the URL of what is in front of it."""
        return {
            "LONGHAUL_CHECKPOINT_URI": f"s3://{BUCKET}/{self.name}",
            "AWS_ENDPOINT_URL": url or self.ground.emulator.url,
            "AWS_ACCESS_KEY_ID": "000000000000",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
        }

    def start(self, model: str = "tiny", **settings: Any) -> Server:
        """A server with this run's journal, ready. It ends with the run."""
        whole = settings_of(model) | {"LONGHAUL_CHECKPOINT_URI": self.journal_dir} | settings
        log = self.directory / f"log-{len(self._servers)}"
        server = Server(self.ground.model_dir(model), log, **whole)
        self._servers.append(server)
        return server.wait_until_ready()

    def work(self, shape: Shape, *, of: int | None = None) -> Work:
        """This run's own batch, or one of so many that all runs of a seed share."""
        number = self.number if of is None else self.number % of
        return drawn(f"{self._seed} {self.scenario} {number}", shape)

    def peace(self, work: Work, model: str = "tiny") -> Peace:
        return self.ground.undisturbed(model).of(work)

    def check(
        self, work: Work, answer: Answer, model: str = "tiny", *, but: frozenset[int] = frozenset()
    ) -> list[Told]:
        """Its lines. Raises Wrong unless it is whole, and equal to the undisturbed run's."""
        lines = answer.lines
        self.ground.undisturbed(model).check(work, lines, but=but)
        return lines

    def close(self) -> None:
        self.open.close()
        for server in self._servers:
            kill_container(server)
            server.close()

    def forget(self) -> None:
        """Its files, where nobody will want to read them."""
        shutil.rmtree(self.directory, ignore_errors=True)


def engine_of(server: Server) -> psutil.Process:
    def found() -> psutil.Process | None:
        assert server.process.poll() is None, "the edge has ended"
        return server.engine

    engine = eventually(found)
    assert engine is not None
    return engine


def kill_container(server: Server) -> None:
    """All its processes at once, as a container's end does."""
    with contextlib.suppress(psutil.Error):
        edge = psutil.Process(server.process.pid)
        edge.suspend()  # so that it starts nothing meanwhile
        for child in edge.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    server.process.kill()
    server.process.wait()


def logged(server: Server, action: str) -> list[dict[str, Any]]:
    """The log's lines of that action. A last line may be half written."""
    return [line for line in _lines(server) if line.get("action") == action]


def _lines(server: Server) -> Iterator[dict[str, Any]]:
    for text in server.log().splitlines():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line
