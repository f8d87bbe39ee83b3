"""Model data on this machine as SageMaker lays it out: read-only, complete or absent, fetched again only if changed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients
from endpoint.fleet.models.model_download import Changed, DiskFull, ModelDownload
from endpoint.fleet.models.model_source import ModelDataError, ModelSource, cannot_download
from endpoint.fsync import fsync_path

T = TypeVar("T")

_ATTEMPTS = 3


class ModelCache:
    """Owns `directory`: one directory per state of the data in S3, named by a digest of location and ETags."""

    def __init__(self, directory: Path, backend: Clients) -> None:
        self._directory = directory
        self._backend = backend
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: Counter[Path] = Counter()
        """Number of callers inside `hold`, by directory."""

    def remove_unfinished(self) -> None:
        """Make the directory, and remove what a killed gateway left unfinished."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self._directory.glob(".partial-*"):
            _remove(unfinished)

    @contextlib.asynccontextmanager
    async def hold(self, source: ModelSource | None, timeout_s: float) -> AsyncIterator[Path]:
        """Lay the data out and yield its directory, which is not removed inside the `async with`.

        Raises ModelDataError, also after `timeout_s`.
        """

        def release(work: asyncio.Future[Path]) -> None:
            if not work.cancelled() and work.exception() is None:
                self._held[work.result()] -= 1

        stop = threading.Event()
        work = asyncio.ensure_future(self._lay_out(source, stop))
        try:
            async with asyncio.timeout(timeout_s):
                directory = await asyncio.shield(work)
        except BaseException as error:
            stop.set()
            work.add_done_callback(release)
            if source is None or not isinstance(error, TimeoutError):
                raise
            raise ModelDataError(
                f'Failed to download model data for container "{source.container}" from URL: "{source.uri}". '
                f"It took longer than {timeout_s:g} seconds (ModelDataDownloadTimeoutInSeconds)."
            ) from error
        try:
            yield directory
        finally:
            self._held[directory] -= 1

    async def keep_only(self, used: Iterable[Path]) -> None:
        """Remove the directories that are neither in `used` nor held."""
        keep = {*used, *(path for path, count in self._held.items() if count), self._directory / "empty"}
        unused = [path for path in self._directory.iterdir() if path not in keep and not path.name.startswith(".")]
        for path in unused:
            lock = self._locks.get(path.name)
            if lock is None or not lock.locked():
                hidden = path.with_name(f".partial-{uuid.uuid4().hex}")
                path.rename(hidden)  # at once, so that nothing half removed looks whole
                await _in_thread(partial(_remove, hidden))

    async def _lay_out(self, source: ModelSource | None, stop: threading.Event) -> Path:
        if source is None:
            empty = self._directory / "empty"
            empty.mkdir(mode=0o555, exist_ok=True)
            self._held[empty] += 1
            return empty
        for attempt in range(_ATTEMPTS):
            is_last = attempt + 1 == _ATTEMPTS
            try:
                download = ModelDownload(self._backend.client("s3"), source, stop)
                await _in_thread(download.look_up)
                directory = self._directory / download.digest
                async with self._locks.setdefault(directory.name, asyncio.Lock()):
                    if not directory.exists():
                        await _in_thread(partial(_bring_whole, download, directory))
                    self._held[directory] += 1
                return directory
            except Changed:
                if is_last:
                    raise cannot_download(source, "It changed while it was being read.") from None
            except (ClientError, BotoCoreError, OSError) as error:
                is_final = isinstance(error, ClientError | DiskFull)
                if is_last or is_final or stop.is_set():
                    raise cannot_download(source, str(error)) from error
        raise AssertionError


def _bring_whole(download: ModelDownload, directory: Path) -> None:
    """Bring all of the data to `directory`, on the disk and read-only, or make no such directory."""
    unfinished = directory.with_name(f".partial-{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        download.download(unfinished)
        for root, _, names in os.walk(unfinished, topdown=False):
            for name in names:
                file = Path(root, name)
                fsync_path(file)
                file.chmod(0o444 | file.stat().st_mode & 0o111)
            fsync_path(Path(root))
            Path(root).chmod(0o555)
        unfinished.rename(directory)
        fsync_path(directory.parent)
    except BaseException:
        _remove(unfinished)
        raise


def _remove(directory: Path) -> None:
    for root, _, _ in os.walk(directory):  # top down: each is opened before what is in it
        Path(root).chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)


async def _in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a daemon thread: one that waits for a dead S3 must not keep the process from ending."""
    result: Future[T] = Future()

    def run() -> None:
        result.set_running_or_notify_cancel()  # from now on, a cancelled caller leaves it alone
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="model cache", daemon=True).start()
    return await asyncio.wrap_future(result)
