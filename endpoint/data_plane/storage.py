"""Objects in S3: inputs read as streams, outputs written whole. A gigabyte passes through a few megabytes of memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from s3transfer.manager import TransferManager

from endpoint.aws.s3_location import parse_location
from endpoint.backend.clients import Clients
from endpoint.settings import Settings

MOST_INPUT_BYTES = 1 << 30
_CHUNK = 1 << 20
_PART = 8 << 20
_READS_AT_ONCE, _WRITES_AT_ONCE = 16, 8

_TRANSFER = TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=2)
_MAY_PASS = (408, 409, 429)
"""HTTP statuses below 500 after which another attempt may succeed."""


class InputUnreadable(Exception):
    """An input isn't there, can't be got, or is too big. The message says which."""


class UploadFailed(Exception):
    """An object was not written."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether another attempt may succeed."""


class Source:
    """An object that is being read. `close` it."""

    def __init__(self, found: Any, threads: ThreadPoolExecutor, seconds: float) -> None:
        self.content_type: str | None = found.get("ContentType")
        self.size: int = found["ContentLength"]
        self.seconds = seconds
        """Spent waiting for S3 until now."""
        self._body = found["Body"]
        self._threads = threads
        self._ahead: Future[bytes] | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """One is read ahead. Raises InputUnreadable."""
        self._ahead = self._threads.submit(self._read)
        while chunk := await self._next():
            self._ahead = self._threads.submit(self._read)
            yield chunk

    async def close(self) -> None:
        """Does not wait for a read that hangs."""
        if self._ahead is None or self._ahead.cancel():
            self._threads.submit(self._body.close)
        else:
            self._ahead.add_done_callback(lambda _: self._body.close())

    async def _next(self) -> bytes:
        assert self._ahead is not None
        try:
            return await asyncio.wrap_future(self._ahead)
        except Exception as error:  # of botocore or urllib3, or of the socket
            raise InputUnreadable(f"the object could not be read to its end: {type(error).__name__}") from error

    def _read(self) -> bytes:
        begin = time.monotonic()
        data: bytes = self._body.read(_CHUNK)
        self.seconds += time.monotonic() - begin
        return data


class Storage:
    """Owns the threads that speak with S3: others' waiting must not be ours."""

    def __init__(self, settings: Settings, backend: Clients) -> None:
        self._backend = backend
        self._readers = ThreadPoolExecutor(_READS_AT_ONCE, "s3 reader")
        self._writers = ThreadPoolExecutor(_WRITES_AT_ONCE, "s3 writer")

    async def open(self, location: str) -> Source:
        """Raises InputUnreadable."""
        try:
            bucket, key = parse_location(location)
        except ValueError as error:
            raise InputUnreadable(str(error)) from error
        begin = time.monotonic()
        opening = self._readers.submit(self._get, bucket, key)
        try:
            found = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise
        except ClientError as error:
            raise InputUnreadable(f"{_said(error)} ({location})") from error
        except ParamValidationError as error:
            raise InputUnreadable(f"{location} is no place in S3: {_one_line(error)}") from error
        except Exception as error:
            raise InputUnreadable(f"S3 gave no answer: {type(error).__name__} ({location})") from error
        source = Source(found, self._readers, time.monotonic() - begin)
        if source.size > MOST_INPUT_BYTES:
            await source.close()
            raise InputUnreadable(f"{location} has {source.size} bytes; an input has {MOST_INPUT_BYTES} at most")
        return source

    async def put(
        self, location: str, source: Path | bytes, content_type: str | None, kms_key_id: str | None = None
    ) -> None:
        """It is there as a whole, or not at all. Raises UploadFailed."""
        try:
            bucket, key = parse_location(location)
        except ValueError as error:
            raise UploadFailed(str(error), may_pass=False) from error
        extra: dict[str, str] = {} if content_type is None else {"ContentType": content_type}
        if kms_key_id is not None:
            extra |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key_id}
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._writers, self._put, bucket, key, source, extra)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            raise UploadFailed(_said(error), may_pass=status >= 500 or status in _MAY_PASS) from error
        except ParamValidationError as error:
            raise UploadFailed(f"{location} is no place in S3: {_one_line(error)}", may_pass=False) from error
        except FileNotFoundError as error:
            raise UploadFailed("the answer is not on the disk any more", may_pass=False) from error
        except (BotoCoreError, S3UploadFailedError, OSError) as error:
            raise UploadFailed(f"S3 gave no answer: {type(error).__name__}", may_pass=True) from error

    def _get(self, bucket: str, key: str) -> Any:
        return self._backend.client("s3").get_object(Bucket=bucket, Key=key)

    def _put(self, bucket: str, key: str, source: Path | bytes, extra: dict[str, str]) -> None:
        client = self._backend.client("s3")
        if isinstance(source, bytes):
            client.put_object(Bucket=bucket, Key=key, Body=source, **extra)
        elif source.stat().st_size <= _PART:
            with source.open("rb") as file:
                client.put_object(Bucket=bucket, Key=key, Body=file, **extra)
        else:
            with TransferManager(client, _TRANSFER) as manager:
                manager.upload(str(source), bucket, key, extra).result()


def _close(opening: Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()["Body"].close()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _said(error: ClientError) -> str:
    """S3's own words."""
    said = error.response.get("Error", {})
    return f"{said.get('Code', 'Unknown')}: {said.get('Message', 'no message')}"
