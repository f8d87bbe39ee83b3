"""Batches on an engine that generates a given script."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from container.core import Item
from container.disk.ordered_spool import OrderedSpool
from container.disk.spool import Spool
from container.engine.sequence import Sequence
from container.errors import RequestError
from container.invocations.batch_runner import BatchRunner
from container.invocations.deadline import Deadline
from container.invocations.invocation import Invocation
from container.invocations.service import Service
from container.server.exchange import Endpoint, Exchanges
from container.server.state import ServerState
from container.settings import Settings
from container.telemetry.progress import Progress, TakeSnapshot
from container.tokenization.preparer import Prepared
from container.tokenization.tokenizer import Tokenizer
from testing.container.scripted_engine import INFO, ScriptedEngine, scripted_service


@pytest.fixture(scope="module")
def tokenizer(model_dir: str) -> Tokenizer:
    return Tokenizer.load(model_dir, trust_remote_code=False)


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as workers:
        yield workers


class Counting:
    """Prepares items, and counts the texts that are not answered yet."""

    def __init__(self, service: Service) -> None:
        self._preparer = service.preparer
        self.on_their_way = self.most = 0

    def prepare(self, item: Item, random_seed: int, clock: float) -> Prepared:
        self.on_their_way += 1
        self.most = max(self.most, self.on_their_way)
        return self._preparer.prepare(item, random_seed, clock)


class Answers(OrderedSpool):
    """Calls `on_answer` after each answer."""

    def __init__(self, directory: Path, on_answer: Any) -> None:
        super().__init__(str(directory))
        self._on_answer = on_answer

    def put(self, number: int, record: bytes) -> None:
        super().put(number, record)
        self._on_answer()


async def run_batch(present: Callable[[], Service], lines: list[Any], answers: Answers, directory: Path) -> BatchRunner:
    return await run_bytes(present, "".join(json.dumps(line) + "\n" for line in lines).encode(), answers, directory)


async def run_bytes(present: Callable[[], Service], content: bytes, answers: Answers, directory: Path) -> BatchRunner:
    service = present()
    body = Spool(str(directory))
    body.append(content)
    body.flush()
    invocation = Invocation(service, Deadline(arrived=time.monotonic(), timeout_s=900, source="setting"))
    invocation.attachment = attachment = await service.jobs.attach(None, "digest")
    batch = BatchRunner(present, invocation, answers=answers, spool_dir=str(directory), max_line_bytes=1 << 20)
    try:
        await batch.run(body, attachment.constants)
    finally:
        invocation.close()
        invocation.release(is_answered=True)
        service.jobs.close()
        body.close()
        answers.close()
    return batch


def test_many_prompt_lines_are_bounded_by_weight(
    tokenizer: Tokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    async def run() -> None:
        service = scripted_service(ScriptedEngine([504], "length"), tokenizer, workers, tmp_path)
        counting = Counting(service)

        def answered() -> None:
            counting.on_their_way -= 1000

        counted = dataclasses.replace(service, preparer=cast(Any, counting))
        lines = [{"prompt": ["a"] * 1000, "max_tokens": 1}] * 8
        batch = await run_batch(lambda: counted, lines, Answers(tmp_path, answered), tmp_path)
        assert (batch.items, batch.failed) == (8, 0)
        assert 1000 <= counting.most <= 4000

    asyncio.run(run())


def test_later_lines_follow_present_engine_limits(
    tokenizer: Tokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """An engine with less memory replaces the first one while a batch is under way."""
    lengths: list[int] = []

    class Engine(ScriptedEngine):
        def submit(self, sequence: Sequence, *, newcomer: bool = False) -> None:
            lengths.append(sequence.max_tokens)
            super().submit(sequence, newcomer=newcomer)

    async def run() -> None:
        service = scripted_service(Engine([504], "length"), tokenizer, workers, tmp_path)
        service = dataclasses.replace(service, info=msgspec.structs.replace(INFO, max_running=1))
        smaller = dataclasses.replace(service.preparer, max_sequence_tokens=20)
        present = [service]
        answers = Answers(tmp_path, lambda: present.append(dataclasses.replace(service, preparer=smaller)))
        await run_batch(lambda: present[-1], [{"prompt": "a"}] * 64, answers, tmp_path)

    asyncio.run(run())
    assert (len(lengths), lengths[0], lengths[-1]) == (64, 51, 20)


def test_batch_without_spool_opens_no_invocation(
    tokenizer: Tokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    opened: list[TakeSnapshot] = []

    class Opened(Progress):
        def open(self, snapshot: TakeSnapshot) -> None:
            opened.append(snapshot)

        def close(self, snapshot: TakeSnapshot) -> None:
            opened.remove(snapshot)

    async def run() -> None:
        service = scripted_service(ScriptedEngine([], None), tokenizer, workers, tmp_path)
        service = dataclasses.replace(service, progress=Opened("log", service.metrics, dimensions={}))
        state = ServerState(Settings(spool_dir=str(tmp_path / "missing")))
        state.use(service)
        headers = [(b"content-type", b"application/jsonlines")]
        scope = {"type": "http", "path": "/invocations", "headers": headers, "state": {}}
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            raise AssertionError("the body is not read")

        await Endpoint(state, Exchanges(), "invocations")(scope, receive, send)
        assert sent[0]["status"] == 500
        service.jobs.close()
        assert not opened

    asyncio.run(run())


GOOD = b'{"prompt": "a", "max_tokens": 1}\n'
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "UTF-16": (GOOD.decode().encode("utf-16") * 2, "seems to be UTF-16; save it as UTF-8"),
    "a ZIP archive": (b"PK\x03\x04" + bytes(range(256)), "seems to be a ZIP archive"),
    "a JSON array": (b'[{"prompt": "a"},\n{"prompt": "b"}]\n', "seems to be a JSON array"),
    "an indented object": (b'{\n  "prompt": "a"\n}\n', "one JSON object over several lines"),
    "CSV": (b"id,prompt\n1,The sea is\n", "seems to be CSV"),
    "one torn line": (b'{"prompt": "a', "line 1 is not valid JSON: it ends within a value"),
    "values that are no objects": (b"\n5\n[]\n", "line 2 must be a JSON object; expected is one JSON object a line"),
    "one line over the limit": (b'{"prompt": "' + b"a" * (1 << 20) + b'"}', "line 1 is longer than 1048576 bytes"),
}


def run_content(
    content: bytes, tokenizer: Tokenizer, workers: ThreadPoolExecutor, directory: Path
) -> tuple[BatchRunner | None, RequestError | None]:
    """Return the batch, or the error that ended it."""

    async def run() -> BatchRunner:
        service = scripted_service(ScriptedEngine([504], "length"), tokenizer, workers, directory)
        return await run_bytes(lambda: service, content, Answers(directory, lambda: None), directory)

    try:
        return asyncio.run(run()), None
    except RequestError as error:
        return None, error


@pytest.mark.parametrize("name", UNREADABLE)
def test_batch_without_readable_line_is_refused(
    name: str, tokenizer: Tokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    content, what = UNREADABLE[name]
    _, error = run_content(content, tokenizer, workers, tmp_path)
    assert error is not None and (error.status, error.code) == (400, "unreadable_batch")
    assert what in error.message and error.param is not None and error.param.startswith("line ")
    batch, _ = run_content(content + b"\n" + GOOD, tokenizer, workers, tmp_path)
    assert batch is not None and batch.failed == batch.items - 1  # with a line that can be read, each fails alone


@pytest.mark.parametrize("content", [b'{"typo": 1}\n', b'{"prompt": ""}\n{"custom_id": "a"}\nnonsense\n'])
def test_lines_with_bad_fields_fail_alone(
    content: bytes, tokenizer: Tokenizer, workers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    batch, _ = run_content(content, tokenizer, workers, tmp_path)
    assert batch is not None and batch.failed == batch.items > 0


def test_torn_copy_takes_no_name(tokenizer: Tokenizer, workers: ThreadPoolExecutor, tmp_path: Path) -> None:
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": ' + GOOD[:-1] + b"}\n"
    batch, _ = run_content(line[:-20] + b"\n" + line, tokenizer, workers, tmp_path)
    assert batch is not None and (batch.items, batch.failed) == (2, 1)
