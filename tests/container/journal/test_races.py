"""Writers of one job in one store, interleaved call by call in an order that a seed draws."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from container.journal import job_log as log_module
from container.journal.job_log import EpochLost, JobLog
from container.journal.job_reader import JobReader
from container.journal.output_table import OutputTable
from container.journal.segment import GenerationKey, Record, pack
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError
from testing.fuzzing import EXAMPLES_FACTOR

JOB = "a" * 64
LIFETIME_S = 100.0
MOST_CALLS = 1500
SCHEDULES = 100 * EXAMPLES_FACTOR

Disturber = Callable[["World", Any], None]


class Killed(BaseException):
    pass


@dataclass
class Item:
    """A record that a writer made, and when it became durable."""

    number: int
    secret: bytes
    begun: float
    builds_on: list[int]
    durable_since: int | None = None


@dataclass
class World:
    store: DirectoryStore
    rng: random.Random
    is_local: bool
    has_links: bool
    directory: str
    now: float = 1000.0
    step: int = 0
    deleted_at: int = 0
    items: list[Item] = field(default_factory=list)

    def reader(self, store: Any, skew_s: float = 0) -> JobReader:
        def clock() -> float:
            return self.now + skew_s - self.rng.choice([0, 1e-4])

        return JobReader(store, JOB, "d", lifetime_s=LIFETIME_S, clock=clock)


class Actor:
    """A thread that runs from one of its store's calls to the next, at the test's command.

    As a store it fails now and then, before or after the call, and is killed at times.
    """

    describe = "a store that fails"

    def __init__(self, world: World, play: Disturber) -> None:
        self._world = world
        self.is_local = world.is_local
        self.skew_s = world.rng.uniform(-5, 5)
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self.has_ended = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(play,))
        self._thread.start()
        self._done.acquire()

    def _run(self, play: Callable[[World, Any], None]) -> None:
        try:
            play(self._world, self)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.has_ended = True
        self._done.release()

    def go_on(self) -> None:
        self._turn.release()
        self._done.acquire()

    def wait(self) -> None:
        self._done.release()
        self._turn.acquire()
        self._world.step += 1
        self._world.now += 1e-5
        if self._world.step > MOST_CALLS:
            raise Killed

    def __getattr__(self, name: str) -> Any:
        if name == "delete" and not self.is_local:
            return self._delete_one_by_one
        inner = self._create_in_place if name == "create" else getattr(self._world.store, name)

        def call(*arguments: Any) -> Any:
            self.wait()
            luck = self._world.rng.random()
            if luck < 0.01:
                raise Killed
            if luck < 0.03:
                raise StoreError("told to fail")
            answer = inner(*arguments)
            if luck > 0.98:
                raise StoreError("told to lose the answer")
            return answer

        return call

    def _create_in_place(self, key: str, data: bytes) -> bool:
        store = self._world.store
        if self._world.has_links:
            return store.create(key, data)
        if not store.create(key, data[: len(data) // 2]):
            return False
        with (Path(self._world.directory) / "journal" / key).open("ab") as file:  # also if it is deleted meanwhile
            self.wait()
            file.write(data[len(data) // 2 :])
        return True

    def _delete_one_by_one(self, prefix: str) -> None:
        for key in self._world.store.keys(prefix):
            self.wait()
            (Path(self._world.directory) / "journal" / key).unlink(missing_ok=True)


def write(world: World, store: Any) -> None:
    writer = f"w{len(world.items)}"
    for _ in range(world.rng.randrange(2, 6)):
        with closing(OutputTable(world.directory)) as table:
            reader = world.reader(store, store.skew_s)
            try:
                secret = reader.open() or world.rng.randbytes(16)
                reader.read(table)
                log = JobLog(reader, writer=writer, max_bytes=1 << 30)
                take_in_the_end(world, log, secret, table)
                for _ in range(world.rng.randrange(4)):
                    append_in_the_end(world, log, secret, table)
            except (EpochLost, StoreError):
                pass


def take_in_the_end(world: World, log: JobLog, secret: bytes, table: OutputTable) -> None:
    while True:
        try:
            return log.take(secret, table)
        except StoreError:
            if world.rng.random() < 0.3:
                raise


def append_in_the_end(world: World, log: JobLog, secret: bytes, table: OutputTable) -> None:
    assert log._created is not None
    item = Item(len(world.items), secret, log._created, items_in(world, table))
    world.items.append(item)
    entries: list[Any] = [Record(0, 0, item.number, 0, 1, 0, pack([1]))]
    while True:
        try:
            log.append(entries)
        except StoreError:
            if world.rng.random() < 0.3 or not log.epoch:
                raise
        else:
            item.durable_since = world.step
            return table.add([Record(0, 0, item.number, 0, 1, 0, pack([1]))])


def items_in(world: World, table: OutputTable) -> list[int]:
    return [item.number for item in world.items if table.get(GenerationKey(0, 0, item.number, 0))]


def delete(world: World, store: Any) -> None:
    for _ in range(world.rng.randrange(80)):
        store.wait()
    world.store.delete(f"jobs/{JOB}/")
    world.deleted_at = world.step


def let_it_expire(world: World, store: Any) -> None:
    for _ in range(world.rng.randrange(80)):
        store.wait()
    world.now += 1.2 * LIFETIME_S


def nothing(world: World, store: Any) -> None:
    pass


def played(seed: int, directory: Path, disturber: Disturber) -> World:
    rng = random.Random(seed)
    # Nothing is promised of a job that an operator deletes key by key under its writer.
    is_local = disturber is delete or rng.random() < 0.5
    store = DirectoryStore(str(directory / "journal"))
    world = World(store, rng, is_local, not is_local or rng.random() < 0.7, str(directory))
    actors = [Actor(world, play) for play in (write, write, write, disturber)]
    while left := [actor for actor in actors if not actor.has_ended]:
        chosen = rng.choice(left)
        for _ in range(rng.choice([1, 1, 2, 5, 15])):
            if not chosen.has_ended:
                chosen.go_on()
    for actor in actors:
        if actor.error:
            raise actor.error
    return world


def kept(world: World) -> int:
    """Check what a reader finds, and return the number of records that had to be there."""
    with closing(OutputTable(world.directory)) as table:
        reader = world.reader(world.store)
        secret = reader.open()
        reader.read(table)
        there = set(items_in(world, table))
    due = 0
    for item in world.items:
        is_told = item.durable_since is not None and item.durable_since > world.deleted_at
        if is_told and world.now - item.begun <= LIFETIME_S:
            assert item.number in there, item
            due += 1
        if item.number in there:
            assert item.secret == secret, item
            assert there.issuperset(item.builds_on), item
    assert world.step < MOST_CALLS
    return due


@pytest.mark.parametrize("disturber", [nothing, delete, let_it_expire])
def test_durable_records_count_with_their_basis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturber: Disturber
) -> None:
    """Records that were deleted after they became durable are the exception."""
    monkeypatch.setattr(log_module, "_MAX_UNUSED_EPOCHS", 1)
    due = 0
    for seed in range(SCHEDULES):
        directory = tmp_path / str(seed)
        drawn = random.Random(seed)  # epochs, too, so that a seed fails each time or never
        monkeypatch.setattr(log_module.secrets, "randbelow", drawn.randrange)
        try:
            due += kept(played(seed, directory, disturber))
        except AssertionError as error:
            raise AssertionError(f"with seed {seed}: {error}") from error
        shutil.rmtree(directory)
    assert due > SCHEDULES
