from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from container.journal.job_log import JobLog
from container.journal.job_reader import JobReader, head_key
from container.journal.output_table import OutputTable
from container.journal.retention import sweep
from container.journal.segment import Head, SlotClosed, decode, encode_head
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError

NOBODY: frozenset[str] = frozenset()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "journal"))


def make(store: DirectoryStore, job: str, created: float) -> int:
    """Write a job, and return its size in bytes."""
    reader = JobReader(store, job, "d", lifetime_s=1e9, clock=lambda: created)
    with closing(OutputTable(tempfile.gettempdir())) as table:
        reader.open()
        reader.read(table)
    log = JobLog(reader, writer="w", max_bytes=1 << 30)
    log.take(bytes(16))
    log.append([SlotClosed(slot) for slot in range(500)])
    return sum(store.sizes(f"jobs/{job}/").values())


def newest(store: DirectoryStore, job: str) -> int:
    """Return the job's newest epoch."""
    return max(map(int, store.folders(f"jobs/{job}/")))


def swept(store: DirectoryStore, max_bytes: int = 1 << 30, keep: frozenset[str] = NOBODY) -> list[str]:
    """Sweep, and return the ids of the jobs that are left."""
    sweep(store, lifetime_s=100, max_bytes=max_bytes, keep=keep, clock=lambda: 1000.0)
    return store.folders("jobs/")


def test_an_empty_directory_has_nothing_to_sweep(store: DirectoryStore) -> None:
    assert swept(store) == []


def test_expired_jobs_go_unless_in_use(store: DirectoryStore) -> None:
    for job, created in {"a": 899.0, "b": 900.0, "c": 800.0}.items():
        make(store, job, created)
    assert swept(store, keep=frozenset("c")) == ["b", "c"]


def test_oldest_jobs_go_over_limit(store: DirectoryStore) -> None:
    sizes = {
        job: make(store, job, created) for job, created in {"d": 910.0, "a": 920.0, "c": 930.0, "b": 940.0}.items()
    }
    limit = sizes["d"] + sizes["b"]
    assert swept(store, limit, frozenset("d")) == ["b", "d"]


def test_torn_head_has_folders_age(store: DirectoryStore, tmp_path: Path) -> None:
    for job, changed in {"old": 899.0, "young": 950.0}.items():
        make(store, job, 0)
        folder = tmp_path / "journal" / "jobs" / job
        (tmp_path / "journal" / head_key(job, newest(store, job))).write_bytes(b"LHJL")
        os.utime(folder, (changed, changed))
    assert swept(store) == ["young"]


def test_torn_newest_head_has_formers_age(store: DirectoryStore, tmp_path: Path) -> None:
    make(store, "a", 950.0)
    make(store, "a", 960.0)
    (tmp_path / "journal" / head_key("a", newest(store, "a"))).write_bytes(b"LHJL")
    assert swept(store) == ["a"]
    sweep(store, lifetime_s=40, max_bytes=1 << 30, keep=NOBODY, clock=lambda: 1000.0)
    assert store.folders("jobs/") == []


def test_unclaimed_head_does_not_tell_age(store: DirectoryStore) -> None:
    """A writer of a deleted job of the same name put the head late."""
    make(store, "a", 800.0)
    late = store.get(head_key("a", newest(store, "a"))) or b""
    store.delete("jobs/a/")
    make(store, "a", 950.0)
    epoch = newest(store, "a") + 1
    store.put(head_key("a", epoch), encode_head(msgspec.structs.replace(decode(Head, late), epoch=epoch)))
    assert swept(store) == ["a"]


def test_job_begun_anew_during_sweep_stays(store: DirectoryStore) -> None:
    make(store, "a", 800.0)

    class Keep(frozenset[str]):
        """A set that is asked once all jobs were read: then the job begins anew."""

        def __contains__(self, job: object) -> bool:
            store.delete("jobs/a/")
            make(store, "a", 950.0)
            return False

    assert swept(store, keep=Keep()) == ["a"]


def test_unreadable_job_keeps_no_other(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for job in ("a", "b"):
        make(store, job, 800.0)
    sizes = store.sizes

    def refuse(prefix: str) -> dict[str, int]:
        if prefix == "jobs/a/":
            raise StoreError("told to")
        return sizes(prefix)

    monkeypatch.setattr(store, "sizes", refuse)
    assert swept(store) == ["a"]
    assert "stays: told to" in caplog.text


def test_killed_writers_files_are_swept(store: DirectoryStore, tmp_path: Path) -> None:
    make(store, "a", 950.0)
    left = tmp_path / "journal" / "jobs" / "a" / ".new-0"
    left.touch()
    assert swept(store) == ["a"]
    assert not left.exists()
