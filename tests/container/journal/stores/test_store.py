from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from container.journal.stores.open_store import open_store
from container.journal.stores.store import Store
from testing.container.journal_stores import KINDS, closing_store, emulated, new_uri
from testing.emulator import Emulator


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with emulated(tmp_path_factory) as emulator:
        yield emulator


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with closing_store(new_uri(request.param, tmp_path, request)) as store:
        yield store


def test_what_was_created_is_there(store: Store) -> None:
    assert store.create("jobs/a/1", b"one")
    assert (store.get("jobs/a/1"), store.exists("jobs/a/1")) == (b"one", True)


def test_nothing_is_where_nothing_was_created(store: Store) -> None:
    store.create("jobs/a/1", b"one")
    assert (store.get("jobs/a/2"), store.exists("jobs/a/2"), store.keys("jobs/b/")) == (None, False, [])


def test_what_exists_is_not_created_again(store: Store) -> None:
    assert store.create("jobs/a/1", b"one")
    assert not store.create("jobs/a/1", b"two")
    assert store.get("jobs/a/1") == b"one"


def test_put_replaces_object(store: Store) -> None:
    for data in (b"one", b"two"):
        store.put("jobs/a/progress", data)
    assert store.get("jobs/a/progress") == b"two"


@pytest.mark.parametrize("data", [b"", bytes(range(256)), bytes(3 << 20)], ids=["nothing", "all bytes", "much"])
def test_any_bytes_come_back(store: Store, data: bytes) -> None:
    store.create("a", data)
    assert store.get("a") == data


def test_keys_begin_with_prefix_and_are_sorted(store: Store) -> None:
    for key in ("jobs/b/2", "jobs/b/10", "jobs/b/1/head", "jobs/bc/1", "other"):
        store.create(key, b"x")
    assert store.keys("jobs/b/") == ["jobs/b/1/head", "jobs/b/10", "jobs/b/2"]
    assert store.keys("jobs/b") == ["jobs/b/1/head", "jobs/b/10", "jobs/b/2", "jobs/bc/1"]
    assert store.keys("") == ["jobs/b/1/head", "jobs/b/10", "jobs/b/2", "jobs/bc/1", "other"]


def test_folders_are_direct_and_sorted(store: Store) -> None:
    for key in ("jobs/b/2/head", "jobs/b/10/1", "jobs/b/10/head", "jobs/b/1", "jobs/bc/3/head", "other/4/head"):
        store.create(key, b"x")
    assert store.folders("jobs/b/") == ["10", "2"]
    assert (store.folders("jobs/"), store.folders("nothing/")) == (["b", "bc"], [])
    store.delete("jobs/b/10/")
    assert store.folders("jobs/b/") == ["2"]


def test_many_pages_are_listed_and_deleted(store: Store) -> None:
    keys = [f"jobs/a/{number:08d}" for number in range(1050)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda key: store.create(key, b""), keys))
    assert store.keys("jobs/a/") == keys
    store.delete("jobs/a/")
    assert store.keys("") == []


def test_a_deletion_takes_no_neighbours_with_it(store: Store) -> None:
    for key in ("jobs/a/1/head", "jobs/a/2", "jobs/ab/1", "jobs/b/1"):
        store.create(key, b"x")
    store.delete("jobs/a/")
    assert store.keys("") == ["jobs/ab/1", "jobs/b/1"]


def test_deleting_missing_folder_does_nothing(store: Store) -> None:
    store.delete("jobs/a/")


def test_what_was_deleted_can_be_created_again(store: Store) -> None:
    store.create("jobs/a/1", b"one")
    store.delete("jobs/a/")
    assert store.create("jobs/a/1", b"two")
    assert store.get("jobs/a/1") == b"two"


def test_of_many_creators_one_succeeds(store: Store) -> None:
    barrier = Barrier(8)

    def create(number: int) -> bool:
        barrier.wait()
        return store.create("jobs/a/1", b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert created.count(True) == 1
    assert store.get("jobs/a/1") == b"%d" % created.index(True)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".new-1", "a\n", "ä", "a b", "a\0"])
def test_no_other_key_is_taken(store: Store, key: str) -> None:
    for call in (store.get, store.exists, lambda key: store.create(key, b""), lambda key: store.put(key, b"")):
        with pytest.raises(ValueError, match="not a key"):
            call(key)


@pytest.mark.parametrize("prefix", ["", "/", "jobs", "jobs/../"])
def test_nothing_else_is_deleted(store: Store, prefix: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        store.delete(prefix)


@pytest.mark.parametrize(
    "uri",
    ["", "s3://", "s3:///a", "s3://B_A_D/a", "s3://bucket/a//b", "s3://bucket/../a", "s3://bucket/a?b", "file:///a",
     "https://bucket/a", "a\0b"],
)  # fmt: skip
def test_what_is_neither_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="expected s3://bucket/prefix"):
        open_store(uri)


def test_a_directory_takes_no_kms_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="for s3:// only"):
        open_store(str(tmp_path), kms_key="alias/a")
