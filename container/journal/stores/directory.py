"""A store in a directory. A key's file appears whole, under its name, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from container.journal.stores.store import StoreError, validate_folder, validate_key

_TEMPORARY = ".new-"
_DELETED = ".deleted-"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_LASTING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST)
"""Errors of making the root that no waiting cures."""
_WRITE_TRIES = 5
"""Tries of a write whose directory another process deletes meanwhile."""
_LIST_TRIES = 100
"""Tries of a listing whose directories other processes delete meanwhile."""


class _UnsafeRoot(ValueError):
    """Other users could write to the root, or it is not a directory."""


class DirectoryStore:
    """Keeps each object in a file of its own, below a directory that only this user's processes write to.

    A temporary file is locked while it is written: one that is not locked has lost its writer.
    """

    is_local = True

    def __init__(self, path: str) -> None:
        """Make the directory. Raises ValueError if the path can't be one, or if other users could write to it."""
        self._root = Path(path).absolute()
        try:
            _make_directories(self._root)
        except OSError as error:
            if error.errno in _LASTING:
                raise ValueError(
                    f"{self._root} can't be made: {error.strerror}; expected the path of a directory"
                ) from error
        _validate_root(self._root)

    @property
    def describe(self) -> str:
        return f"directory {self._root}"

    def create(self, key: str, data: bytes) -> bool:
        path = self._root / validate_key(key)
        with self._raising_store_errors("write"):
            _validate_root(self._root)
            for _ in range(_WRITE_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    return _create(path, data)
            return _create(path, data)

    def put(self, key: str, data: bytes) -> None:
        path = self._root / validate_key(key)
        with self._raising_store_errors("write"):
            _validate_root(self._root)
            for _ in range(_WRITE_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    return _replace(path, data)
            return _replace(path, data)

    def get(self, key: str) -> bytes | None:
        with self._raising_store_errors("read"), contextlib.suppress(FileNotFoundError):
            return (self._root / validate_key(key)).read_bytes()
        return None

    def exists(self, key: str) -> bool:
        with self._raising_store_errors("read"), contextlib.suppress(FileNotFoundError):
            os.stat(self._root / validate_key(key))
            return True
        return False

    def keys(self, prefix: str) -> list[str]:
        for _ in range(_LIST_TRIES):
            gone: list[OSError] = []
            keys = sorted(key for key, _ in self._files(prefix, gone.append))
            if not gone:  # else its deleter may have written something where the walk had already been
                return keys
        raise StoreError(
            f"{self.describe}: could not list: directories were deleted during each of {_LIST_TRIES} tries"
        )

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of all keys that begin with `prefix`."""
        with self._raising_store_errors("read"):
            sizes = {}
            for key, path in self._files(prefix):
                with contextlib.suppress(FileNotFoundError):
                    sizes[key] = path.stat().st_size
            return sizes

    def folders(self, folder: str) -> list[str]:
        path = self._root / validate_folder(folder)
        with (
            self._raising_store_errors("read"),
            contextlib.suppress(FileNotFoundError),
            os.scandir(path) as entries,
        ):
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != ".")
        return []

    def changed(self, folder: str) -> float:
        """Return the Unix time of the last change to the folder's entries; infinity if it is not there."""
        with self._raising_store_errors("read"), contextlib.suppress(FileNotFoundError):
            return (self._root / validate_folder(folder)).stat().st_mtime
        return math.inf

    def delete(self, prefix: str) -> None:
        path = self._root / validate_folder(prefix)
        grave = self._root / f"{_DELETED}{secrets.token_hex(8)}"
        with self._raising_store_errors("delete"):
            try:
                os.rename(path, grave)  # for readers all its keys go at once
            except FileNotFoundError:
                return
            _sync_directory(path.parent)
            shutil.rmtree(grave, ignore_errors=True)  # a sweep may delete it too, and a late writer write to it

    def sweep(self) -> None:
        """Remove what writers and deleters left behind when they were killed."""
        with self._raising_store_errors("delete"):
            for directory, names, files in self._walk(self._root):
                for name in [name for name in names if name.startswith(_DELETED)]:
                    names.remove(name)
                    shutil.rmtree(os.path.join(directory, name), ignore_errors=True)  # another sweep may be at it
                for name in files:
                    if name.startswith(_TEMPORARY):
                        _remove_abandoned(os.path.join(directory, name))

    def _files(self, prefix: str, on_gone: Callable[[OSError], None] = lambda _: None) -> Iterator[tuple[str, Path]]:
        """Find the files of keys that begin with `prefix`; `on_gone` is called for each directory deleted meanwhile."""
        folder, slash, _ = prefix.rpartition("/")
        top = self._root / validate_folder(folder + slash) if slash else self._root
        with self._raising_store_errors("read"):
            for directory, names, files in self._walk(top, on_gone):
                names[:] = [name for name in names if name[0] != "."]
                for name in files:
                    path = Path(directory, name)
                    key = path.relative_to(self._root).as_posix()
                    if name[0] != "." and key.startswith(prefix):
                        yield key, path

    def _walk(
        self, top: Path, on_gone: Callable[[OSError], None] = lambda _: None
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        def on_error(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error
            if error.filename != os.fspath(top):
                on_gone(error)

        return os.walk(top, onerror=on_error)

    @contextlib.contextmanager
    def _raising_store_errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.describe}: could not {verb}: {error.strerror}") from error
        except _UnsafeRoot as error:
            raise StoreError(f"{self.describe}: could not {verb}: {error}") from error


def _validate_root(root: Path) -> None:
    try:
        link = root.lstat()
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
            raise _UnsafeRoot(
                f"{root} is a symbolic link of another user (uid {link.st_uid}): name a directory of yours"
            )
        found = root.stat()
    except OSError:
        return  # not there yet: making it or writing to it will fail
    if not stat.S_ISDIR(found.st_mode):
        raise _UnsafeRoot(f"{root} is not a directory")
    if found.st_uid != os.geteuid() and (found.st_mode & 0o022 or root.parent.stat().st_mode & 0o002):
        raise _UnsafeRoot(
            f"{root} belongs to another user (uid {found.st_uid}) and can be written to by others: "
            "name a directory below it that does not exist yet, or one of yours"
        )


def _make_directories(path: Path) -> None:
    """Make the missing directories, durable and private to the user."""
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        _make_directories(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    _sync_directory(path.parent)


def _create(path: Path, data: bytes) -> bool:
    with _temporary(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not _create_in_place(path, data):
                return False
    _sync_directory(path.parent)
    return True


def _create_in_place(path: Path, data: bytes) -> bool:
    """Write under the final name, where files can't have two. Killed halfway, it leaves a torn file to be dropped."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    try:
        _write(file, data)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(file)
    return True


def _replace(path: Path, data: bytes) -> None:
    with _temporary(path, data) as temporary:
        os.rename(temporary, path)
    _sync_directory(path.parent)


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[str]:
    """Yield the name of a durable file beside `path`."""
    temporary = str(path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        file = os.open(temporary, flags, 0o600)
    except FileNotFoundError:
        _make_directories(path.parent)
        file = os.open(temporary, flags, 0o600)
    try:
        with contextlib.suppress(OSError):  # without locks a sweep removes it, and the write is tried again
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write(file, data)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed
            os.unlink(temporary)
        os.close(file)


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)


def _sync_directory(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove_abandoned(temporary: str) -> None:
    """Remove a temporary file unless its writer is alive."""
    with contextlib.suppress(OSError):
        file = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(temporary)
        finally:
            os.close(file)
