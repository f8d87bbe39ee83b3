"""Model data on this machine as SageMaker lays it out: read-only, complete or absent, fetched again only if it changed.

Knows S3, archives and directories; no endpoints and no processes. What SageMaker says when it fails is in the reasons;
what went wrong here follows in one sentence of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tarfile
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

T = TypeVar("T")

_CHUNK = 1 << 20
_ATTEMPTS = 3
_AT_ONCE = 4
_LEFT_FREE = 1 << 30
"""Bytes of the disk that model data never takes."""


class Backend(Protocol):
    def client(self, service: str) -> Any: ...


class ModelDataError(Exception):
    """Model data can't be laid out. Its text is the endpoint's FailureReason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a container's model data is. `kind`: one archive, one object as it is, or all objects under a prefix."""

    uri: str
    """As the request has it, for messages."""
    bucket: str
    key: str
    kind: Literal["archive", "object", "prefix"]
    etag: str | None = None
    container: str = "container_1"
    """As SageMaker calls a container without a hostname."""

    @classmethod
    def of(cls, container: dict[str, Any]) -> ModelSource | None:
        """From a ContainerDefinition; None if it names no model data. Raises ModelDataError."""
        name = container.get("ContainerHostname", "container_1")
        if container.get("AdditionalModelDataSources"):
            raise ModelDataError("AdditionalModelDataSources are not supported by the local endpoint.")
        if source := container.get("ModelDataSource", {}).get("S3DataSource"):
            return cls._of_s3_data_source(source, name)
        if uri := container.get("ModelDataUrl"):
            bucket, key = split_s3(uri)
            return cls(uri=uri, bucket=bucket, key=key, kind="archive", container=name)
        return None

    @classmethod
    def _of_s3_data_source(cls, source: dict[str, Any], name: str) -> ModelSource:
        for field in ("HubAccessConfig", "ManifestS3Uri"):
            if field in source:
                raise ModelDataError(f"S3DataSource.{field} is not supported by the local endpoint.")
        uri = source["S3Uri"]
        bucket, key = split_s3(uri)
        kinds: dict[tuple[str, str], Literal["archive", "object", "prefix"]] = {
            ("S3Object", "Gzip"): "archive",
            ("S3Object", "None"): "object",
            ("S3Prefix", "None"): "prefix",
        }
        kind = kinds.get((source["S3DataType"], source["CompressionType"]))
        if kind is None:
            raise ModelDataError("CompressionType Gzip needs S3DataType S3Object.")
        if kind == "prefix" and not uri.endswith("/"):
            raise ModelDataError(f'S3Uri "{uri}" of S3DataType S3Prefix must end with a forward slash (/).')
        return cls(uri=uri, bucket=bucket, key=key, kind=kind, etag=source.get("ETag"), container=name)


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of s3://bucket/key and of S3's https:// forms, path style and virtual host. Raises ModelDataError."""
    scheme, _, rest = uri.partition("://")
    host, _, path = rest.partition("/")
    if scheme == "https":
        bucket, dot, service = host.rpartition(".s3")
        if dot and service[:1] in (".", "-"):
            return bucket, path
        if not host.startswith(("s3.", "s3-")):
            raise ModelDataError(f'"{uri}" is not a location on S3.')
        host, _, path = path.partition("/")
    return host, path


class ModelFiles:
    """Owns `directory`: one directory per state of the data in S3, named by a digest of location and ETags."""

    def __init__(self, directory: Path, backend: Backend) -> None:
        self._directory = directory
        self._backend = backend
        self._locks: dict[str, asyncio.Lock] = {}
        self._arriving: dict[Path, int] = {}
        """Directories that somebody is being given and has not yet written down."""

    def start(self) -> None:
        """Clears away what a killed gateway left unfinished."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self._directory.glob(".partial-*"):
            _remove(unfinished)

    @contextlib.asynccontextmanager
    async def laid_out(self, source: ModelSource | None, within_s: float) -> Any:
        """The directory; it is not removed inside the `async with`. Raises ModelDataError, also when time is over."""
        stop = threading.Event()
        work = asyncio.ensure_future(self._lay_out(source, stop))
        try:
            async with asyncio.timeout(within_s):
                directory = await asyncio.shield(work)
        except TimeoutError as error:
            assert source is not None
            raise ModelDataError(
                f'Failed to download model data for container "{source.container}" from URL: "{source.uri}". '
                f"It took longer than {within_s:g} seconds (ModelDataDownloadTimeoutInSeconds)."
            ) from error
        finally:
            if not work.done():
                stop.set()
                work.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._arriving[directory] = self._arriving.get(directory, 0) + 1
        try:
            yield directory
        finally:
            self._arriving[directory] -= 1

    async def keep_only(self, used: Iterable[Path]) -> None:
        """Removes what nobody uses."""
        keep = {*used, *(path for path, count in self._arriving.items() if count), self._directory / "empty"}
        unused = [path for path in self._directory.iterdir() if path not in keep and not path.name.startswith(".")]
        for path in unused:
            lock = self._locks.get(path.name)
            if lock is None or not lock.locked():
                hidden = path.with_name(f".partial-{uuid.uuid4().hex}")
                path.rename(hidden)  # at once, so that nothing half removed looks whole
                await _in_thread(lambda hidden=hidden: _remove(hidden))

    async def _lay_out(self, source: ModelSource | None, stop: threading.Event) -> Path:
        if source is None:
            empty = self._directory / "empty"
            empty.mkdir(exist_ok=True)
            return empty
        client = self._backend.client("s3")
        for attempt in range(_ATTEMPTS):
            try:
                fetch = _Fetch(client, source, stop)
                await _in_thread(fetch.look)
                directory = self._directory / fetch.digest
                async with self._locks.setdefault(directory.name, asyncio.Lock()):
                    if not directory.exists():
                        await _in_thread(lambda fetch=fetch, to=directory: _whole(fetch, to))
                return directory
            except _Changed:
                if attempt + 1 == _ATTEMPTS:
                    raise _cannot_download(source, "It changed while it was being read.") from None
            except (ClientError, BotoCoreError, OSError) as error:
                transient = not isinstance(error, ClientError) and not isinstance(error, _DiskFull)
                if attempt + 1 == _ATTEMPTS or not transient or stop.is_set():
                    raise _cannot_download(source, str(error)) from error
        raise AssertionError


class _Changed(Exception):
    pass


class _Stopped(Exception):
    pass


class _DiskFull(OSError):
    pass


class _Fetch:
    """One state of the data: `look` finds which, `into` brings it. For a worker thread."""

    def __init__(self, client: Any, source: ModelSource, stop: threading.Event) -> None:
        self._client = client
        self._source = source
        self._stop = stop
        self._etags: dict[str, str] = {}

    @property
    def digest(self) -> str:
        parts = [self._source.bucket, self._source.key, self._source.kind]
        parts += [part for entry in sorted(self._etags.items()) for part in entry]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def look(self) -> None:
        source = self._source
        if source.kind == "prefix":
            self._etags = dict(self._list())
            if not self._etags:
                raise _cannot_download(source)
            _check_names(source, self._etags)
            return
        if source.kind == "object":
            _check_name(source, source.key, source.key.rpartition("/")[2])
        found = self._client.head_object(Bucket=source.bucket, Key=source.key)
        if source.etag and source.etag.strip('"') != found["ETag"].strip('"'):
            raise _cannot_download(source, f"Its ETag is {found['ETag']}, not {source.etag}.")
        self._etags = {source.key: found["ETag"]}

    def _list(self) -> Iterator[tuple[str, str]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._source.bucket, Prefix=self._source.key
        )
        for page in pages:
            self._check_stop()
            for found in page.get("Contents", []):
                yield found["Key"], found["ETag"]

    def into(self, directory: Path) -> None:
        if self._source.kind == "archive":
            self._extract(directory)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            downloads = [pool.submit(self._download, key, directory / self._path(key)) for key in self._etags]
            try:
                for download in downloads:
                    download.result()
            except BaseException:
                self._stop.set()
                raise

    def _path(self, key: str) -> PurePosixPath:
        if self._source.kind == "object":
            return PurePosixPath(key.rpartition("/")[2])
        return PurePosixPath(key.removeprefix(self._source.key))

    def _open(self, key: str) -> Any:
        self._check_stop()
        found = self._client.get_object(Bucket=self._source.bucket, Key=key)
        if found["ETag"] != self._etags[key]:
            found["Body"].close()
            raise _Changed
        return found

    def _download(self, key: str, path: Path) -> None:
        found = self._open(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path.parent, found["ContentLength"])
        with contextlib.closing(found["Body"]) as body, path.open("xb") as file:
            while chunk := body.read(_CHUNK):
                self._check_stop()
                file.write(chunk)

    def _extract(self, directory: Path) -> None:
        with contextlib.closing(self._open(self._source.key)["Body"]) as body:
            try:
                with tarfile.open(fileobj=_Stoppable(body, self._check_stop), mode="r|gz", bufsize=_CHUNK) as archive:
                    for member in archive:
                        self._check_stop()
                        self._extract_one(archive, member, directory)
            except (tarfile.TarError, EOFError, zlib.error) as error:
                raise _cannot_extract(self._source, str(error)) from error
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                raise _cannot_extract(self._source, "A name in it is both a file and a directory.") from error

    def _extract_one(self, archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
        if not (member.isfile() or member.isdir()):
            what = "link" if member.issym() or member.islnk() else "special file"
            raise _cannot_extract(self._source, f'"{member.name}" in it is a {what}.')
        if member.isfile():
            _check_space(directory, member.size)
        archive.extract(member, directory, filter="data")

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped


class _Stoppable:
    """What tarfile reads from."""

    def __init__(self, body: IO[bytes], check: Callable[[], None]) -> None:
        self._body = body
        self._check = check

    def read(self, size: int) -> bytes:
        self._check()
        return self._body.read(size)


def _whole(fetch: _Fetch, directory: Path) -> None:
    """All of it, on the disk, read-only, under its name at last; or nothing under that name."""
    partial = directory.with_name(f".partial-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        fetch.into(partial)
        _seal(partial)
        partial.rename(directory)
        _flush(directory.parent)
    except BaseException:
        _remove(partial)
        raise


def _seal(directory: Path) -> None:
    for root, _, names in os.walk(directory, topdown=False):
        for name in names:
            file = Path(root, name)
            _flush(file)
            file.chmod(0o444 | file.stat().st_mode & 0o111)
        _flush(Path(root))
        Path(root).chmod(0o555)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    for root, _, _ in os.walk(directory):  # top down: each is opened before what is in it
        Path(root).chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)


def _check_names(source: ModelSource, keys: Iterable[str]) -> None:
    files: set[str] = set()
    directories: set[str] = set()
    for key in keys:
        path = key.removeprefix(source.key)
        parts = path.split("/")
        for part in parts:
            _check_name(source, key, part)
        files.add(path)
        directories |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    if clashes := sorted(files & directories):
        raise _cannot_download(source, f'"{clashes[0]}" is both a file and a directory.')


def _check_name(source: ModelSource, key: str, name: str) -> None:
    if not name.strip() or "\0" in name or name in (".", "..") or len(name.encode()) > 255:
        raise _cannot_download(source, f'The key "{key}" can\'t be a path: "{name}" is no name for a file or directory.')


def _check_space(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if size + _LEFT_FREE > free:
        raise _DiskFull(f"The disk has {free} bytes free; a file of {size} bytes must leave {_LEFT_FREE}.")


def _cannot_download(source: ModelSource, why: str = "") -> ModelDataError:
    return ModelDataError(
        f'Failed to download model data for container "{source.container}" from URL: "{source.uri}". '
        "Please ensure that there is an object located at the URL and that the role passed to CreateModel has "
        f"permissions to download the object. {why}".strip()
    )


def _cannot_extract(source: ModelSource, why: str) -> ModelDataError:
    return ModelDataError(
        f'Failed to extract model data archive for container "{source.container}" from URL "{source.uri}". '
        f"Please ensure that the object located at the URL is a valid tar.gz archive. {why}".strip()
    )


async def _in_thread(call: Callable[[], T]) -> T:
    """In a daemon thread: one that waits for a dead S3 must not keep the gateway from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = call(), None
        except BaseException as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, *outcome)

    threading.Thread(target=run, name="model files", daemon=True).start()
    return await future
