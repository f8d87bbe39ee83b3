"""Jobs on a store that fails, hangs and is shared, without an engine or a server."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from container.engine.sequence import Sampling, Sequence, TokenLogprobs
from container.errors import Conflict
from container.jobs import registry as jobs_module
from container.jobs.attachment import Attachment
from container.jobs.generation import Generation, Waiter
from container.jobs.registry import JobRegistry
from container.jobs.slots import SHARED
from container.journal.job_log import JobLog
from container.journal.output_table import OutputTable
from container.journal.segment import GenerationKey, Record, packed
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError
from container.server.bootstrap import open_journal, start_jobs
from container.server.state import ServerState
from container.settings import Settings
from container.telemetry.metrics import Metrics
from container.tokenization.preparer import Prepared

DIGEST = "a" * 64


class Store(DirectoryStore):
    """A directory that fails or hangs when it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.failing = False
        self.answers = threading.Event()
        self.answers.set()
        self.before_get: Callable[[], object] = lambda: None
        """Called once."""

    def _wait(self) -> None:
        assert self.answers.wait(60)
        if self.failing:
            raise StoreError("told to")

    def keys(self, prefix: str) -> list[str]:
        self._wait()
        return super().keys(prefix)

    def create(self, key: str, data: bytes) -> bool:
        self._wait()
        return super().create(key, data)

    def get(self, key: str) -> bytes | None:
        self._wait()
        happens, self.before_get = self.before_get, lambda: None
        happens()
        return super().get(key)


class Engine:
    """Admission and engine in one: sequences stay until they are given tokens."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.service = cast(Any, SimpleNamespace(admission=self, metrics=self.metrics, tokenizer=None))
        self.at_work: dict[int, Sequence] = {}

    def enqueue(self, sequence: Sequence) -> None:
        self.at_work[id(sequence)] = sequence

    def withdraw(self, sequence: Sequence) -> None:
        self.at_work.pop(id(sequence), None)

    def say(self, tokens: int) -> None:
        for sequence in list(self.at_work.values()):
            for _ in range(tokens):
                sequence.output_ids.append(len(sequence.output_ids))
                if len(sequence.output_ids) == sequence.sampling.max_new_tokens:
                    sequence.finish_reason = "length"
                    self.withdraw(sequence)
                sequence.on_tokens(1)
                if sequence.finish_reason is not None:
                    break

    def generate(self, attachment: Attachment, item: int, *, has_random_seed: bool = False) -> Waiter:
        sampling = Sampling(max_new_tokens=8, temperature=float(has_random_seed), seed=attachment.seeds.seed(0, item))
        prepared = Prepared(
            prompt_ids=array("I", [1, item]),
            prompt_text="",
            samplings=(sampling,),
            stop=(),
            has_random_seed=has_random_seed,
        )
        return attachment.generate(self.service, prepared, 0, item, 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "journal")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def new_jobs(store: Store, engine: Engine, tmp_path: Path) -> Callable[[], JobRegistry]:
    """Of a server of its own each. Nothing is written but by `save_all` and when nobody is attached any more."""
    return lambda: JobRegistry(
        store, engine.metrics, interval_s=3600, lifetime_s=3600, max_bytes=1 << 30, spool_dir=str(tmp_path)
    )


def run(test: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):  # a hang is a failure
            return await test

    return asyncio.run(bounded())


async def settled(jobs: JobRegistry) -> None:
    """What was begun in the background is done."""
    while jobs._tasks:
        await asyncio.gather(*jobs._tasks)


async def begun(jobs: JobRegistry, engine: Engine, name: str | None = "a-job", items: int = 3) -> None:
    """A job whose items are generated, journalled, and left by their client."""
    attachment = await jobs.attach(name, DIGEST)
    for item in range(items):
        engine.generate(attachment, item)
    engine.say(8)
    jobs.release(attachment, is_complete=False)
    await settled(jobs)


async def finished_items(jobs: JobRegistry, items: int = 3) -> int:
    attachment = await jobs.attach("a-job", DIGEST)
    saved = [attachment.job.saved(GenerationKey(SHARED, 0, item, 0)) for item in range(items)]
    return sum(one is not None and one.end == "length" for one in saved)


# A store that is slow or fails for a moment


@pytest.mark.parametrize("way", ["fails", "is late"])
def test_a_past_that_could_not_be_read_for_a_moment_is_not_deleted(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Hours of work would go because one LIST took 5 s (0.5 s while another job's write has failed)."""
    monkeypatch.setattr(jobs_module, "_PATIENCE_S", 0.05)

    async def test() -> None:
        await begun(new_jobs(), engine)
        assert await finished_items(new_jobs()) == 3
        jobs = new_jobs()
        if way == "fails":
            store.failing = True
        else:
            store.answers.clear()
        attachment = await jobs.attach("a-job", DIGEST)
        store.failing = False
        store.answers.set()
        engine.generate(attachment, 3)
        engine.say(1)
        await jobs.save_all()
        assert await finished_items(new_jobs()) == 3

    run(test())


def test_a_job_with_nothing_to_write_does_not_keep_a_healed_store_from_the_others(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """Such as one that is given up, waits for the engine, or whose client is slow to take its answer."""

    async def test() -> None:
        jobs = new_jobs()
        await jobs.attach("idle", DIGEST)
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(1)
        store.failing = True
        await jobs._save(attachment.job)
        store.failing = False
        for _ in range(10):
            await jobs.save_all()
        assert jobs.is_saved(attachment)
        assert engine.metrics.journal_broken._value.get() == 0

    run(test())


def test_a_job_that_can_not_be_written_does_not_keep_the_others_from_it(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose folder is unreadable."""

    async def test() -> None:
        jobs = new_jobs()
        bad, good = await jobs.attach("bad", DIGEST), await jobs.attach("good", DIGEST)
        create = store.create

        def refuse(key: str, data: bytes) -> bool:
            if bad.job.id in key:
                raise StoreError("this job only")
            return create(key, data)

        monkeypatch.setattr(store, "create", refuse)
        for attachment in (bad, good):
            engine.generate(attachment, 0)
        for _ in range(3):
            engine.say(1)
            await jobs.save_all()
            assert jobs.is_saved(good)
        assert not jobs.is_saved(bad)

    run(test())


def test_where_there_is_no_memory_for_more_the_job_that_has_most_of_it_is_given_up(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        jobs = new_jobs()
        large, small = await jobs.attach("large", DIGEST), await jobs.attach("small", "b" * 64)
        for item in range(10):
            engine.generate(large, item)
        engine.say(8)
        monkeypatch.setattr(jobs_module, "_MOST_UNSAVED_BYTES", jobs._unsaved_bytes)
        engine.generate(small, 0)
        engine.say(8)
        assert large.job.is_given_up
        assert not small.job.is_given_up

    run(test())


def test_a_job_that_is_given_up_while_it_is_written_leaves_nothing_behind(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(1)
        store.answers.clear()
        saving = asyncio.create_task(jobs.save_all())
        await asyncio.sleep(0)
        attachment.job.give_up("there is no memory for more")
        store.failing = True
        store.answers.set()
        await saving
        assert not attachment.job.has_unsaved
        assert attachment.job.unsaved_bytes == 0
        jobs.release(attachment, is_complete=True)
        await settled(jobs)
        assert not jobs._jobs

    run(test())


def test_a_job_whose_journal_was_deleted_is_not_told_to_be_saved(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """What had ended went with it."""

    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(8)
        await jobs.save_all()
        assert jobs.is_saved(attachment)
        engine.generate(attachment, 1)
        engine.say(1)
        store.delete(f"jobs/{attachment.job.id}/")
        for _ in range(3):
            await jobs.save_all()
        assert attachment.job.is_stored and not attachment.job.has_unsaved
        assert not jobs.is_saved(attachment)
        assert await finished_items(new_jobs(), 1) == 0

    run(test())


def test_who_joins_a_running_job_does_not_wait_for_a_store_that_hangs(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request goes on; the second would wait until its deadline, and be a 504 without a token."""
    monkeypatch.setattr(jobs_module, "_PATIENCE_S", 0.05)

    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(1)
        await jobs.save_all()
        store.answers.clear()
        joining = asyncio.create_task(jobs.attach("a-job", DIGEST))
        done, _ = await asyncio.wait({joining}, timeout=5)
        store.answers.set()
        await joining
        assert done, "it waited for the store"

    run(test())


# Slots


@pytest.mark.parametrize("is_same", [True, False], ids=["the same server", "its successor"])
def test_a_lane_whose_answer_has_arrived_is_not_taken_again(
    new_jobs: Callable[[], JobRegistry], engine: Engine, is_same: bool
) -> None:
    """The next unseeded request would have the same seeds and the same text, out of the journal, for a week."""

    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach(None, DIGEST)
        first = engine.generate(attachment, 0, has_random_seed=True)
        engine.say(1)
        await jobs.save_all()  # it takes longer than an interval
        engine.say(8)
        assert first.done.done()
        jobs.release(attachment, is_complete=True)
        await settled(jobs)
        attachment = await (jobs if is_same else new_jobs()).attach(None, DIGEST)
        again = engine.generate(attachment, 0, has_random_seed=True)
        assert again.generation.sequence.sampling.seed != first.generation.sequence.sampling.seed
        assert not again.generation.resumed_tokens

    run(test())


def test_a_lane_that_is_closed_while_another_server_takes_the_job_is_not_taken_again(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """The first one's answer arrives between the second one's look and its claim."""

    async def test() -> None:
        first, second = new_jobs(), new_jobs()
        attachment = await first.attach(None, DIGEST)
        delivered = engine.generate(attachment, 0, has_random_seed=True)
        engine.say(1)
        await first.save_all()
        engine.say(7)
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            first.release(attachment, is_complete=True)
            await settled(first)

        store.before_get = lambda: asyncio.run_coroutine_threadsafe(deliver(), loop).result()
        again = engine.generate(await second.attach(None, DIGEST), 0, has_random_seed=True)
        assert again.generation.sequence.sampling.seed != delivered.generation.sequence.sampling.seed

    run(test())


def test_a_lane_that_is_closed_while_the_job_is_first_written_is_not_taken_again(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach(None, DIGEST)
        delivered = engine.generate(attachment, 0, has_random_seed=True)
        engine.say(1)
        store.answers.clear()
        saving = asyncio.create_task(jobs.save_all())
        await asyncio.sleep(0)
        engine.say(7)
        jobs.release(attachment, is_complete=True)
        store.answers.set()
        await saving
        await settled(jobs)
        assert jobs._unsaved_bytes == 0
        again = engine.generate(await new_jobs().attach(None, DIGEST), 0, has_random_seed=True)
        assert again.generation.sequence.sampling.seed != delivered.generation.sequence.sampling.seed

    run(test())


def test_identical_requests_that_overlap_for_months_leave_nothing_behind(
    new_jobs: Callable[[], JobRegistry], engine: Engine
) -> None:
    """Each has all of its answer before it leaves; at any moment one is attached, so that the job never ends."""

    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach(None, DIGEST)
        for _ in range(200):
            engine.generate(attachment, 0, has_random_seed=True)
            engine.say(8)
            successor = await jobs.attach(None, DIGEST)
            jobs.release(attachment, is_complete=True)
            attachment = successor
        job = attachment.job
        assert len(job._slots._left) < 10
        assert job._table is not None
        assert sum(job._table.counts()[:2]) < 10

    run(test())


# Opening


def test_all_wait_for_their_jobs_past_also_when_one_has_left_that_asked_for_it_before(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """Its late answer is of a job that is forgotten. Else they begin anew, and their seeds change under them."""

    async def test() -> None:
        await begun(new_jobs(), engine, name=None)
        jobs = new_jobs()
        store.answers.clear()
        left = asyncio.create_task(jobs.attach(None, DIGEST))
        await asyncio.sleep(0)
        its_opening = next(iter(jobs._jobs.values())).opening
        left.cancel()
        await asyncio.wait({left})
        for _ in range(20):
            await asyncio.sleep(0)
        second = asyncio.create_task(jobs.attach(None, DIGEST))
        await asyncio.sleep(0)
        job = next(iter(jobs._jobs.values()))
        in_thread, go_on = job._access.reading, asyncio.Event()

        async def held(function: Callable[[], object]) -> object:
            result = await in_thread(function)
            await go_on.wait()
            return result

        job._access = dataclasses.replace(job._access, reading=held)
        store.answers.set()
        await asyncio.wait({its_opening})
        third = asyncio.create_task(jobs.attach(None, DIGEST))
        for _ in range(20):
            await asyncio.sleep(0)
        did_not_wait = job._table is not None and not job._is_taken
        go_on.set()
        await asyncio.wait({second, third})
        assert not did_not_wait

    run(test())


def test_a_wrong_request_that_is_looked_up_is_no_conflict_to_the_right_one(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """SageMaker never tries a 409 again."""

    async def test() -> None:
        await begun(new_jobs(), engine)
        jobs = new_jobs()
        store.answers.clear()
        wrong = asyncio.create_task(jobs.attach("a-job", "b" * 64))
        await asyncio.sleep(0)
        right = asyncio.create_task(jobs.attach("a-job", DIGEST))
        await asyncio.sleep(0)
        store.answers.set()
        await asyncio.wait({wrong, right})
        assert isinstance(wrong.exception(), Conflict)
        assert right.exception() is None

    run(test())


# Two servers


def test_what_was_told_to_be_durable_counts_for_the_successor(store: Store, tmp_path: Path) -> None:
    """The successor lists, the writer appends (and answers `resumable: true`), the successor takes."""

    def log(writer: str) -> JobLog:
        return JobLog(store, "a" * 64, DIGEST, writer=writer, lifetime_s=3600, max_bytes=1 << 20)

    def record(item: int) -> Record:
        return Record(0, 0, item, 0, prompt_crc=1, start=0, token_ids=packed([item]), end="stop")

    first, successor = log("first"), log("successor")
    assert first.open(OutputTable(str(tmp_path))) is None
    first.take(b"s" * 16)
    first.append([record(0)])
    table = OutputTable(str(tmp_path))
    found = successor.open(table)
    assert found is not None
    first.append([record(1)])  # raises nothing: it is durable
    successor.take(found.secret)
    last = OutputTable(str(tmp_path))
    log("last").open(last)
    assert last.get(GenerationKey(0, 0, 1, 0)) is not None


def test_two_servers_that_take_the_same_job_at_once_do_not_both_lose_it(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """Neither could read the journal when it began. The second one looks at it before the first one's head is there,
    and stops that by its claim."""

    async def test() -> None:
        await begun(new_jobs(), engine)
        store.failing = True
        first, second = new_jobs(), new_jobs()
        attachments = [await jobs.attach("a-job", DIGEST) for jobs in (first, second)]
        store.failing = False
        for attachment in attachments:
            engine.generate(attachment, 3)
        engine.say(1)
        loop = asyncio.get_running_loop()
        store.before_get = lambda: asyncio.run_coroutine_threadsafe(first.save_all(), loop).result()
        await second.save_all()
        engine.say(7)
        await first.save_all()
        await second.save_all()
        assert [attachment.job.is_given_up for attachment in attachments] == [True, False]
        assert second.is_saved(attachments[1])
        assert await finished_items(new_jobs(), 4) == 4

    run(test())


def test_a_request_sent_again_to_another_server_has_the_journal_though_the_first_one_writes_its_last_words(
    new_jobs: Callable[[], JobRegistry], engine: Engine
) -> None:
    """It has come before the first one had written anything, and before that noticed that its client is gone."""

    async def test() -> None:
        first, second = new_jobs(), new_jobs()
        left = await first.attach("a-job", DIGEST)
        engine.generate(left, 0)
        engine.say(1)
        attachment = await second.attach("a-job", DIGEST)
        first.release(left, is_complete=False)
        await settled(first)
        for item in range(2):
            engine.generate(attachment, item)
        engine.say(8)
        await second.save_all()
        assert second.is_saved(attachment)
        assert await finished_items(new_jobs(), 2) == 2

    run(test())


# What is said


def test_on_sagemaker_a_journal_that_ends_with_the_container_is_not_resumable(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default setting there: the server warns of it at its start, and must not promise otherwise at its end."""
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "8080")

    async def test() -> None:
        settings = Settings(checkpoint_uri=str(tmp_path / "journal"), spool_dir=str(tmp_path))
        jobs = start_jobs(await open_journal(settings), ServerState(settings))
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(1)
        await jobs.save_all()
        assert attachment.job.is_saved(attachment) and not jobs.is_saved(attachment)
        jobs.close()

    run(test())


# Costs


def test_to_put_the_next_tokens_of_a_resumed_output_does_not_read_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done on the event loop, for each sequence at work, every interval."""

    def record(start: int) -> Record:
        scores = [TokenLogprobs(-0.5, [(1, -0.5)])] * 4
        return Record(0, 0, 0, 0, prompt_crc=1, start=start, token_ids=packed([1] * 4), logprobs=scores)

    table = OutputTable(str(tmp_path))
    table.load(map(record, range(0, 400, 4)))
    table.put([record(400)])
    read: list[object] = []
    chain = OutputTable._chain
    monkeypatch.setattr(OutputTable, "_chain", lambda table, row: read.append(row) or chain(table, row))
    table.put(map(record, range(404, 804, 4)))
    assert not read


def test_who_waits_is_told_of_the_end_whatever_becomes_of_the_journal(engine: Engine) -> None:
    """A spool that fails (EIO is no full disk) would leave the request waiting until its deadline."""

    def on_end(generation: Generation) -> None:
        raise OSError("the spool's disk is gone")

    async def test() -> None:
        prepared = Prepared(
            prompt_ids=array("I", [1]), prompt_text="", samplings=(Sampling(max_new_tokens=1),), stop=()
        )
        key = GenerationKey(0, 0, 0, 0)
        generation = Generation(key, prepared, service=engine.service, owner="a", on_end=on_end)
        waiter = Waiter(generation)
        generation.start()
        with pytest.raises(OSError, match="disk is gone"):
            engine.say(1)
        assert waiter.done.done()

    run(test())
