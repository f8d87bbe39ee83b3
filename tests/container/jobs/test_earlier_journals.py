"""A journal that an earlier version wrote is read, and its jobs are resumed where they were."""

from __future__ import annotations

import asyncio
import json
import tarfile
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from container.engine.sequence import Sampling, Sequence, TokenLogprobs
from container.jobs.generation import Waiter
from container.jobs.generator import Generator
from container.jobs.registry import JobRegistry
from container.journal.job_reader import JobReader
from container.journal.merged_output import MergedOutput
from container.journal.segment import SHARED, GenerationKey, pack
from container.journal.stores.directory import DirectoryStore
from container.telemetry.metrics import Metrics
from container.tokenization.preparer import Prepared

DATA = Path(__file__).parent / "data"
JOBS: list[dict[str, Any]] = json.loads((DATA / "earlier_journal.json").read_text())

each_job = pytest.mark.parametrize("job", JOBS, ids=["named", "nameless"])


class Engine:
    """Admission and engine in one: it generates the tokens that it is given for each prompt and seed."""

    def __init__(self, outputs: list[dict[str, Any]]) -> None:
        self.metrics = Metrics()
        self.generator = Generator(admission=cast(Any, self), tokenizer=cast(Any, None), metrics=self.metrics)
        self.generated = 0
        self._outputs = outputs
        self._sequences: list[Sequence] = []

    def enqueue(self, sequence: Sequence) -> None:
        self._sequences.append(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)

    def run(self) -> None:
        for sequence in self._sequences:
            output = next(output for output in self._outputs if is_of(sequence, output))
            rest = output["token_ids"][len(sequence.output_ids) :]
            assert rest
            self.generated += len(rest)
            sequence.output_ids += rest
            if sequence.sampling.logprobs is not None:
                sequence.logprobs += [TokenLogprobs(-1.0)] * len(rest)
            sequence.finish_reason = "length"
            sequence.on_tokens(len(rest))
        self._sequences.clear()


def is_of(sequence: Sequence, output: dict[str, Any]) -> bool:
    asked = (sequence.prompt_ids.tolist(), sequence.sampling.seed, sequence.sampling.max_new_tokens)
    return asked == (output["prompt_ids"], output["seed"] or 0, output["max_new_tokens"])


def key_of(output: dict[str, Any], slot: int) -> GenerationKey:
    own = slot if output["has_random_seed"] else SHARED
    return GenerationKey(own, output["line"], output["item"], output["choice"])


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    with tarfile.open(DATA / "earlier_journal.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return DirectoryStore(str(tmp_path / "journal"))


@pytest.fixture
def new_registry(store: DirectoryStore, tmp_path: Path) -> Callable[[Engine], JobRegistry]:
    return lambda engine: JobRegistry(
        store, engine.metrics, interval_s=3600, lifetime_s=1e12, max_bytes=1 << 30, spool_dir=str(tmp_path)
    )


def saved_output(output: dict[str, Any]) -> MergedOutput | None:
    if (saved := output["saved"]) is None:
        return None
    return MergedOutput(
        token_ids=pack(output["token_ids"][: saved["tokens"]]),
        logprobs=[
            TokenLogprobs(logprob, [(token, score) for token, score in top]) for logprob, top in saved["logprobs"]
        ],
        end=saved["end"],
        stop_chars=saved["stop_chars"],
        prompt_crc=output["prompt_crc"],
    )


@each_job
def test_earlier_journal_is_read_whole(new_registry: Callable[[Engine], JobRegistry], job: dict[str, Any]) -> None:
    async def test() -> None:
        attachment = await new_registry(Engine([])).attach(job["name"], job["digest"])
        assert attachment.slot == job["slot"]
        assert attachment.constants.secret == bytes.fromhex(job["secret"])
        for output in job["outputs"]:
            assert attachment.job.journal.outputs.get(key_of(output, job["slot"])) == saved_output(output)

    asyncio.run(test())


@each_job
def test_earlier_job_sees_its_first_day(
    new_registry: Callable[[Engine], JobRegistry], store: DirectoryStore, job: dict[str, Any]
) -> None:
    async def test() -> None:
        attachment = await new_registry(Engine([])).attach(job["name"], job["digest"])
        reader = JobReader(store, attachment.job.id, job["digest"], lifetime_s=1e12)
        reader.open()
        assert reader.head is not None and attachment.constants.clock == reader.head.created

    asyncio.run(test())


@each_job
def test_earlier_job_is_resumed_and_saved(new_registry: Callable[[Engine], JobRegistry], job: dict[str, Any]) -> None:
    outputs = job["outputs"]

    async def resume() -> tuple[Engine, list[Waiter]]:
        engine = Engine(outputs)
        registry = new_registry(engine)
        attachment = await registry.attach(job["name"], job["digest"])
        waiters = []
        for output in outputs:
            line, item, choice = output["line"], output["item"], output["choice"]
            seed = output["seed"] or 0
            if output["has_random_seed"]:
                assert attachment.constants.seed(line, item) + choice == seed
            sampling = Sampling(max_new_tokens=output["max_new_tokens"], seed=seed, logprobs=output["logprobs"])
            prepared = Prepared(
                prompt_ids=array("I", output["prompt_ids"]),
                prompt_text="",
                samplings=(sampling,) * (choice + 1),
                stop=(),
                has_random_seed=output["has_random_seed"],
            )
            waiters.append(attachment.generate(engine.generator, prepared, line, item, choice))
        engine.run()
        await registry.save_all()
        assert registry.is_saved(attachment)
        return engine, waiters

    for missing in (sum(len(one["token_ids"]) - one["saved"]["tokens"] for one in outputs), 0):
        engine, waiters = asyncio.run(resume())
        assert [waiter.generation.sequence.output_ids for waiter in waiters] == [one["token_ids"] for one in outputs]
        assert [(waiter.generation.end, waiter.generation.stop_chars) for waiter in waiters] == [
            (one["end"], one["stop_chars"]) for one in outputs
        ]
        assert engine.generated == missing
