from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from container.journal.stores.open_store import open_store
from container.journal.stores.s3 import S3Store
from container.journal.stores.store import StoreError
from testing import ROOT
from testing.container.faulty_s3 import Fault, FaultyS3
from testing.container.journal_stores import closing_store, emulated, impatient, new_bucket, set_environment
from testing.emulator import Emulator
from testing.server import free_port


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with emulated(tmp_path_factory) as emulator:
        yield emulator


@pytest.fixture
def s3(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with closing(FaultyS3(emulator.port)) as s3:
        set_environment(monkeypatch, s3.url)
        yield s3


@pytest.fixture
def store(s3: FaultyS3, emulator: Emulator) -> Iterator[S3Store]:
    with impatient(f"s3://{new_bucket(emulator)}/a") as store:
        yield store


@pytest.mark.parametrize("fault", ["500", "503", "cut", "slow"])
def test_one_fault_is_not_noticed(store: S3Store, s3: FaultyS3, fault: Fault) -> None:
    for call in (
        lambda: store.create("a", b"one"),
        lambda: store.get("a") == b"one",
        lambda: store.exists("a"),
        lambda: store.keys("") == ["a"],
        lambda: store.folders("b/") == [],
    ):
        s3.will([fault])
        assert call()
    assert not s3.faults


@pytest.mark.parametrize(
    ("fault", "cause"), [("503", "SlowDown"), ("cut", "ConnectionClosedError"), ("slow", "ReadTimeoutError")]
)
def test_lasting_failure_names_store_and_cause(store: S3Store, s3: FaultyS3, fault: Fault, cause: str) -> None:
    s3.will([fault] * 3)
    with pytest.raises(StoreError, match=f"^{store.describe}: could not write it: {cause}$"):
        store.create("a", b"one")
    assert not s3.faults and s3.forwarded == []


def test_missing_bucket_error_says_what_to_do(s3: FaultyS3) -> None:
    with impatient("s3://no-such-bucket/a") as store:
        for call in (
            lambda: store.create("a", b"one"),
            lambda: store.put("a", b"one"),
            lambda: store.get("a"),
            lambda: store.keys(""),
            lambda: store.folders("a/"),
            lambda: store.delete("a/"),
        ):
            with pytest.raises(StoreError, match=r"^s3://no-such-bucket/a: .*NoSuchBucket: there is no such bucket"):
                call()


def test_create_with_lost_answer_fails_or_exists(store: S3Store, s3: FaultyS3) -> None:
    s3.will(["lost"])
    assert not store.create("a", b"one")  # the second attempt finds the first's
    s3.will(["lost", "503", "503"])
    with pytest.raises(StoreError):
        store.create("b", b"two")
    assert (store.get("a"), store.get("b")) == (b"one", b"two")


def test_truncated_body_is_read_again(store: S3Store, s3: FaultyS3) -> None:
    store.create("a", bytes(100_000))
    s3.will(["short"])
    assert store.get("a") == bytes(100_000)
    s3.will(["short"] * 3)
    with pytest.raises(StoreError, match="could not read it"):
        store.get("a")


def test_conflicting_write_is_tried_again(store: S3Store, s3: FaultyS3) -> None:
    s3.will(["conflict", "conflict"])
    assert store.create("a", b"one")
    s3.will(["conflict"] * 3)
    with pytest.raises(StoreError, match="ConditionalRequestConflict"):
        store.create("b", b"one")


def test_own_endpoint_gets_buckets_in_path(s3: FaultyS3, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, s3.url.replace("127.0.0.1", "localhost"))
    bucket = new_bucket(emulator)
    with impatient(f"s3://{bucket}/a") as store:
        store.create("b", b"")
    assert s3.forwarded == [f"PUT /{bucket}/a/b"]


def test_missing_endpoint_is_failure(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, f"http://127.0.0.1:{free_port()}")
    with impatient("s3://bucket/a") as store, pytest.raises(StoreError, match="EndpointConnectionError"):
        store.get("a")


def test_missing_credentials_error_says_what_to_do(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with impatient("s3://bucket/a") as store, pytest.raises(StoreError, match="give the container a role"):
        store.get("a")


def test_no_failure_tells_a_secret(store: S3Store, s3: FaultyS3) -> None:
    s3.will(["cut"] * 3)
    with pytest.raises(StoreError) as caught:
        store.create("a", b"the prompt")
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert not any(word in f"{error!r}" for error in chain for word in ("secret", "AKIA", "prompt"))


def test_the_kms_key_goes_with_every_write(s3: FaultyS3, emulator: Emulator) -> None:
    bucket = new_bucket(emulator)
    store = S3Store(f"s3://{bucket}", kms_key="alias/journal")
    store.create("a", b"")
    store.put("b", b"")
    for key in ("a", "b"):
        head = emulator.client("s3").head_object(Bucket=bucket, Key=key)
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/journal")


def test_amazons_own_s3_needs_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, "")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with closing_store("s3://bucket/a"):
        pass
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(ValueError, match="set AWS_REGION"):
        open_store("s3://bucket/a")


def test_missing_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ValueError, match=r"s3://bucket: .*nobody"):
        open_store("s3://bucket")


def test_one_client_serves_many_threads(store: S3Store) -> None:
    numbers = itertools.count()
    failures = []

    def work() -> None:
        for _ in range(20):
            key = f"a/{next(numbers)}"
            if not (store.create(key, key.encode()) and store.get(key) == key.encode()):
                failures.append(key)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(store.keys("a/")) == 160


def test_a_directory_imports_no_boto3(tmp_path: Path) -> None:
    program = f"import sys; from container.journal.stores.open_store import open_store; open_store({str(tmp_path)!r});"
    program += "import container.journal.job_log, container.journal.retention; print('boto3' in sys.modules)"
    root = ROOT
    answer = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, check=True, text=True)
    assert answer.stdout == "False\n"
