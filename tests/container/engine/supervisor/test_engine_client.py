"""The server's side of an engine, with engines that behave as a real one never should."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from container.engine.messages import EngineConfig
from container.engine.sequence import EngineError, Sampling, Sequence
from container.engine.supervisor.crash_budget import CrashBudget
from container.engine.supervisor.engine_client import EngineClient

ENGINE = """
import msgspec, os, pathlib, resource, select, signal, socket, struct, sys, time
from container.engine.messages import Crashed, EngineInfo, NewTokens, Ready, Step, Submit, to_engine
from container.processes.child_process import encode

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
server = socket.socket(fileno=int(sys.argv[1]))
stream = server.makefile("rb", buffering=0)

def receive():
    header = stream.read(4)
    if not header:
        sys.exit()
    (length,) = struct.unpack("<I", header)
    body = b""
    while len(body) < length:
        body += stream.read(length - len(body))
    return to_engine.decode(body)

config = receive().config
info = EngineInfo(
    model_type="fake", device="cpu", dtype="float32", attention="none", threads=1, vocab_size=9, max_model_len=999,
    kv_cache_tokens=config.kv_cache_tokens or 4096, max_sequence_tokens=min(999, config.kv_cache_tokens or 4096),
    max_batch_tokens=config.max_batch_tokens or 256, max_running=9, load_seconds=0,
)
server.sendall(encode(Ready(info)))
"""
# Each step gives each sequence the number of tokens that it has.
WORKS = (
    ENGINE
    + """
outputs, wanted, steps = {}, {}, 0
while True:
    while not outputs or select.select([server], [], [], 0)[0]:
        message = receive()
        if isinstance(message, Submit):
            DIES
            outputs[message.id] = list(message.output_ids)
            wanted[message.id] = message.sampling.max_new_tokens
        else:
            outputs.pop(message.id, None)
    time.sleep(0.001)  # what a step takes
    for id in outputs:
        outputs[id].append(len(outputs[id]))
    ended = [id for id in outputs if len(outputs[id]) == wanted[id]]
    steps += 1
    new = [NewTokens(id, outputs[id][-1:], "length" if id in ended else None) for id in outputs]
    server.sendall(encode(Step(steps=steps, tokens=new)))
    for id in ended:
        del outputs[id]
"""
)
# No fake can be killed by the kernel: it dies with last words, or of a poisonous prompt [13].
RUNS_OUT_AT_WORK = WORKS.replace(
    "DIES", "config.max_batch_tokens == 64 or [server.sendall(encode(Crashed('OutOfMemoryError: CUDA'))), os._exit(1)]"
)
RUNS_OUT_AT_ITS_START = RUNS_OUT_AT_WORK.replace(
    "server.sendall(encode(Ready(info)))",
    """
if config.kv_cache_tokens > 1024:
    server.sendall(encode(Crashed("RuntimeError: DefaultCPUAllocator: can't allocate memory"))), os._exit(1)
server.sendall(encode(Ready(info)))
""",
).replace("max_batch_tokens == 64", "kv_cache_tokens == 1024")
DIES_OF_13 = WORKS.replace("DIES", "13 in message.prompt_ids and os.abort()")
CLOSES_AND_LIVES_ON = ENGINE + "receive(); server.shutdown(socket.SHUT_RDWR); signal.pause()"
TALKS_NONSENSE = ENGINE + "server.sendall(b'\\x01\\0\\0\\0?'); signal.pause()"
ANSWERS = (
    ENGINE + "receive(); server.sendall(encode(Step(steps=1, tokens=[NewTokens(0, [7], 'length')]))); signal.pause()"
)
FALLS_SILENT = ENGINE + "receive(); signal.pause()"
TELLS_ITS_PATH = ENGINE.replace("Ready(info)", "Refused(repr(os.environ.get('LD_LIBRARY_PATH')))").replace(
    "import Crashed", "import Crashed, Refused"
)

SOON = CrashBudget(crashes=1, within_s=600, first_delay_s=0.01)


class Life:
    """A client, and what it told the owner of its sequences."""

    def __init__(
        self,
        tmp_path: Path,
        program: str | None,
        *,
        library_path: str | None = None,
        stall_timeout_s: float = 60,
        budget: CrashBudget = SOON,
        **config: Any,
    ) -> None:
        script = tmp_path / "engine.py"
        script.write_text(program or "")
        command = (sys.executable, str(script)) if program is not None else ("/no/such/program",)
        self.when_changed: Callable[[], None] = lambda: None
        self.ended: list[object] = []
        self.resubmitted: list[int] = []
        self.client = EngineClient(
            EngineConfig(model_dir=".", **config),
            stall_timeout_s=stall_timeout_s,
            library_path=library_path,
            budget=budget,
            command=command,
            on_change=lambda: self.when_changed(),
            on_resubmit=self.resubmitted.append,
        )

    def submit(self, *prompt_ids: int, max_new_tokens: int = 1) -> Sequence:
        def on_tokens(new: int) -> None:
            if sequence.finish_reason is not None:
                self.ended.append(list(sequence.output_ids))

        def on_error(error: EngineError) -> None:
            self.ended.append(error)

        sampling = Sampling(max_new_tokens=max_new_tokens)
        sequence = Sequence(array("I", prompt_ids or [1]), sampling, owner=self, on_tokens=on_tokens, on_error=on_error)
        self.client.submit(sequence)
        return sequence

    async def until_ended(self, sequences: int) -> None:
        await self.until(lambda: len(self.ended) == sequences)

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
            assert (engine.ended, sequence.finish_reason, len(engine.client.sequences)) == ([[7]], "length", 0)

    asyncio.run(scenario())


def test_failing_listener_ends_own_sequence_only(tmp_path: Path) -> None:
    class Panic(BaseException):
        """A panic as native code raises it in Python."""

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
            assert engine.client.can_take_work and not engine.client.sequences

    asyncio.run(scenario())


def test_engine_without_connection_gets_no_work(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, CLOSES_AND_LIVES_ON) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.submit()
            await engine.until(lambda: not engine.client.can_take_work)
            assert engine.client.state == "ready"  # its exit status is still waited for
            await engine.until(lambda: engine.client.state == "failed")  # the next one is no better
            assert "closed its connection but did not exit" in str(engine.ended[0])

    asyncio.run(scenario())


def test_undecodable_message_ends_engine(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, TALKS_NONSENSE) as engine:
            await engine.until(lambda: engine.client.state == "failed")
            assert "the engine died 2 times" in str(engine.client.reason)

    asyncio.run(scenario())


def test_failed_starts_spend_the_crash_budget(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, None) as engine:
            await engine.until(lambda: engine.client.state == "failed")
            assert "FileNotFoundError" in str(engine.client.reason)

    asyncio.run(scenario())


def test_silent_engine_with_work_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, FALLS_SILENT, stall_timeout_s=0.1) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.submit()
            await engine.until(lambda: engine.ended)
            assert "no step for" in str(engine.ended[0])

    asyncio.run(scenario())


def test_a_cancelled_sequence_hears_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, CLOSES_AND_LIVES_ON) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.client.cancel(engine.submit())
            await engine.until(lambda: engine.client.state == "recovering")
            assert engine.ended == []

    asyncio.run(scenario())


@pytest.mark.parametrize("state", ["starting", "ready"])
def test_stop_fails_sequences_and_leaves_no_process(tmp_path: Path, state: str) -> None:
    async def scenario() -> Life:
        async with life(tmp_path, FALLS_SILENT) as engine:
            if state == "ready":
                await engine.until(lambda: engine.client.can_take_work)
                engine.submit()
        return engine

    ended = asyncio.run(scenario()).ended
    assert [str(error) for error in ended] == ["the server is shutting down"] * (state == "ready")


@pytest.mark.parametrize(("given", "told"), [(None, "/ours"), ("/compat:/ours", "/compat:/ours"), ("", "")])
def test_library_path_is_given_or_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, told: str
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/ours")

    async def scenario() -> None:
        async with life(tmp_path, TELLS_ITS_PATH, library_path=given) as engine:
            await engine.until(lambda: engine.client.state == "failed")
            assert engine.client.reason == repr(told)

    asyncio.run(scenario())


PATIENT = CrashBudget(first_delay_s=0.01)


def engine_pid(engine: Life) -> int:
    assert engine.client.pid is not None
    return engine.client.pid


def test_next_engine_continues_unfinished_sequences(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, WORKS.replace("DIES", "pass"), budget=PATIENT) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            sequences = [engine.submit(max_new_tokens=300) for _ in range(3)]
            await engine.until(lambda: len(sequences[0].output_ids) > 20)
            engine.client.cancel(sequences[2])
            os.kill(engine_pid(engine), signal.SIGKILL)
            await engine.until_ended(2)
            assert engine.ended == [list(range(300))] * 2 and engine.resubmitted == [2]

    asyncio.run(scenario())


def test_sequence_that_kills_engines_fails_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with life(tmp_path, DIES_OF_13, budget=PATIENT) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            for prompt in (1, 2, 13, 3, 13, 4):
                engine.submit(prompt, max_new_tokens=30)
            await engine.until_ended(6)
            errors = [error for error in engine.ended if isinstance(error, EngineError)]
            assert [error.code for error in errors] == ["engine_killed_by_item"] * 2
            assert [output for output in engine.ended if output not in errors] == [list(range(30))] * 4
            assert "nothing else at work: killed by signal 6" in str(errors[0])
            await engine.until(lambda: engine.client.can_take_work)

    asyncio.run(scenario())
    deaths = [record for record in caplog.records if getattr(record, "action", None) == "engine_died"]
    assert len(deaths) == 4, "two of both, and one of each alone"


def test_repeated_poison_does_not_end_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, DIES_OF_13, budget=PATIENT) as engine:
            for number in range(1, 4):
                await engine.until(lambda: engine.client.can_take_work)
                engine.submit(13)
                await engine.until_ended(2 * number - 1)
                await engine.until(lambda: engine.client.can_take_work)
                engine.submit(1)
                await engine.until_ended(2 * number)
            assert [isinstance(end, EngineError) for end in engine.ended] == [True, False] * 3

    asyncio.run(scenario())


def test_engine_dying_of_everything_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, WORKS.replace("DIES", "os.abort()"), budget=PATIENT) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            for _ in range(9):
                engine.submit()
            await engine.until(lambda: engine.client.state == "failed")
            assert len(engine.ended) == 9 and "before it had generated anything" in str(engine.client.reason)

    asyncio.run(scenario())


def test_suspect_cancelled_in_isolation_delays_none(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with life(tmp_path, DIES_OF_13, budget=PATIENT) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            poison = engine.submit(13)
            engine.submit(1)
            cancelled: list[Sequence] = []

            def cancel_in_isolation() -> None:
                if engine.client.state == "ready" and not engine.client.can_take_work and not cancelled:
                    cancelled.append(poison)
                    engine.client.cancel(poison)

            engine.when_changed = cancel_in_isolation
            await engine.until(lambda: engine.ended)
            assert cancelled and engine.ended == [[0]] and not engine.client.sequences
            await engine.until(lambda: engine.client.can_take_work)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("program", "config", "sizes"),
    [
        (RUNS_OUT_AT_WORK, {}, (64, 4096)),
        (RUNS_OUT_AT_WORK, {"max_batch_tokens": 100, "kv_cache_tokens": 2000}, (64, 2000)),
        (RUNS_OUT_AT_ITS_START, {"kv_cache_tokens": 4096}, (256, 1024)),
    ],
    ids=["at work", "at work, by settings", "at its start"],
)
def test_engine_after_memory_shortage_is_smaller(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, program: str, config: dict[str, int], sizes: tuple[int, int]
) -> None:
    async def scenario() -> None:
        async with life(tmp_path, program, budget=PATIENT, **config) as engine:
            await engine.until(lambda: engine.client.can_take_work)
            engine.submit(max_new_tokens=100)
            await engine.until(lambda: engine.ended)
            assert engine.ended == [list(range(100))] and engine.client.info is not None
            assert (engine.client.info.max_batch_tokens, engine.client.info.kv_cache_tokens) == sizes

    asyncio.run(scenario())
    assert "ran out of memory: the next one starts with" in caplog.text
