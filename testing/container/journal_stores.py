"""Stores for the journal's tests: a directory, and a bucket of an emulator."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from container.journal.stores.open_store import open_store
from container.journal.stores.s3 import S3Store
from container.journal.stores.store import Store
from testing.emulator import Emulator

KINDS = ("directory", "s3")

_numbers = itertools.count()


@contextmanager
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    try:
        yield emulator
    finally:
        emulator.close()


def set_environment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Set the environment of a process that uses the S3 at `url`, and nothing else that this machine may have."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIANOTAKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret-either")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def new_bucket(emulator: Emulator) -> str:
    name = f"journal-{next(_numbers)}"
    emulator.client("s3").create_bucket(Bucket=name)
    return name


def new_uri(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Make a new store's URI. `request` has the fixture `emulator`, which is requested only for S3."""
    if kind == "directory":
        return str(tmp_path / "journal")
    emulator = request.getfixturevalue("emulator")
    set_environment(request.getfixturevalue("monkeypatch"), emulator.url)
    return f"s3://{new_bucket(emulator)}/some/prefix"


@contextmanager
def closing_store(uri: str) -> Iterator[Store]:
    yield open_store(uri)


@contextmanager
def impatient(uri: str) -> Iterator[S3Store]:
    yield S3Store(uri, connect_timeout_s=0.5, read_timeout_s=0.2)
