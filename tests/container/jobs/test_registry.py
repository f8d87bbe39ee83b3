"""Jobs on a store that fails, hangs and is shared, without an engine or a server."""

from __future__ import annotations

import asyncio
import threading
import time
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from container.engine.sequence import Sampling, Sequence, TokenLogprobs
from container.errors import Conflict
from container.jobs import job_journal as journal_module
from container.jobs import journal_health as health_module
from container.jobs import registry as registry_module
from container.jobs.generation import Generation, Waiter
from container.jobs.generator import Generator
from container.jobs.job import Attachment
from container.jobs.journal_state import JournalState
from container.jobs.registry import JobRegistry, job_id
from container.journal import output_table
from container.journal.job_log import JobLog
from container.journal.job_reader import JobReader
from container.journal.output_table import OutputTable
from container.journal.segment import SHARED, GenerationKey, Record, pack
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError
from container.server.bootstrap import open_journal, start_jobs
from container.server.state import ServerState
from container.settings import Settings
from container.telemetry.metrics import Metrics
from container.tokenization.preparer import Prepared

DIGEST = "a" * 64
AttachAt = Callable[[float, str | None], Awaitable[tuple[JobRegistry, Attachment]]]


class Store(DirectoryStore):
    """A directory that fails or hangs as the test wants."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.failing = False
        self.answers = threading.Event()
        self.answers.set()
        self.before_get: Callable[[], object] = lambda: None
        """A function to be called once, before the next `get`."""

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
        self.generator = Generator(admission=cast(Any, self), tokenizer=cast(Any, None), metrics=self.metrics)
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

    def generate(self, attachment: Attachment, item: int, *, prompt: int = 1, has_random_seed: bool = False) -> Waiter:
        sampling = Sampling(
            max_new_tokens=8, temperature=float(has_random_seed), seed=attachment.constants.seed(0, item)
        )
        prepared = Prepared(
            prompt_ids=array("I", [prompt, item]),
            prompt_text="",
            samplings=(sampling,),
            stop=(),
            has_random_seed=has_random_seed,
        )
        return attachment.generate(self.generator, prepared, 0, item, 0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "journal")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def new_jobs(store: Store, engine: Engine, tmp_path: Path) -> Callable[[], JobRegistry]:
    """Make registries, each like another server's. They write in `save_all`, and when the last request leaves a job."""
    return lambda: JobRegistry(
        store, engine.metrics, interval_s=3600, lifetime_s=3600, max_bytes=1 << 30, spool_dir=str(tmp_path)
    )


def run(test: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):  # a hang is a failure
            return await test

    return asyncio.run(bounded())


async def turns() -> None:
    """Let the event loop do all that it can do without the store."""
    for _ in range(20):
        await asyncio.sleep(0)


def unsaved_bytes(engine: Engine) -> float:
    [family] = engine.metrics.journal_unsaved.collect()
    return family.samples[0].value


async def begun(jobs: JobRegistry, engine: Engine, name: str | None = "a-job", items: int = 3) -> None:
    """Make a job whose items are generated and journalled, and whose client has left."""
    attachment = await jobs.attach(name, DIGEST)
    for item in range(items):
        engine.generate(attachment, item)
    engine.say(8)
    jobs.release(attachment, is_complete=False)
    await jobs.wait_idle()


async def finished_items(jobs: JobRegistry, items: int = 3) -> int:
    attachment = await jobs.attach("a-job", DIGEST)
    saved = [attachment.job.journal.outputs.get(GenerationKey(SHARED, 0, item, 0)) for item in range(items)]
    return sum(one is not None and one.end == "length" for one in saved)


# A store that is slow or fails for a moment


@pytest.mark.parametrize("way", ["fails", "is late"])
def test_past_unreadable_for_moment_is_kept(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Otherwise one slow LIST would cost hours of work."""
    monkeypatch.setattr(health_module, "_TIMEOUT_S", 0.05)

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


def test_idle_job_does_not_hide_healed_store(new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store) -> None:
    """A job is idle when it is given up, waits for the engine, or has a client that is slow to take its answer."""

    async def test() -> None:
        jobs = new_jobs()
        await jobs.attach("idle", DIGEST)
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(1)
        store.failing = True
        await jobs.save_all()
        store.failing = False
        for _ in range(10):
            await jobs.save_all()
        assert jobs.is_saved(attachment)
        assert engine.metrics.journal_broken._value.get() == 0

    run(test())


def test_unwritable_job_does_not_stop_others(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens where one job's folder is unreadable."""

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


def test_largest_job_is_given_up_without_memory(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        jobs = new_jobs()
        large, small = await jobs.attach("large", DIGEST), await jobs.attach("small", "b" * 64)
        for item in range(10):
            engine.generate(large, item)
        engine.say(8)
        monkeypatch.setattr(journal_module, "_MAX_UNSAVED_BYTES", unsaved_bytes(engine))
        engine.generate(small, 0)
        engine.say(8)
        assert large.job.journal.state is JournalState.GIVEN_UP
        assert small.job.journal.state is not JournalState.GIVEN_UP

    run(test())


def test_job_given_up_during_write_leaves_nothing(
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
        attachment.job.journal.give_up("there is no memory for more")
        store.failing = True
        store.answers.set()
        await saving
        assert not attachment.job.journal.has_unsaved
        assert unsaved_bytes(engine) == 0
        jobs.release(attachment, is_complete=True)
        await jobs.wait_idle()
        assert len(jobs) == 0

    run(test())


def test_deleted_journal_is_not_called_saved(new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store) -> None:
    """Its finished outputs are gone for good, though those at work are written anew."""

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
        assert attachment.job.journal.is_begun and not attachment.job.journal.has_unsaved
        assert not jobs.is_saved(attachment)
        assert await finished_items(new_jobs(), 1) == 0

    run(test())


def test_joining_request_ignores_hanging_store(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would wait until its deadline, and be a 504 without a token."""
    monkeypatch.setattr(health_module, "_TIMEOUT_S", 0.05)

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
def test_answered_slot_is_not_taken_again(new_jobs: Callable[[], JobRegistry], engine: Engine, is_same: bool) -> None:
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
        await jobs.wait_idle()
        attachment = await (jobs if is_same else new_jobs()).attach(None, DIGEST)
        again = engine.generate(attachment, 0, has_random_seed=True)
        assert again.generation.sequence.sampling.seed != first.generation.sequence.sampling.seed
        assert not again.generation.resumed_tokens

    run(test())


def test_slot_closed_during_takeover_stays_closed(
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
            await first.wait_idle()

        store.before_get = lambda: asyncio.run_coroutine_threadsafe(deliver(), loop).result()
        again = engine.generate(await second.attach(None, DIGEST), 0, has_random_seed=True)
        assert again.generation.sequence.sampling.seed != delivered.generation.sequence.sampling.seed

    run(test())


def test_slot_closed_during_first_write_stays_closed(
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
        await jobs.wait_idle()
        assert unsaved_bytes(engine) == 0
        again = engine.generate(await new_jobs().attach(None, DIGEST), 0, has_random_seed=True)
        assert again.generation.sequence.sampling.seed != delivered.generation.sequence.sampling.seed

    run(test())


def test_overlapping_identical_requests_leave_nothing(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    """One of them is attached at any moment, so that the job never ends; each has its whole answer before it leaves."""

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
        assert len(job.slots) < 10
        assert job.journal.outputs.table is not None
        assert sum(job.journal.outputs.table.counts()[:2]) < 10

    run(test())


def test_slot_answered_before_first_write_is_closed(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    """Its seeds are made of the secret that the journal keeps: a later request in this slot would get the same text."""

    async def test() -> None:
        jobs = new_jobs()
        long, short = await jobs.attach(None, DIGEST), await jobs.attach(None, DIGEST)
        answered = engine.generate(short, 0, has_random_seed=True)
        engine.say(8)
        jobs.release(short, is_complete=True)
        engine.generate(long, 1)
        engine.say(1)
        await jobs.save_all()
        successor = new_jobs()
        seeds = set()
        for _ in range(2):
            waiter = engine.generate(await successor.attach(None, DIGEST), 0, has_random_seed=True)
            seeds.add(waiter.generation.sampling.seed)
        assert answered.generation.sampling.seed not in seeds

    run(test())


# Answers on their way


async def answered(jobs: JobRegistry, engine: Engine, *, is_long: bool) -> tuple[Attachment, Waiter]:
    """Make a request without a name and with a random seed, whose answer is about to be sent."""
    attachment = await jobs.attach(None, DIGEST)
    waiter = engine.generate(attachment, 0, has_random_seed=True)
    engine.say(1)
    if is_long:
        await jobs.save_all()
    engine.say(7)
    assert waiter.done.done()
    jobs.set_slot_aside(attachment)
    return attachment, waiter


async def is_continued(jobs: JobRegistry, engine: Engine, former: Waiter) -> bool:
    """Send the same request; return whether it continues the former one, whose seed nothing else may have."""
    again = engine.generate(await jobs.attach(None, DIGEST), 0, has_random_seed=True).generation
    is_same = again.sampling.seed == former.generation.sampling.seed
    assert is_same == (again.resumed_tokens > 0)
    return is_same


def test_short_answer_leaves_nothing_in_journal(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    async def test() -> None:
        jobs = new_jobs()
        attachment, waiter = await answered(jobs, engine, is_long=False)
        assert not jobs.has_open_slot(attachment)
        await jobs.save_all()  # a turn comes while the answer is sent
        jobs.release(attachment, is_complete=True)
        await jobs.wait_idle()
        assert store.keys("") == []
        assert not await is_continued(jobs, engine, waiter)

    run(test())


@pytest.mark.parametrize("is_long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("is_same", [True, False], ids=["the same server", "its successor"])
def test_answer_that_never_arrived_is_continued(
    new_jobs: Callable[[], JobRegistry], engine: Engine, is_long: bool, is_same: bool
) -> None:
    async def test() -> None:
        jobs = new_jobs()
        attachment, waiter = await answered(jobs, engine, is_long=is_long)
        jobs.release(attachment, is_complete=False)
        await jobs.wait_idle()
        assert await is_continued(jobs if is_same else new_jobs(), engine, waiter)

    run(test())


def test_long_answer_is_settled_before_its_end(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    """A kill right behind its last byte must not make the next request continue it; one before that must."""

    async def test() -> None:
        jobs = new_jobs()
        attachment, waiter = await answered(jobs, engine, is_long=True)
        assert jobs.has_open_slot(attachment)
        await jobs.close_slot(attachment, 60)
        assert not jobs.has_open_slot(attachment)
        assert not await is_continued(new_jobs(), engine, waiter)
        jobs.release(attachment, is_complete=True)
        await jobs.wait_idle()
        assert unsaved_bytes(engine) == 0

    run(test())


def test_shutdown_saves_answers_on_their_way(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    async def test() -> None:
        jobs = new_jobs()
        _, waiter = await answered(jobs, engine, is_long=False)
        jobs.freeze()
        await jobs.save_all()
        assert await is_continued(new_jobs(), engine, waiter)

    run(test())


def test_slots_are_never_given_out_again(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    """The journal keeps the secret, and knows nothing of the requests that were answered before its next turn."""

    async def test() -> None:
        jobs = new_jobs()
        long = await jobs.attach(None, DIGEST)
        engine.generate(long, 0, has_random_seed=True)
        engine.say(1)
        await jobs.save_all()
        seeds = []
        for server in (jobs, new_jobs(), new_jobs()):
            for _ in range(3):
                attachment = await server.attach(None, DIGEST)
                seeds.append(attachment.constants.seed(0, 0))
        # Each successor's first request continues the long one, whose server is dead.
        assert seeds[3] == seeds[6] == long.constants.seed(0, 0)
        assert len(set(seeds)) == len(seeds) - 1

    run(test())


@pytest.mark.parametrize("way", ["fails", "hangs"])
def test_bad_store_holds_up_no_answer(
    new_jobs: Callable[[], JobRegistry],
    engine: Engine,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    monkeypatch.setattr(registry_module, "_CLOSE_TIMEOUT_S", 0.05)

    async def test() -> None:
        jobs = new_jobs()
        attachment, waiter = await answered(jobs, engine, is_long=True)
        if way == "fails":
            store.failing = True
        else:
            store.answers.clear()
        await jobs.close_slot(attachment, 60)
        assert engine.metrics.journal_broken._value.get() == 1
        assert not jobs.has_open_slot(attachment)  # of the next answer, too
        jobs.release(attachment, is_complete=True)
        store.failing = False
        store.answers.set()
        await jobs.save_all()
        assert engine.metrics.journal_broken._value.get() == 0
        assert not await is_continued(new_jobs(), engine, waiter)

    run(test())


# The clock of chat templates


@pytest.fixture
def attach_at(new_jobs: Callable[[], JobRegistry], monkeypatch: pytest.MonkeyPatch) -> AttachAt:
    """Return a function that sends a request to another server at a certain time."""

    async def attach_at(now: float, name: str | None) -> tuple[JobRegistry, Attachment]:
        monkeypatch.setattr(time, "time", lambda: now)
        jobs = new_jobs()
        attachment = await jobs.attach(name, DIGEST)
        monkeypatch.undo()
        return jobs, attachment

    return attach_at


@pytest.mark.parametrize("name", ["a-job", None], ids=["named", "nameless"])
def test_job_sent_again_keeps_its_clock(attach_at: AttachAt, engine: Engine, name: str | None) -> None:
    async def test() -> None:
        for number, now in enumerate((1000, 2000, 3000)):  # each server is killed
            jobs, attachment = await attach_at(now, name)
            assert attachment.constants.clock == 1000
            engine.generate(attachment, number)
            engine.say(1)
            await jobs.save_all()

    run(test())


@pytest.mark.parametrize("has_random_seed", [False, True], ids=["greedy", "random"])
def test_request_after_answer_sees_present(attach_at: AttachAt, engine: Engine, has_random_seed: bool) -> None:
    """A job without a name is for requests that were cut. One that was answered is in the journal, too."""

    async def test() -> None:
        jobs, attachment = await attach_at(1000, None)
        engine.generate(attachment, 0, has_random_seed=has_random_seed)
        engine.say(1)
        await jobs.save_all()
        engine.say(7)
        jobs.release(attachment, is_complete=True)
        await jobs.wait_idle()
        jobs, attachment = await attach_at(2000, None)
        assert attachment.constants.clock == 2000
        engine.generate(attachment, 0, prompt=2, has_random_seed=has_random_seed)
        engine.say(1)
        assert attachment.changed_prompts == 0
        await jobs.save_all()  # and now it is killed
        _, attachment = await attach_at(3000, None)
        assert attachment.constants.clock == 2000

    run(test())


def test_changed_prompt_is_counted_and_replaced(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    """Another version of a tokenizer can change it, or a template that is a program."""

    async def test() -> None:
        await begun(new_jobs(), engine)
        jobs = new_jobs()
        attachment = await jobs.attach("a-job", DIGEST)
        for item in range(3):
            engine.generate(attachment, item, prompt=1 if item else 2)
        assert (attachment.changed_prompts, attachment.resumed_tokens) == (1, 16)
        assert engine.metrics.changed_prompts._value.get() == 1
        engine.say(8)
        await jobs.save_all()
        attachment = await new_jobs().attach("a-job", DIGEST)
        engine.generate(attachment, 0, prompt=2)
        assert (attachment.changed_prompts, attachment.resumed_tokens) == (0, 8)

    run(test())


# Opening


def test_later_requests_wait_for_past(new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store) -> None:
    """The request that asked for it first has left. Without the past they would begin anew, with other seeds."""

    async def test() -> None:
        await begun(new_jobs(), engine, name=None)
        jobs = new_jobs()
        store.answers.clear()
        left = asyncio.create_task(jobs.attach(None, DIGEST))
        await turns()
        left.cancel()
        await asyncio.wait({left})
        await turns()
        later = [asyncio.create_task(jobs.attach(None, DIGEST)) for _ in range(2)]
        await turns()
        assert not any(attaching.done() for attaching in later)
        store.answers.set()
        for attachment in await asyncio.gather(*later):
            assert attachment.job.journal.outputs.get(GenerationKey(SHARED, 0, 0, 0)) is not None

    run(test())


def test_output_ended_during_loading_is_known(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """The store has older tokens: they must not take the place of those that came meanwhile."""

    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(3)
        await jobs.save_all()
        store.answers.clear()
        joining = asyncio.create_task(jobs.attach("a-job", DIGEST))
        await turns()
        engine.say(5)
        store.answers.set()
        joined = await joining
        assert engine.generate(joined, 0).generation.sequence.output_ids == list(range(8))
        assert joined.resumed_tokens == 8

    run(test())


def test_output_resumed_during_loading_is_recorded_whole(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of what is loaded may differ from its beginning: the new tokens must not be joined to that."""
    monkeypatch.setattr(health_module, "_TIMEOUT_S", 0.05)
    get, answers = store.get, threading.Event()

    def get_slowly(key: str) -> bytes | None:
        if key.endswith("/00000002"):
            assert answers.wait(60)
        return get(key)

    monkeypatch.setattr(store, "get", get_slowly)

    async def test() -> None:
        jobs = new_jobs()
        attachment = await jobs.attach("a-job", DIGEST)
        waiter = engine.generate(attachment, 0)
        for _ in range(2):
            engine.say(3)
            await jobs.save_all()
        attachment.leave(waiter)
        joined = await jobs.attach("a-job", DIGEST)
        generation = engine.generate(joined, 0).generation
        assert generation.resumed_tokens == 3
        record = generation.new_record()
        assert record is not None and (record.start, record.tokens) == (0, 3)
        answers.set()

    run(test())


def test_late_answer_changes_nothing(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "_TIMEOUT_S", 0.05)

    async def test() -> None:
        await begun(new_jobs(), engine)
        jobs = new_jobs()
        store.answers.clear()
        attachment = await jobs.attach("a-job", DIGEST)
        secret = attachment.job.journal.secret
        store.answers.set()
        await jobs.save_all()  # behind the opening
        assert attachment.job.journal.state is JournalState.OPEN
        assert (attachment.job.journal.secret, attachment.job.journal.outputs.table) == (secret, None)

    run(test())


def test_wrong_request_does_not_refuse_right_one(
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


def test_durable_record_counts_for_successor(store: Store, tmp_path: Path) -> None:
    """The successor lists, the writer appends (and answers `resumable: true`), the successor takes."""

    def reader() -> JobReader:
        return JobReader(store, "a" * 64, DIGEST, lifetime_s=3600)

    def record(item: int) -> Record:
        return Record(0, 0, item, 0, prompt_crc=1, start=0, token_ids=pack([item]), end="stop")

    at_first, later = reader(), reader()
    assert at_first.open() is None
    first = JobLog(at_first, writer="first", max_bytes=1 << 20)
    first.take(b"s" * 16)
    first.append([record(0)])
    secret = later.open()
    assert secret is not None
    later.read()
    first.append([record(1)])  # raises nothing: it is durable
    JobLog(later, writer="successor", max_bytes=1 << 20).take(secret)
    last, table = reader(), OutputTable(str(tmp_path))
    last.open()
    last.read(table)
    assert table.get(GenerationKey(0, 0, 1, 0)) is not None


def test_simultaneous_takers_do_not_both_lose(
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
        assert [attachment.job.journal.state is JournalState.GIVEN_UP for attachment in attachments] == [True, False]
        assert second.is_saved(attachments[1])
        assert await finished_items(new_jobs(), 4) == 4

    run(test())


def test_next_server_resumes_while_first_still_writes(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    """The request comes before the first server has written anything or noticed that its client is gone."""

    async def test() -> None:
        first, second = new_jobs(), new_jobs()
        left = await first.attach("a-job", DIGEST)
        engine.generate(left, 0)
        engine.say(1)
        attachment = await second.attach("a-job", DIGEST)
        first.release(left, is_complete=False)
        await first.wait_idle()
        for item in range(2):
            engine.generate(attachment, item)
        engine.say(8)
        await second.save_all()
        assert second.is_saved(attachment)
        assert await finished_items(new_jobs(), 2) == 2

    run(test())


def test_random_outputs_need_the_stores_secret(new_jobs: Callable[[], JobRegistry], engine: Engine) -> None:
    """The first server's secret came to light late: outputs with the second one's seeds are of no use to a third."""

    async def test() -> None:
        first, second = new_jobs(), new_jobs()
        left, attachment = await first.attach(None, DIGEST), await second.attach(None, DIGEST)
        engine.generate(left, 0)
        engine.say(1)
        first.release(left, is_complete=False)
        await first.wait_idle()
        engine.generate(attachment, 0, has_random_seed=True)
        engine.say(8)
        await second.save_all()
        assert attachment.job.journal.state is JournalState.TAKEN_WITHOUT_RANDOM
        assert unsaved_bytes(engine) == 0 and not second.is_saved(attachment)
        third = await new_jobs().attach(None, DIGEST)
        assert third.slot != attachment.slot
        assert third.job.journal.outputs.get(GenerationKey(attachment.slot, 0, 0, 0)) is None

    run(test())


def test_named_job_has_its_seeds_without_journal(
    new_jobs: Callable[[], JobRegistry], engine: Engine, store: Store
) -> None:
    """Its server was killed behind the answer, before anything was written."""

    async def test() -> None:
        seeds = []
        for name, digest in [("a-job", DIGEST), ("a-job", DIGEST), ("other", DIGEST), ("a-job", "b" * 64)]:
            attachment = await new_jobs().attach(name, digest)
            seeds.append(attachment.constants.seed(0, 0))
        assert seeds[0] == seeds[1] and len(set(seeds)) == 3

    run(test())


# Promises


def test_local_journal_on_sagemaker_is_not_resumable(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory is the default there: the server warns at its start, and must not promise more at its end."""
    monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", "8080")

    async def test() -> None:
        settings = Settings(checkpoint_uri=str(tmp_path / "journal"), spool_dir=str(tmp_path))
        jobs = start_jobs(await open_journal(settings), ServerState(settings))
        attachment = await jobs.attach("a-job", DIGEST)
        engine.generate(attachment, 0)
        engine.say(1)
        await jobs.save_all()
        assert attachment.job.journal.has_all(with_random=True) and not jobs.is_saved(attachment)
        jobs.close()

    run(test())


def test_job_id_hides_name() -> None:
    ids = {job_id("a", "b"), job_id(None, "b"), job_id("b", "c"), job_id(None, "a")}
    assert len(ids) == 4 and all(len(one) == 64 and set(one) <= set("0123456789abcdef") for one in ids)
    assert job_id("a", "b") == job_id("a", "c")


# Costs


def test_added_tokens_read_no_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are added on the event loop, for each sequence at work, every interval."""

    def record(start: int) -> Record:
        scores = [TokenLogprobs(-0.5, [(1, -0.5)])] * 4
        return Record(0, 0, 0, 0, prompt_crc=1, start=start, token_ids=pack([1] * 4), logprobs=scores)

    table = OutputTable(str(tmp_path))
    table.add(map(record, range(0, 400, 4)))
    read: list[object] = []
    monkeypatch.setattr(output_table, "_output", lambda *arguments: read.append(arguments))
    table.add(map(record, range(400, 804, 4)))
    assert not read


def test_waiter_hears_of_end_without_journal(engine: Engine) -> None:
    """Otherwise a failing spool (EIO does not mean a full disk) would leave the request waiting until its deadline."""

    def on_end(generation: Generation, record: Record | None) -> None:
        raise OSError("the spool's disk is gone")

    async def test() -> None:
        prepared = Prepared(
            prompt_ids=array("I", [1]), prompt_text="", samplings=(Sampling(max_new_tokens=1),), stop=()
        )
        key = GenerationKey(0, 0, 0, 0)
        generation = Generation(key, prepared, engine.generator, owner="a", on_end=on_end)
        waiter = Waiter(generation)
        generation.start()
        with pytest.raises(OSError, match="disk is gone"):
            engine.say(1)
        assert waiter.done.done()

    run(test())
