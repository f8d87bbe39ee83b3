from __future__ import annotations

import contextlib
import itertools
import logging
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from container.jobs.registry import job_id
from container.journal import job_log as log_module
from container.journal.job_log import EpochLost, JobLog, JournalFull, JournalGone
from container.journal.job_reader import DigestConflict, JobReader, claim_key, head_key, segment_key
from container.journal.output_table import OutputTable
from container.journal.segment import Entry, GenerationKey, Head, Record, SlotClosed, decode, pack, unpack
from container.journal.stores.store import Store, StoreError
from testing import ROOT
from testing.container.faulty_s3 import FaultyS3
from testing.container.journal_stores import (
    KINDS,
    closing_store,
    emulated,
    impatient,
    new_bucket,
    new_uri,
    set_environment,
)
from testing.emulator import Emulator

SECRET = bytes(range(16))
JOB = job_id("my-job", "digest")


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with emulated(tmp_path_factory) as emulator:
        yield emulator


@pytest.fixture(params=KINDS)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return new_uri(request.param, tmp_path, request)


@pytest.fixture
def store(uri: str) -> Iterator[Store]:
    with closing_store(uri) as store:
        yield store


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    with closing_store(str(tmp_path / "journal")) as store:
        yield store


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[Callable[[], OutputTable]]:
    with ExitStack() as open_ones:
        yield lambda: open_ones.enter_context(closing(OutputTable(str(tmp_path))))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Writer:
    """One server's way with a job: it opens it, then perhaps takes it, then appends."""

    def __init__(
        self, store: Any, digest: str = "digest", *, max_bytes: int = 1 << 30, clock: Callable[[], float] | None = None
    ) -> None:
        self._store, self._digest, self._max_bytes, self._clock = store, digest, max_bytes, clock or Clock()

    def open(self, table: OutputTable | None = None) -> bytes | None:
        self.reader = JobReader(self._store, JOB, self._digest, lifetime_s=100.0, clock=self._clock)
        secret = self.reader.open()
        self.reader.read(table)
        self._log = JobLog(self.reader, writer="w", max_bytes=self._max_bytes)
        return secret

    def take(self, secret: bytes, table: OutputTable | None = None) -> None:
        self._log.take(secret, table)

    def append(self, entries: Sequence[Entry]) -> int:
        return self._log.append(entries)

    @property
    def epoch(self) -> int:
        return self._log.epoch

    @property
    def bytes(self) -> int:
        return self._log.bytes

    def go_through(self, store: Any) -> None:
        """Make all calls from now on through another store."""
        self._store = self.reader.store = store


def job_log(store: Any, digest: str = "digest", **options: Any) -> Writer:
    return Writer(store, digest, **options)


def record(item: int, start: int, *token_ids: int) -> Record:
    return Record(0, 0, item, 0, 1, start, pack(token_ids))


def taken(store: Store, table: OutputTable, **options: Any) -> Writer:
    log = job_log(store, **options)
    log.open(table)
    log.take(SECRET)
    return log


def folder(epoch: int) -> str:
    return f"jobs/{JOB}/{epoch:016d}/"


def outputs(table: OutputTable, items: int = 10) -> dict[int, list[int]]:
    saved = {item: table.get(GenerationKey(0, 0, item, 0)) for item in range(items)}
    return {item: unpack(found.token_ids) for item, found in saved.items() if found}


def read(store: Store, table: OutputTable) -> dict[int, list[int]]:
    job_log(store).open(table)
    return outputs(table)


Tables = Callable[[], OutputTable]


def test_where_nothing_is_nothing_is_found(store: Store, tables: Tables) -> None:
    assert job_log(store).open(tables()) is None


def test_appended_entries_are_found(store: Store, tables: Tables) -> None:
    log = taken(store, tables())
    written = log.append([record(1, 0, 5, 6), SlotClosed(3)]) + log.append([record(1, 2, 7), SlotClosed(4)])
    late, table = job_log(store), tables()
    assert late.open(table) == SECRET
    assert late.bytes == written
    assert late.reader.closed_slots == {3, 4}
    assert outputs(table) == {1: [5, 6, 7]}


def test_nothing_appended_is_nothing_written(store: Store, tables: Tables) -> None:
    log = taken(store, tables())
    before = store.keys("")
    assert log.append([]) == 0
    assert store.keys("") == before


def test_takeover_keeps_records_secret_and_age(store: Store, tables: Tables) -> None:
    taken(store, tables()).append([record(1, 0, 5)])
    clock = Clock()
    for item in (2, 3):
        clock.now += 40
        log = job_log(store, clock=clock)
        assert log.open(tables()) == SECRET
        log.take(SECRET)
        assert decode(Head, store.get(head_key(JOB, log.epoch)) or b"").created == 1000.0
        log.append([record(item, 0, item)])
    assert read(store, tables()) == {1: [5], 2: [2], 3: [3]}


def test_former_writers_late_segment_does_not_count(store: Store, tables: Tables) -> None:
    old = taken(store, tables())
    old.append([record(1, 0, 5)])
    new = taken(store, tables())
    with pytest.raises(EpochLost):
        old.append([record(1, 1, 66), record(2, 0, 66)])
    new.append([record(1, 1, 7)])
    assert read(store, tables()) == {1: [5, 7]}
    assert taken(store, tables()).append([record(1, 2, 8)])
    assert read(store, tables()) == {1: [5, 7, 8]}


def overtaking(store: Store, tables: Tables) -> tuple[Writer, Writer, OutputTable]:
    """Return a writer, another one that opened the job before the first one's last segment, and what that one saw."""
    old = taken(store, tables())
    old.append([record(1, 0, 5)])
    new, seen = job_log(store), tables()
    new.open(seen)
    old.append([record(1, 1, 6)])
    return old, new, seen


def test_segments_count_until_takeover(store: Store, tables: Tables) -> None:
    """The former writer calls the one segment durable, and learns that the other isn't."""
    old, new, seen = overtaking(store, tables)
    new.take(SECRET, seen)
    with pytest.raises(EpochLost):
        old.append([record(1, 2, 66)])
    new.append([record(2, 0, 7)])
    assert outputs(seen) == {1: [5, 6]}
    assert read(store, tables()) == {1: [5, 6], 2: [7]}


class Between:
    """A store in which something else happens once, right before the call that `when` chooses."""

    def __init__(self, store: Store, when: Callable[[str, str], bool], happens: Callable[[], object]) -> None:
        self._store, self._when, self._happens = store, when, happens

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._store, name)
        if not callable(inner):
            return inner

        def call(key: str, *rest: Any) -> Any:
            if self._when(name, key):
                self._when = lambda *_: False
                self._happens()
            return inner(key, *rest)

        return call


def failing() -> None:
    raise StoreError("told to")


def take_often(store: Store, tables: Tables) -> Writer:
    """Take the job so often that unused epochs are deleted."""
    for _ in range(2 * log_module._MAX_UNUSED_EPOCHS):
        log = taken(store, tables())
    return log


def test_repeated_takeovers_keep_few_epochs(store: Store, tables: Tables) -> None:
    for item in range(3):
        taken(store, tables()).append([record(item, 0, item)])
        take_often(store, tables)
    if store.is_local:
        assert len(store.folders(f"jobs/{JOB}/")) <= 3 + log_module._MAX_UNUSED_EPOCHS + 1
    assert read(store, tables()) == {0: [0], 1: [1], 2: [2]}


@pytest.mark.parametrize("segments", [0, 1])
def test_former_writer_stops_after_epoch_deletion(local: Store, tables: Tables, segments: int) -> None:
    old = taken(local, tables())
    for start in range(segments):
        old.append([record(1, start, 5)])
    successor = taken(local, tables())
    newest = take_often(local, tables)
    assert local.keys(folder(successor.epoch)) == []
    with pytest.raises(EpochLost):
        old.append([record(1, segments, 66)])
    newest.append([record(1, segments, 7)])
    assert read(local, tables()) == {1: [5] * segments + [7]}


def test_writer_stops_when_checked_epoch_disappears(local: Store, tables: Tables) -> None:
    old = taken(local, tables())
    old.append([record(1, 0, 5)])
    claim = claim_key(JOB, taken(local, tables()).epoch)
    old.go_through(Between(local, lambda call, key: key == claim, lambda: take_often(local, tables)))
    with pytest.raises(EpochLost):
        old.append([record(1, 1, 66)])


def test_late_taker_loses_despite_free_epoch(local: Store, tables: Tables) -> None:
    taken(local, tables())
    late = job_log(local)
    late.open(tables())
    next_one = taken(local, tables())
    take_often(local, tables).append([record(1, 0, 7)])
    assert local.keys(folder(next_one.epoch)) == []
    with pytest.raises(EpochLost):
        late.take(SECRET)
    assert read(local, tables()) == {1: [7]}


def test_job_begun_meanwhile_is_not_begun_again(store: Store, tables: Tables) -> None:
    late = job_log(store)
    late.open()
    taken(store, tables()).append([record(1, 0, 7)])
    with pytest.raises(EpochLost):
        late.take(SECRET)
    assert read(store, tables()) == {1: [7]}


def test_empty_epoch_takes_nothing_away(local: Store, tables: Tables, tmp_path: Path) -> None:
    log = taken(local, tables())
    (tmp_path / "journal" / folder(log.epoch + 1)).mkdir()
    log.append([record(1, 0, 5)])
    assert read(local, tables()) == {1: [5]}


def test_failed_deletion_is_logged_and_harmless(local: Store, tables: Tables, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(log_module._MAX_UNUSED_EPOCHS + 1):
        taken(local, tables())
    log = job_log(Between(local, lambda call, key: call == "delete", failing))
    log.open(tables())
    log.take(SECRET)
    assert "epochs that count nothing are left: told to" in caplog.text
    log.append([record(1, 0, 5)])
    assert read(local, tables()) == {1: [5]}


@pytest.mark.parametrize("call", ["keys", "get", "create"], ids=["the list", "a segment", "the head"])
def test_broken_takeover_loses_nothing_durable(store: Store, tables: Tables, call: str) -> None:
    """The failure comes between the claim and the head."""
    old, new, table = overtaking(store, tables)
    new.go_through(Between(store, lambda c, key: c == call and not key.endswith("/claim"), failing))
    with pytest.raises(StoreError, match="told to"):
        new.take(SECRET, table)
    assert read(store, tables()) == {1: [5, 6]}
    with pytest.raises(EpochLost):
        old.append([record(1, 2, 66)])

    new.take(SECRET, table)  # again
    new.append([record(1, 2, 7)])
    assert outputs(table)[1][:2] == [5, 6]
    assert read(store, tables())[1][-1] == 7


def test_takeover_during_takeover_has_all_durable(store: Store, tables: Tables) -> None:
    _, new, _ = overtaking(store, tables)
    rivals: list[Writer] = []
    new.go_through(
        Between(
            store,
            lambda call, key: call == "create" and key.endswith("/head"),
            lambda: rivals.append(taken(store, tables())),
        )
    )
    new.take(SECRET)
    with pytest.raises(EpochLost):
        new.append([record(1, 2, 66)])
    rivals[0].append([record(1, 2, 7)])
    assert read(store, tables()) == {1: [5, 6, 7]}


def test_unchecked_segment_is_not_written_again(store: Store, tables: Tables) -> None:
    log = taken(store, tables())
    entries: list[Any] = [record(1, 0, 5)]
    for _ in range(2):
        log.go_through(Between(store, lambda call, key: call == "folders", failing))
        with pytest.raises(StoreError, match="told to"):
            log.append(entries)
    entries.append(record(2, 0, 6))
    assert log.append(entries) == log.bytes
    assert len(store.keys(folder(log.epoch) + "0")) == 2
    assert read(store, tables()) == {1: [5], 2: [6]}


def test_unchecked_segment_before_takeover_is_lost(store: Store, tables: Tables) -> None:
    old = taken(store, tables())
    old.go_through(Between(store, lambda call, key: call == "folders", failing))
    entries: list[Any] = [record(1, 0, 5)]
    with pytest.raises(StoreError, match="told to"):
        old.append(entries)
    taken(store, tables())
    with pytest.raises(EpochLost):
        old.append(entries)


def test_ever_changing_epochs_are_failure(local: Store, tables: Tables) -> None:
    log = taken(local, tables())
    numbers = itertools.count(log.epoch + 1)

    class Flapping:
        def __getattr__(self, name: str) -> Any:
            return getattr(local, name)

        def folders(self, folder: str) -> list[str]:
            return [f"{next(numbers):016d}"]

    log.go_through(Flapping())
    with pytest.raises(StoreError, match="kept changing"):
        log.append([record(1, 0, 5)])


def test_half_written_head_keeps_its_writer(local: Store, tables: Tables, tmp_path: Path) -> None:
    """This can be seen where files can't have two names."""
    taken(local, tables()).append([record(1, 0, 5)])
    other = taken(local, tables())
    head = tmp_path / "journal" / head_key(JOB, other.epoch)
    whole = head.read_bytes()
    head.write_bytes(whole[:20])
    late = job_log(local)
    late.open(tables())
    head.write_bytes(whole)
    other.append([record(1, 1, 6)])
    with pytest.raises(EpochLost):
        late.take(SECRET)
    taken(local, tables()).append([record(1, 2, 7)])
    assert read(local, tables()) == {1: [5, 6, 7]}


@pytest.mark.parametrize("segments", [0, 1])
def test_job_is_found_during_epoch_deletion(local: Store, tables: Tables, segments: int) -> None:
    old = taken(local, tables())
    for start in range(segments):
        old.append([record(1, start, 5)])
    taken(local, tables())
    late = job_log(Between(local, lambda call, _: call == "get", lambda: take_often(local, tables)))
    table = tables()
    assert late.open(table) is not None
    assert outputs(table) == ({1: [5]} if segments else {})
    late.take(SECRET)
    late.append([record(1, segments, 7)])
    assert read(local, tables()) == {1: [5] * segments + [7]}


def test_second_taker_must_look_again(store: Store, tables: Tables) -> None:
    first, second = job_log(store), job_log(store)
    for log in (first, second):
        log.open()
    first.take(SECRET)
    with pytest.raises(EpochLost):
        second.take(SECRET)
    second.open()
    second.take(SECRET)
    assert second.append([record(1, 0, 1)])
    with pytest.raises(EpochLost):
        first.append([record(1, 0, 66)])


def test_slot_closed_before_claim_is_closed(store: Store, tables: Tables) -> None:
    old = taken(store, tables())
    old.append([SlotClosed(1)])
    new = job_log(store)
    new.open()
    old.append([SlotClosed(2)])
    new.take(SECRET)
    assert new.reader.closed_slots == {1, 2}


def test_competing_threads_all_write(store: Store, tables: Tables) -> None:
    barrier = threading.Barrier(3)

    def write(item: int) -> None:
        barrier.wait()
        for _ in range(100):
            with contextlib.suppress(EpochLost):
                log = job_log(store)
                log.open()
                log.take(SECRET)
                log.append([record(item, 0, item)])
                return
        raise AssertionError("not in a hundred tries")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert read(store, tables()) == {item: [item] for item in range(3)}


RACER = """
import sys, tempfile
from container.journal.job_log import EpochLost, JobLog
from container.journal.job_reader import JobReader
from container.journal.output_table import OutputTable
from container.journal.segment import Record, pack
from container.journal.stores.open_store import open_store

uri, job, mine = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = open_store(uri)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(6):
    reader = JobReader(store, job, "digest", lifetime_s=1e9)
    table = OutputTable(tempfile.gettempdir())
    reader.open()
    reader.read(table)
    log = JobLog(reader, writer="w", max_bytes=1 << 30)
    try:
        log.take(bytes(16), table)
        saved = table.get((0, 0, 0, 0))
        at = saved.tokens if saved else 0
        for _ in range(3):  # in its epoch it goes on with numbers that tell writer and turn
            piece = [mine * 1000 + turn] * 2
            log.append([Record(0, 0, 0, 0, 1, at, pack(piece))])
            print(log.epoch, at, *piece, flush=True)
            at += 2
    except EpochLost:
        pass
    table.close()
"""


def test_competing_processes_mix_no_outputs(uri: str, tables: Tables) -> None:
    """Each epoch's pieces lie in one stretch, no epoch has two writers, and all durable pieces are there."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, uri, JOB, str(number)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(1, 4)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(3) as pool:
        told = [
            line.split()
            for out, _ in pool.map(lambda racer: racer.communicate("\n"), racers)
            for line in out.splitlines()
        ]
    assert all(racer.returncode == 0 for racer in racers)
    owners = {}
    for epoch, _, token_id, _ in told:
        assert owners.setdefault(epoch, token_id) == token_id
    with closing_store(uri) as store:
        [token_ids] = read(store, tables()).values()
    assert token_ids[::2] == token_ids[1::2]
    stretches = [token_id for token_id, _ in itertools.groupby(token_ids)]
    assert len(set(stretches)) == len(stretches)
    told_in_order = [int(owners[epoch]) for epoch in sorted(owners, key=int)]
    assert [token_id for token_id in stretches if token_id in told_in_order] == told_in_order


# Damage


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "journal" / "jobs" / JOB).rglob("00*/0*"))


@pytest.mark.parametrize("seed", range(5))
def test_damaged_segment_is_dropped_with_warning(
    local: Store, tables: Tables, tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    log = taken(local, tables())
    for item in range(3):
        log.append([record(item, 0, item), record(5, item, item)])
    rng = random.Random(seed)
    damaged = files(tmp_path)[1]
    data = bytearray(damaged.read_bytes())
    if seed % 2:
        data = data[: rng.randrange(len(data))]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    damaged.write_bytes(data)
    assert read(local, tables()) == {0: [0], 2: [2], 5: [0]}
    assert [r.message for r in caplog.records] == ["1 of a job's 3 segments are torn, changed or missing: dropped"]


def test_segments_under_each_others_names_are_dropped(local: Store, tables: Tables, tmp_path: Path) -> None:
    log = taken(local, tables())
    for item in range(2):
        log.append([record(item, 0, item)])
    files(tmp_path)[1].write_bytes(files(tmp_path)[0].read_bytes())
    assert read(local, tables()) == {0: [0]}


def test_torn_head_gives_way_to_former(
    local: Store, tables: Tables, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken(local, tables()).append([record(1, 0, 5)])
    torn = taken(local, tables())
    torn.append([record(2, 0, 6)])
    (tmp_path / "journal" / head_key(JOB, torn.epoch)).write_bytes(b"LHJL")
    log = taken(local, tables())
    assert log.epoch > torn.epoch and f"head of a job's epoch {torn.epoch} is dropped" in caplog.text
    log.append([record(3, 0, 7)])
    assert read(local, tables()) == {1: [5], 3: [7]}


def test_headless_segments_are_ignored(local: Store, tables: Tables, tmp_path: Path) -> None:
    headless = taken(local, tables())
    headless.append([record(1, 0, 5)])
    (tmp_path / "journal" / head_key(JOB, headless.epoch)).unlink()
    log = job_log(local)
    assert log.open(tables()) is None
    log.take(SECRET)
    log.append([record(2, 0, 6)])
    assert read(local, tables()) == {2: [6]}


def test_foreign_objects_do_not_disturb_journal(store: Store, tables: Tables) -> None:
    log = taken(store, tables())
    log.append([record(1, 0, 5)])
    store.put(f"jobs/{JOB}/progress", b"{}")
    store.put(folder(log.epoch) + "note", b"{}")
    assert read(store, tables()) == {1: [5]}


# Owners, ages and sizes


def test_other_digest_is_conflict(store: Store, tables: Tables) -> None:
    taken(store, tables()).append([record(1, 0, 5)])
    with pytest.raises(DigestConflict):
        job_log(store, "another").open(tables())
    assert read(store, tables()) == {1: [5]}


def test_expired_job_begins_anew_in_later_epoch(store: Store, tables: Tables) -> None:
    expired = taken(store, tables())
    expired.append([record(1, 0, 5)])
    clock = Clock()
    clock.now += 100
    assert job_log(store, clock=clock).open(tables()) is not None
    clock.now += 1
    log = job_log(store, "another", clock=clock)
    assert log.open(tables()) is None
    assert store.keys("") == []
    log.take(SECRET)
    assert log.epoch > expired.epoch


def test_late_deletion_spares_new_job(store: Store, tables: Tables) -> None:
    taken(store, tables())
    clock = Clock()
    clock.now += 101

    def begin_anew() -> None:
        taken(store, tables(), clock=clock).append([record(1, 0, 5)])

    late = job_log(Between(store, lambda call, _: call == "delete", begin_anew), clock=clock)
    assert late.open() is None
    with pytest.raises(EpochLost):
        late.take(SECRET)
    assert read(store, tables()) == {1: [5]}


def test_deleter_of_expired_job_loses_to_newer(store: Store, tables: Tables) -> None:
    taken(store, tables())
    clock = Clock()
    clock.now += 101
    late = job_log(store, clock=clock)
    assert late.open() is None
    taken(store, tables(), clock=clock).append([record(1, 0, 5)])
    with pytest.raises(EpochLost):
        late.take(SECRET)
    assert read(store, tables()) == {1: [5]}


def test_full_job_stays_full_after_takeover(store: Store, tables: Tables) -> None:
    log = taken(store, tables(), max_bytes=500)
    with pytest.raises(JournalFull, match="limit of 500"):
        for item in range(20):
            log.append([record(item, 0, 1)])
    assert 0 < log.bytes <= 500
    with pytest.raises(JournalFull):
        taken(store, tables(), max_bytes=500).append([record(1, 0, *range(100))])


def test_writer_of_deleted_job_begins_again(store: Store, tables: Tables) -> None:
    log = taken(store, tables())
    store.delete(f"jobs/{JOB}/")
    with pytest.raises(JournalGone):
        log.append([record(1, 0, 5)])
    log.open(tables())
    log.take(SECRET)
    log.append([record(1, 0, 5)])
    assert read(store, tables()) == {1: [5]}


class Ticking(Clock):
    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_job_begun_anew_is_lost_to_writer(store: Store, tables: Tables) -> None:
    clock = Ticking()
    old = taken(store, tables(), clock=clock)
    old.append([record(1, 0, 66)])
    store.delete(f"jobs/{JOB}/")
    new = taken(store, tables(), clock=clock)
    with pytest.raises(EpochLost):
        old.append([record(2, 0, 66)])
    new.append([record(1, 0, 5)])
    assert read(store, tables()) == {1: [5]}


@pytest.mark.parametrize("call", ["claim", "list", "head"])
def test_job_begun_anew_during_take_is_lost(store: Store, tables: Tables, call: str) -> None:
    """Late objects take nothing away from it, and nothing is durable that builds on deleted records."""
    clock = Ticking()
    taken(store, tables(), clock=clock).append([record(1, 0, 66)])

    def begin_anew() -> None:
        store.delete(f"jobs/{JOB}/")
        taken(store, tables(), clock=clock).append([record(1, 0, 5)])

    when = {
        "claim": lambda call, key: key.endswith("/claim"),
        "list": lambda call, _: call == "keys",
        "head": lambda call, key: call == "create" and key.endswith("/head"),
    }
    late = job_log(store, clock=clock)
    late.open()
    late.go_through(Between(store, when[call], begin_anew))
    with pytest.raises(EpochLost):
        late.take(SECRET)
        late.append([record(1, 1, 66)])
    assert read(store, tables()) == {1: [5]}


@pytest.mark.parametrize("call", ["list", "head"])
def test_job_deleted_during_take_keeps_nothing(store: Store, tables: Tables, call: str) -> None:
    taken(store, tables()).append([record(1, 0, 66)])
    late = job_log(store)
    late.open()
    name = {"list": "keys", "head": "create"}[call]
    delete = Between(
        store, lambda c, key: c == name and not key.endswith("/claim"), lambda: store.delete(f"jobs/{JOB}/")
    )
    late.go_through(delete)
    with pytest.raises((EpochLost, JournalGone)):
        late.take(SECRET)
        late.append([record(1, 1, 66)])
    assert job_log(store).open() is None


def test_retried_take_of_deleted_job_revives_nothing(store: Store, tables: Tables) -> None:
    """Its head comes after the deletion, and its answer is lost. A claim made again would let that head count."""
    taken(store, tables()).append([record(1, 0, 66)])
    late = job_log(store)
    late.open()
    clock = Clock()
    clock.now -= 1  # the other server's epoch is lower

    def begin_anew() -> None:
        store.delete(f"jobs/{JOB}/")
        taken(store, tables(), clock=clock).append([record(1, 0, 5)])

    class LosingAnswer:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def create(self, key: str, data: bytes) -> bool:
            is_head = key.endswith("/head")
            if is_head:
                begin_anew()
            store.create(key, data)
            if is_head:
                raise StoreError("told to lose the answer")
            return True

    late.go_through(LosingAnswer())
    with pytest.raises(StoreError, match="lose the answer"):
        late.take(SECRET)
    late.go_through(store)
    with pytest.raises(EpochLost):
        late.take(SECRET)
    assert read(store, tables()) == {1: [5]}


def test_late_objects_stop_no_writer(store: Store, tables: Tables) -> None:
    log = taken(store, tables())
    store.put(segment_key(JOB, log.epoch + 5, 3), b"late")
    store.put(head_key(JOB, log.epoch + 6), store.get(head_key(JOB, log.epoch)) or b"")
    log.append([record(1, 0, 5)])
    assert read(store, tables()) == {1: [5]}


def test_much_at_once_becomes_several_segments(store: Store, tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_SEGMENT_BYTES", 1000)
    log = taken(store, tables())
    log.append([record(item, 0, *range(100)) for item in range(9)])
    assert len(store.keys(folder(log.epoch) + "0")) == 5
    assert read(store, tables()) == {item: list(range(100)) for item in range(9)}


def test_many_segments_keep_their_order(store: Store, tables: Tables) -> None:
    log = taken(store, tables())
    for at in range(20):
        log.append([record(1, at, at)])
    assert read(store, tables()) == {1: list(range(20))}


def test_logs_and_files_hide_names(
    local: Store, tables: Tables, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    taken(local, tables()).append([record(1, 0, 5)])
    files(tmp_path)[0].write_bytes(b"")
    read(local, tables())
    everything = caplog.text + "".join(str(path) for path in tmp_path.rglob("*"))
    assert "dropped" in everything and "my-job" not in everything


# Failing stores


@pytest.fixture
def s3(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with closing(FaultyS3(emulator.port)) as s3:
        set_environment(monkeypatch, s3.url)
        yield s3


@pytest.fixture
def faulty(s3: FaultyS3, emulator: Emulator) -> Iterator[Store]:
    with impatient(f"s3://{new_bucket(emulator)}") as store:
        yield store


def test_failed_append_succeeds_again(faulty: Store, s3: FaultyS3, tables: Tables) -> None:
    log = taken(faulty, tables())
    log.append([record(1, 0, 1)])
    s3.will(["503"] * 3)
    with pytest.raises(StoreError):
        log.append([record(1, 1, 2)])
    log.append([record(1, 1, 2, 3)])
    assert read(faulty, tables()) == {1: [1, 2, 3]}


def test_append_with_lost_answer_is_harmless(faulty: Store, s3: FaultyS3, tables: Tables) -> None:
    log = taken(faulty, tables())
    s3.will(["lost", "503", "503"])
    with pytest.raises(StoreError):
        log.append([record(1, 0, 1)])
    log.append([record(1, 0, 1, 2)])
    s3.will(["lost"])
    log.append([record(1, 2, 3)])
    assert read(faulty, tables()) == {1: [1, 2, 3]}


def test_take_with_lost_answer_is_own(faulty: Store, s3: FaultyS3, tables: Tables) -> None:
    log = job_log(faulty)
    log.open(tables())
    s3.will(["lost", "503", "503"])
    with pytest.raises(StoreError):
        log.take(SECRET)
    log.take(SECRET)
    assert log.append([record(1, 0, 1)])


def test_unreadable_job_is_not_empty(faulty: Store, s3: FaultyS3, tables: Tables) -> None:
    taken(faulty, tables()).append([record(1, 0, 1)])
    for answered in range(3):  # the list, the head, the segment
        s3.will(["none"] * answered)
        s3.will(["503"] * 3)
        with pytest.raises(StoreError, match="SlowDown"):
            job_log(faulty).open(tables())
    assert read(faulty, tables()) == {1: [1]}


WRITER = """
import sys, tempfile
from container.journal.job_log import JobLog
from container.journal.job_reader import JobReader
from container.journal.output_table import OutputTable
from container.journal.segment import Record, pack
from container.journal.stores.open_store import open_store

reader = JobReader(open_store(sys.argv[1]), sys.argv[2], "digest", lifetime_s=1e9)
table = OutputTable(tempfile.gettempdir())
reader.open()
reader.read(table)
log = JobLog(reader, writer="w", max_bytes=1 << 30)
log.take(bytes(16))
saved = table.get((0, 0, 0, 0))
at = saved.tokens if saved else 0
while True:
    log.append([Record(0, 0, 0, 0, 1, at, pack([at, at + 1]))])
    at += 2
    print(at, flush=True)
"""


def test_killed_writer_keeps_what_is_durable(uri: str, tables: Tables) -> None:
    """The writers follow each other on one job, and each goes on where the last one was killed."""
    rng = random.Random(7)
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, uri, JOB]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            durable = [int(writer.stdout.readline()) for _ in range(rng.randrange(1, 20))][-1]
            writer.kill()
            durable = max([durable, *map(int, writer.stdout.read().splitlines()[:-1])])
        with closing_store(uri) as store:
            token_ids = read(store, tables())[0]
        assert token_ids == list(range(len(token_ids))) and len(token_ids) >= durable
