"""Objects in S3: inputs read as streams, outputs written whole. A gigabyte passes through a few megabytes of memory."""

from __future__ import annotations

import asyncio
import logging
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

MAX_INPUT_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
_PART_BYTES = 8 << 20
_READERS, _WRITERS = 16, 8

_TRANSFER = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=2)
_UPLOAD_CODING = "aws-chunked"
_MAY_PASS = (408, 409, 429)
"""HTTP statuses below 500 after which another attempt may succeed."""

_LOG = logging.getLogger(__name__)


class InputUnreadable(Exception):
    """Raised if an input isn't there, can't be read, or is too large. The message says which."""


class UploadFailed(Exception):
    """Raised if an object was not written."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether another attempt may succeed."""


class Source:
    """An object that is being read. Must be closed."""

    def __init__(self, found: Any, threads: ThreadPoolExecutor, seconds: float) -> None:
        self.content_type: str | None = found.get("ContentType")
        self.content_encoding = _content_encoding(found.get("ContentEncoding", ""))
        self.size: int = found["ContentLength"]
        self.seconds = seconds
        """Seconds spent waiting for S3 until now."""
        self._body = found["Body"]
        self._threads = threads
        self._ahead: Future[bytes] | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the object's bytes, a chunk read ahead. Raises InputUnreadable."""
        self._ahead = ahead = self._threads.submit(self._read)
        while True:
            try:
                chunk = await asyncio.wrap_future(ahead)
            except Exception as error:  # of botocore or urllib3, or of the socket
                raise InputUnreadable(f"the object could not be read to its end: {type(error).__name__}") from error
            if not chunk:
                return
            self._ahead = ahead = self._threads.submit(self._read)
            yield chunk

    async def close(self) -> None:
        """Close the object, without waiting for a read that hangs."""
        if self._ahead is None or self._ahead.cancel():
            self._threads.submit(self._body.close)
        else:
            self._ahead.add_done_callback(lambda _: self._body.close())

    def _read(self) -> bytes:
        begin = time.monotonic()
        data: bytes = self._body.read(_CHUNK_BYTES)
        self.seconds += time.monotonic() - begin
        return data


class Storage:
    """Owns the threads that wait for S3: the waiting of other parts must not delay them."""

    def __init__(self, backend: Clients) -> None:
        self._backend = backend
        self._readers = ThreadPoolExecutor(_READERS, "s3 reader")
        self._writers = ThreadPoolExecutor(_WRITERS, "s3 writer")

    async def open(self, location: str) -> Source:
        """Open an object for reading. Raises InputUnreadable."""
        try:
            bucket, key = parse_location(location)
        except ValueError as error:
            raise InputUnreadable(str(error)) from error

        def get() -> Any:
            return self._backend.client("s3").get_object(Bucket=bucket, Key=key)

        def close(opening: Future[Any]) -> None:
            if not opening.cancelled() and opening.exception() is None:
                opening.result()["Body"].close()

        begin = time.monotonic()
        opening = self._readers.submit(get)
        try:
            found = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(close)
            raise
        except ClientError as error:
            raise InputUnreadable(f"{_s3_message(error)} ({location})") from error
        except ParamValidationError as error:
            raise InputUnreadable(f"{location} is not a valid S3 location: {_one_line(error)}") from error
        except Exception as error:
            raise InputUnreadable(f"S3 did not answer: {type(error).__name__} ({location})") from error
        source = Source(found, self._readers, time.monotonic() - begin)
        if source.size > MAX_INPUT_BYTES:
            await source.close()
            raise InputUnreadable(f"{location} has {source.size} bytes; an input has {MAX_INPUT_BYTES} at most")
        return source

    async def put(
        self, location: str, source: Path | bytes, content_type: str | None, kms_key_id: str | None = None
    ) -> None:
        """Write an object: it is there as a whole, or not at all. Raises UploadFailed and nothing else."""
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
            raise UploadFailed(_s3_message(error), may_pass=status >= 500 or status in _MAY_PASS) from error
        except ParamValidationError as error:
            raise UploadFailed(f"{location} is not a valid S3 location: {_one_line(error)}", may_pass=False) from error
        except FileNotFoundError as error:
            raise UploadFailed("the answer is no longer on the disk", may_pass=False) from error
        except (BotoCoreError, S3UploadFailedError, OSError) as error:
            raise UploadFailed(f"S3 did not answer: {type(error).__name__}", may_pass=True) from error
        except Exception as error:
            _LOG.exception("An object could not be written")
            raise UploadFailed(type(error).__name__, may_pass=False) from error

    def _put(self, bucket: str, key: str, source: Path | bytes, extra: dict[str, str]) -> None:
        client = self._backend.client("s3")
        if isinstance(source, bytes):
            client.put_object(Bucket=bucket, Key=key, Body=source, **extra)
        elif source.stat().st_size <= _PART_BYTES:
            with source.open("rb") as file:
                client.put_object(Bucket=bucket, Key=key, Body=file, **extra)
        else:
            with TransferManager(client, _TRANSFER) as manager:
                manager.upload(str(source), bucket, key, extra).result()


def _content_encoding(stored: str) -> str | None:
    """Return how the object's bytes are coded. The coding of its upload is gone by then, which not every S3 forgets."""
    codings = [coding.strip() for coding in stored.split(",")]
    return ", ".join(coding for coding in codings if coding and coding.lower() != _UPLOAD_CODING) or None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _s3_message(error: ClientError) -> str:
    details = error.response.get("Error", {})
    return f"{details.get('Code', 'Unknown')}: {details.get('Message', 'no message')}"
