"""The edge's side of an engine, with engines that behave as no real one should."""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from container.engine.client import CrashBudget, EngineClient
from container.engine.messages import EngineConfig
from container.engine.sequence import EngineError, Sampling, Sequence

ENGINE = """
import os, signal, socket, struct, sys, time
from container.engine.messages import EngineInfo, NewTokens, Ready, Step, encode

info = EngineInfo(
    model_type="fake", device="cpu", dtype="float32", attention="none", threads=1, vocab_size=9, max_model_len=9,
    kv_cache_tokens=9, max_sequence_tokens=9, max_batch_tokens=9, max_running=9, load_seconds=0,
)
edge = socket.socket(fileno=int(sys.argv[1]))
stream = edge.makefile("rb")

def receive():
    (length,) = struct.unpack("<I", stream.read(4))
    return stream.read(length)

receive()
edge.sendall(encode(Ready(info)))
"""
DIES_WITHOUT_DYING = ENGINE + "receive(); edge.shutdown(socket.SHUT_RDWR); signal.pause()"
TALKS_NONSENSE = ENGINE + "edge.sendall(b'\\x01\\0\\0\\0?'); signal.pause()"
ANSWERS = (
    ENGINE + "receive(); edge.sendall(encode(Step(steps=1, tokens=[NewTokens(0, [7], 'length')]))); signal.pause()"
)
FALLS_SILENT = ENGINE + "receive(); signal.pause()"
TELLS_ITS_PATH = ENGINE.replace("Ready(info)", "Refused(repr(os.environ.get('LD_LIBRARY_PATH')))").replace(
    "import EngineInfo", "import EngineInfo, Refused"
)

SOON = CrashBudget(crashes=1, within_s=600, first_delay_s=0.01)


class Life:
    """A client and what it told its owner."""

    def __init__(
        self, tmp_path: Path, program: str | None, *, library_path: str | None = None, stall_timeout_s: float = 60
    ) -> None:
        script = tmp_path / "engine.py"
        script.write_text(program or "")
        command = (sys.executable, str(script)) if program is not None else ("/no/such/program",)
        self.changed = asyncio.Event()
        self.ended: list[object] = []
        self.client = EngineClient(
            EngineConfig(model_dir="."),
            stall_timeout_s=stall_timeout_s,
            library_path=library_path,
            budget=SOON,
            command=command,
            on_change=self.changed.set,
        )

    def submit(self) -> Sequence:
        def on_tokens(new: int) -> None:
            self.ended.append(list(sequence.output_ids))

        def on_error(error: EngineError) -> None:
            self.ended.append(error)

        sampling = Sampling(max_new_tokens=1)
        sequence = Sequence(array("I", [1]), sampling, owner=self, on_tokens=on_tokens, on_error=on_error)
        self.client.submit(sequence)
        return sequence

    async def until(self, question: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not question():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def life(tmp_path: Path, program: str | None, **options: Any) -> AsyncIterator[Life]:
    life = Life(tmp_path, program, **options)
    life.client.start()
    try:
        yield life
    finally:
        await life.client.stop()
        assert life.client.pid is None


def test_tokens_reach_their_sequence(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, ANSWERS) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            sequence = engine.submit()
            await engine.until(lambda: engine.ended)
            assert (engine.ended, sequence.finish_reason, engine.client.in_flight) == ([[7]], "length", 0)

    asyncio.run(scenario())


def test_a_listener_that_fails_ends_its_own_sequence_only(tmp_path: Path) -> None:
    class Panic(BaseException):
        """As native code's to Python."""

    def fail(new: int) -> None:
        raise Panic("with a text in it")

    async def scenario() -> None:
        async with life(tmp_path, ANSWERS) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.submit().on_tokens = fail
            await engine.until(lambda: engine.ended)
            (error,) = engine.ended
            assert isinstance(error, EngineError) and (error.code, str(error)) == (
                "sequence_failed",
                "internal error (Panic)",
            )
            assert engine.client.can_take_work and engine.client.in_flight == 0

    asyncio.run(scenario())


def test_no_work_is_given_to_an_engine_that_hung_up_but_lives_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, DIES_WITHOUT_DYING) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.submit()
            await engine.until(lambda: not engine.client.can_take_work)
            assert engine.client.state == "ready"  # its exit status is still waited for
            await engine.until(lambda: engine.ended)
            assert "killed by signal 9" in str(engine.ended[0])
            await engine.until(lambda: engine.client.can_take_work)  # the next one

    asyncio.run(scenario())


def test_an_engine_that_talks_nonsense_is_as_good_as_dead(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, TALKS_NONSENSE) as engine:
            await engine.until(lambda: engine.client.state == "failed")
            assert "the engine died 2 times" in str(engine.client.reason)

    asyncio.run(scenario())


def test_an_engine_that_can_not_be_started_spends_the_budget(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, None) as engine:
            await engine.until(lambda: engine.client.state == "failed")
            assert "FileNotFoundError" in str(engine.client.reason)

    asyncio.run(scenario())


def test_an_engine_with_work_that_falls_silent_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, FALLS_SILENT, stall_timeout_s=0.1) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.submit()
            await engine.until(lambda: engine.ended)
            assert "no step for" in str(engine.ended[0])

    asyncio.run(scenario())


def test_a_cancelled_sequence_hears_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, DIES_WITHOUT_DYING) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.client.cancel(engine.submit())
            await engine.until(lambda: engine.client.state == "recovering")
            assert engine.ended == []

    asyncio.run(scenario())


@pytest.mark.parametrize("state", ["starting", "ready"])
def test_stopping_fails_what_is_in_flight_and_leaves_no_process(tmp_path: Path, state: str) -> None:
    async def scenario() -> Life:
        async with life(tmp_path, FALLS_SILENT) as engine:
            if state == "ready":
                await engine.until(lambda: engine.client.can_take_work)
                engine.submit()
        return engine

    ended = asyncio.run(scenario()).ended
    assert [str(error) for error in ended] == ["the server is shutting down"] * (state == "ready")


@pytest.mark.parametrize(("given", "told"), [(None, "/ours"), ("/compat:/ours", "/compat:/ours"), ("", "")])
def test_the_engines_library_path_is_the_given_one_or_else_the_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, told: str
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/ours")

    async def scenario() -> None:
        async with life(tmp_path, TELLS_ITS_PATH, library_path=given) as engine:
            await engine.until(lambda: engine.client.state == "failed")
            assert engine.client.reason == repr(told)

    asyncio.run(scenario())
