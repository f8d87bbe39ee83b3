"""The download of one state of a model's data from S3 into a directory, in bounded memory. For worker threads."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import shutil
import tarfile
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from endpoint.fleet.models.model_source import ModelSource, cannot_download, cannot_extract

_CHUNK_BYTES = 1 << 20
_CONCURRENCY = 4
_MIN_FREE_BYTES = 1 << 30
"""Bytes of the disk that model data leaves free."""


class Changed(Exception):
    """Raised if an object is another than `look_up` found."""


class Stopped(Exception):
    """Raised once `stop` is set."""


class DiskFull(OSError):
    """Raised if a file would leave too little of the disk free."""


class ModelDownload:
    """One state of the data: `look_up` finds which, `download` brings it."""

    def __init__(self, client: Any, source: ModelSource, stop: threading.Event) -> None:
        self._client = client
        self._source = source
        self._stop = stop
        self._etags: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """Digest of the location and all ETags."""
        parts = [self._source.bucket, self._source.key, self._source.kind]
        parts += [part for entry in sorted(self._etags.items()) for part in entry]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def look_up(self) -> None:
        """Find the objects and their ETags. Raises ModelDataError."""
        source = self._source
        if source.kind == "prefix":
            self._etags = self._find_objects()
            files: set[str] = set()
            directories: set[str] = set()
            for key in self._etags:
                path = key.removeprefix(source.key)
                parts = path.split("/")
                for part in parts:
                    _check_name(source, key, part)
                files.add(path)
                directories |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
            if clashes := sorted(files & directories):
                raise cannot_download(source, f'"{clashes[0]}" is both a file and a directory.')
            return
        if source.kind == "object":
            _check_name(source, source.key, source.key.rpartition("/")[2])
        found = self._client.head_object(Bucket=source.bucket, Key=source.key)
        if source.etag and source.etag.strip('"') != found["ETag"].strip('"'):
            raise cannot_download(source, f"Its ETag is {found['ETag']}, not {source.etag}.")
        self._etags = {source.key: found["ETag"]}

    def _find_objects(self) -> dict[str, str]:
        """Return the ETag of each object under the prefix, by its key. Raises ModelDataError if there is none.

        An empty object that has a folder's name is no file: consoles and file managers make it to show the folder.
        """
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._source.bucket, Prefix=self._source.key
        )
        objects: dict[str, Any] = {}
        for page in pages:
            self._check_stop()
            objects |= {found["Key"]: found for found in page.get("Contents", [])}
        folders = {key[: at + 1] for key in objects for at, character in enumerate(key) if character == "/"}
        etags = {
            key: found["ETag"]
            for key, found in objects.items()
            if found["Size"] or (not key.endswith("/") and f"{key}/" not in folders)
        }
        if not etags:
            raise cannot_download(self._source)
        return etags

    def download(self, directory: Path) -> None:
        """Bring the data into `directory`. Raises ModelDataError, Changed, DiskFull and Stopped."""
        if self._source.kind == "archive":
            self._extract(directory)
            return
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            downloads = [pool.submit(self._download_object, key, directory / self._path(key)) for key in self._etags]
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
            raise Changed
        return found

    def _download_object(self, key: str, path: Path) -> None:
        found = self._open(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path.parent, found["ContentLength"])
        with contextlib.closing(found["Body"]) as body, path.open("xb") as file:
            while chunk := body.read(_CHUNK_BYTES):
                self._check_stop()
                file.write(chunk)

    def _extract(self, directory: Path) -> None:
        with contextlib.closing(self._open(self._source.key)["Body"]) as body:
            packed: Any = _Stoppable(body, self._check_stop)
            unpacked = gzip.GzipFile(fileobj=packed)
            try:
                with tarfile.open(fileobj=unpacked, mode="r|", bufsize=_CHUNK_BYTES) as archive:
                    for member in archive:
                        self._extract_member(archive, member, directory)
                while unpacked.read(_CHUNK_BYTES):  # to the checksum at the end
                    pass
            except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise cannot_extract(self._source, f"{error}.") from error
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                raise cannot_extract(self._source, "A name in it is both a file and a directory.") from error
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise cannot_extract(self._source, "A name in it is too long.") from error

    def _extract_member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
        if not (member.isfile() or member.isdir()):
            kind = "link" if member.issym() or member.islnk() else "special file"
            raise cannot_extract(self._source, f'"{member.name}" in it is a {kind}.')
        if member.isfile():
            _check_space(directory, member.size)
        archive.extract(member, directory, filter="data")

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped


class _Stoppable:
    """A body for gzip to read from, which can be stopped."""

    def __init__(self, body: Any, check: Callable[[], None]) -> None:
        self._body = body
        self._check = check

    def read(self, size: int) -> bytes:
        self._check()
        data: bytes = self._body.read(size)
        return data


def _check_name(source: ModelSource, key: str, name: str) -> None:
    if not name.strip() or "\0" in name or name in (".", "..") or len(name.encode()) > 255:
        raise cannot_download(source, f'"{name}" in the key "{key}" is not a valid name for a file or directory.')


def _check_space(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if size + _MIN_FREE_BYTES > free:
        raise DiskFull(f"The disk has {free} bytes free; a file of {size} bytes must leave {_MIN_FREE_BYTES}.")
