from __future__ import annotations

import asyncio
import hashlib
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import pytest

from endpoint.aws.s3_location import parse_location
from endpoint.data_plane.storage import MAX_INPUT_BYTES, InputUnreadable, Source, Storage, UploadFailed
from testing.emulator import Emulator
from testing.loopback import Loopback
from testing.server import free_port

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    emulator.client("s3").create_bucket(Bucket="bucket")
    yield emulator
    emulator.close()


class One:
    """A backend of one client."""

    def __init__(self, url: str) -> None:
        config = botocore.config.Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
        session = boto3.Session(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
        self._client = session.client("s3", endpoint_url=url, config=config)

    def client(self, service: str) -> Any:
        assert service == "s3"
        return self._client


class Canned:
    """A backend whose objects are all the same."""

    def __init__(self, body: Any, size: int) -> None:
        self.closed = threading.Event()
        self._body = body
        self._size = size

    def client(self, service: str) -> Any:
        return self

    def get_object(self, **_: Any) -> dict[str, Any]:
        return {"ContentLength": self._size, "Body": self}

    def read(self, size: int) -> bytes:
        data: bytes = self._body.read(size)
        return data

    def close(self) -> None:
        self.closed.set()


def with_storage(tmp_path: Path, backend: Any, work: Callable[[Storage], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await work(Storage(backend))

    return asyncio.run(run())


def put(tmp_path: Path, backend: Any, location: str, source: Path | bytes, *rest: Any) -> None:
    with_storage(tmp_path, backend, lambda storage: storage.put(location, source, *(rest or (None,))))


def read(tmp_path: Path, backend: Any, location: str) -> tuple[Source, bytes]:
    async def work(storage: Storage) -> tuple[Source, bytes]:
        source = await storage.open(location)
        try:
            return source, b"".join([chunk async for chunk in source.chunks()])
        finally:
            await source.close()

    found: tuple[Source, bytes] = with_storage(tmp_path, backend, work)
    return found


@pytest.mark.parametrize(
    "location",
    [
        "s3://my.bucket/a/k%20.json",
        "https://my.bucket.s3.amazonaws.com/a/k%2520.json",
        "https://my.bucket.s3.eu-west-1.amazonaws.com/a/k%2520.json",
        "https://my.bucket.s3-eu-west-1.amazonaws.com/a/k%2520.json",
        "https://my.bucket.s3.dualstack.eu-west-1.amazonaws.com/a/k%2520.json",
        "https://s3.amazonaws.com/my.bucket/a/k%2520.json",
        "https://s3.eu-west-1.amazonaws.com/my.bucket/a/k%2520.json",
        "https://s3.cn-north-1.amazonaws.com.cn/my.bucket/a/k%2520.json",
    ],
)
def test_only_s3_uris_and_s3_urls_are_locations(location: str) -> None:
    assert parse_location(location) == ("my.bucket", "a/k%20.json")


@pytest.mark.parametrize(
    "location",
    [
        "s3://bucket",
        "s3://bucket/",
        "s3:///key",
        "http://bucket.s3.amazonaws.com/key",
        "https://example.com/bucket/key",
        "https://bucket.s3.amazonaws.com.example.com/key",
        "https://bucket.s3.amazonaws.com/",
        "https://s3.amazonaws.com/bucket",
        "https://bucket.s3.amazonaws.com/key?X-Amz-Signature=1",
        "file:///etc/passwd",
        "",
    ],
)
def test_everything_else_is_not_a_location(location: str) -> None:
    with pytest.raises(ValueError):
        parse_location(location)


@pytest.mark.parametrize("size", [0, 1, MEBIBYTE, 3 * MEBIBYTE + 1])
def test_object_is_read_as_stream(emulator: Emulator, tmp_path: Path, size: int) -> None:
    emulator.client("s3").put_object(Bucket="bucket", Key="in", Body=b"x" * size, ContentType="a/b")
    source, body = read(tmp_path, emulator, "s3://bucket/in")
    assert (source.size, source.content_type) == (size, "a/b")
    assert body == b"x" * size
    assert source.seconds > 0


@pytest.mark.parametrize(
    "location, words",
    [
        ("s3://bucket/missing", "NoSuchKey"),
        ("s3://nowhere/in", "NoSuchBucket"),
        ("https://example.com/in", "not a location on S3"),
    ],
)
def test_missing_input_is_unreadable(emulator: Emulator, tmp_path: Path, location: str, words: str) -> None:
    with pytest.raises(InputUnreadable, match=words):
        read(tmp_path, emulator, location)


def test_input_in_dead_s3_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="did not answer"):
        read(tmp_path, One(f"http://127.0.0.1:{free_port()}"), "s3://bucket/in")


def test_input_has_at_most_one_gigabyte(tmp_path: Path) -> None:
    backend = Canned(io.BytesIO(), MAX_INPUT_BYTES + 1)
    with pytest.raises(InputUnreadable, match="1073741824 at most"):
        read(tmp_path, backend, "s3://bucket/in")
    assert backend.closed.wait(10)


def test_truncated_input_is_unreadable(tmp_path: Path) -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise ConnectionResetError

    backend = Canned(Broken(), 10)
    with pytest.raises(InputUnreadable, match="to its end"):
        read(tmp_path, backend, "s3://bucket/in")
    assert backend.closed.wait(10)


def test_close_does_not_wait_for_hanging_read(tmp_path: Path) -> None:
    class Hanging:
        def __init__(self) -> None:
            self.asked = threading.Event()
            self.over = threading.Event()

        def read(self, size: int) -> bytes:
            self.asked.set()
            self.over.wait()
            return b""

    body = Hanging()
    backend = Canned(body, 10)

    async def work(storage: Storage) -> None:
        source = await storage.open("s3://bucket/in")
        reading = asyncio.ensure_future(anext(aiter(source.chunks())))
        await asyncio.to_thread(body.asked.wait)
        reading.cancel()
        await source.close()
        assert not backend.closed.is_set()
        body.over.set()

    with_storage(tmp_path, backend, work)
    assert backend.closed.wait(10)


@pytest.mark.parametrize("size", [0, 5, 8 * MEBIBYTE, 20 * MEBIBYTE + 1])
def test_a_file_is_written_whole(emulator: Emulator, tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(1000)) * (size // 1000) + b"y" * (size % 1000)
    path = tmp_path / "answer"
    path.write_bytes(content)
    put(tmp_path, emulator, f"s3://bucket/out-{size}", path, "c/d")
    found = emulator.client("s3").get_object(Bucket="bucket", Key=f"out-{size}")
    assert hashlib.sha256(found["Body"].read()).digest() == hashlib.sha256(content).digest()
    assert found["ContentType"] == "c/d"
    assert ("-3" in found["ETag"]) == (size > 8 * MEBIBYTE)  # in parts


def test_bytes_are_written_under_a_key(emulator: Emulator, tmp_path: Path) -> None:
    put(tmp_path, emulator, "s3://bucket/text", b"text", "text/plain", "alias/mine")
    found = emulator.client("s3").get_object(Bucket="bucket", Key="text")
    assert (found["Body"].read(), found["ContentType"]) == (b"text", "text/plain")


def test_kms_key_is_sent_to_s3(tmp_path: Path) -> None:
    seen: list[Any] = []

    def answer(request: Any) -> tuple[int, str, bytes]:
        seen.append(request.headers)
        request.rfile.read(int(request.headers["Content-Length"]))
        return 200, "text/plain", b""

    with Loopback(answer) as s3:
        put(tmp_path, One(s3.url), "s3://bucket/text", b"text", None, "alias/mine")
    assert seen[0]["x-amz-server-side-encryption"] == "aws:kms"
    assert seen[0]["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/mine"


@pytest.mark.parametrize("status, may_pass", [(403, False), (404, False), (400, False), (500, True), (503, True)])
def test_failed_upload_tells_whether_it_may_pass(tmp_path: Path, status: int, may_pass: bool) -> None:
    def answer(request: Any) -> tuple[int, str, bytes]:
        request.rfile.read(int(request.headers["Content-Length"]))
        return status, "application/xml", b"<Error><Code>Why</Code><Message>so</Message></Error>"

    with Loopback(answer) as s3, pytest.raises(UploadFailed, match="Why: so") as caught:
        put(tmp_path, One(s3.url), "s3://bucket/out", b"text")
    assert caught.value.may_pass == may_pass


@pytest.mark.parametrize("size", [5, 9 * MEBIBYTE])
def test_upload_to_dead_s3_may_pass(tmp_path: Path, size: int) -> None:
    path = tmp_path / "answer"
    path.write_bytes(bytes(size))
    with pytest.raises(UploadFailed, match="did not answer") as caught:
        put(tmp_path, One(f"http://127.0.0.1:{free_port()}"), "s3://bucket/out", path)
    assert caught.value.may_pass


def test_upload_to_missing_bucket_will_not_pass(emulator: Emulator, tmp_path: Path) -> None:
    path = tmp_path / "answer"
    path.write_bytes(bytes(9 * MEBIBYTE))
    with pytest.raises(UploadFailed, match="NoSuchBucket") as caught:
        put(tmp_path, emulator, "s3://nowhere/out", path)
    assert not caught.value.may_pass


@pytest.mark.parametrize(
    ("stored", "passed_on"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("aws-chunked", None),
        ("gzip,aws-chunked", "gzip"),
        ("aws-chunked, gzip, br", "gzip, br"),
    ],
)
def test_content_encoding_is_without_upload_coding(stored: str | None, passed_on: str | None) -> None:
    found = {"ContentLength": 0, "Body": io.BytesIO()} | ({} if stored is None else {"ContentEncoding": stored})
    with ThreadPoolExecutor(1) as threads:
        assert Source(found, threads, 0).content_encoding == passed_on
