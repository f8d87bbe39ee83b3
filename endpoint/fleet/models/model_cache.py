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
from functools import partial
from pathlib import Path
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import Clients
from endpoint.fleet.models.model_download import Changed, DiskFull, ModelDownload
from endpoint.fleet.models.model_source import ModelDataError, ModelSource, cannot_download

T = TypeVar("T")

_ATTEMPTS = 3


class ModelCache:
    """Owns `directory`: one directory per state of the data in S3, named by a digest of location and ETags."""

    def __init__(self, directory: Path, backend: Clients) -> None:
        self._directory = directory
        self._backend = backend
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: Counter[Path] = Counter()
        """Directories that somebody is given and has not yet written down."""

    def start(self) -> None:
        """Clears away what a killed gateway left unfinished."""
        self._directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self._directory.glob(".partial-*"):
            _remove(unfinished)

    @contextlib.asynccontextmanager
    async def laid_out(self, source: ModelSource | None, within_s: float) -> AsyncIterator[Path]:
        """The directory; it is not removed inside the `async with`. Raises ModelDataError, also when time is over."""
        stop = threading.Event()
        work = asyncio.ensure_future(self._lay_out(source, stop))
        try:
            async with asyncio.timeout(within_s):
                directory = await asyncio.shield(work)
        except BaseException as error:
            stop.set()
            work.add_done_callback(self._release_unwanted)
            if source is None or not isinstance(error, TimeoutError):
                raise
            raise ModelDataError(
                f'Failed to download model data for container "{source.container}" from URL: "{source.uri}". '
                f"It took longer than {within_s:g} seconds (ModelDataDownloadTimeoutInSeconds)."
            ) from error
        try:
            yield directory
        finally:
            self._held[directory] -= 1

    def _release_unwanted(self, work: asyncio.Future[Path]) -> None:
        if not work.cancelled() and work.exception() is None:
            self._held[work.result()] -= 1

    async def keep_only(self, used: Iterable[Path]) -> None:
        """Removes what nobody uses."""
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
            try:
                fetch = ModelDownload(self._backend.client("s3"), source, stop)
                await _in_thread(fetch.look)
                directory = self._directory / fetch.digest
                async with self._locks.setdefault(directory.name, asyncio.Lock()):
                    if not directory.exists():
                        await _in_thread(partial(_whole, fetch, directory))
                    self._held[directory] += 1
                return directory
            except Changed:
                if attempt + 1 == _ATTEMPTS:
                    raise cannot_download(source, "It changed while it was being read.") from None
            except (ClientError, BotoCoreError, OSError) as error:
                transient = not isinstance(error, ClientError) and not isinstance(error, DiskFull)
                if attempt + 1 == _ATTEMPTS or not transient or stop.is_set():
                    raise cannot_download(source, str(error)) from error
        raise AssertionError


def _whole(fetch: ModelDownload, directory: Path) -> None:
    """All of it, on the disk, read-only, under its name at last; or nothing under that name."""
    unfinished = directory.with_name(f".partial-{uuid.uuid4().hex}")
    unfinished.mkdir(parents=True)
    try:
        fetch.into(unfinished)
        _seal(unfinished)
        unfinished.rename(directory)
        _flush(directory.parent)
    except BaseException:
        _remove(unfinished)
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
