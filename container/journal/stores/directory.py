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

from container.journal.stores.store import StoreError, checked, checked_folder

_TEMPORARY = ".new-"
_DELETED = ".deleted-"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NEVER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST)
"""What no waiting makes better when the root is made."""
_TRIES = 5
"""At what somebody else's deletion of the directory around it undoes."""
_WALKS = 100
"""Through directories of which some are deleted meanwhile, before one that is listed and not there is told."""


class _Stranger(ValueError):
    """Others could write to the directory, or it is none."""


class DirectoryStore:
    """Owns a directory, private to the user, that other processes of the same user may own too.

    A file under construction is locked, so that one which is not is known to have lost its writer.
    """

    is_local = True

    def __init__(self, path: str) -> None:
        """Raises ValueError for a path that is no directory, or one that others could write to."""
        self._root = Path(path).absolute()
        try:
            _make_directories(self._root)
        except OSError as error:
            if error.errno in _NEVER:
                raise ValueError(
                    f"{self._root} can't be made: {error.strerror}; expected the path of a directory"
                ) from error
        _refuse_strangers(self._root)

    @property
    def describe(self) -> str:
        return f"directory {self._root}"

    def close(self) -> None:
        """Nothing is held open."""

    def create(self, key: str, data: bytes) -> bool:
        path = self._root / checked(key)
        with self._naming_failures("write"):
            _refuse_strangers(self._root)
            for _ in range(_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    return _create(path, data)
            return _create(path, data)

    def put(self, key: str, data: bytes) -> None:
        path = self._root / checked(key)
        with self._naming_failures("write"):
            _refuse_strangers(self._root)
            for _ in range(_TRIES):
                with contextlib.suppress(FileNotFoundError):
                    return _replace(path, data)
            return _replace(path, data)

    def get(self, key: str) -> bytes | None:
        with self._naming_failures("read"), contextlib.suppress(FileNotFoundError):
            return (self._root / checked(key)).read_bytes()
        return None

    def exists(self, key: str) -> bool:
        with self._naming_failures("read"), contextlib.suppress(FileNotFoundError):
            os.stat(self._root / checked(key))
            return True
        return False

    def keys(self, prefix: str) -> list[str]:
        for _ in range(_WALKS):
            gone: list[OSError] = []
            keys = sorted(key for key, _ in self._files(prefix, gone.append))
            if not gone:  # else what made it unneeded may have come behind the walk
                return keys
        raise StoreError(f"{self.describe}: could not list: directories in it are not there, each time")

    def sizes(self, prefix: str) -> dict[str, int]:
        """In bytes, by key."""
        with self._naming_failures("read"):
            sizes = {}
            for key, path in self._files(prefix):
                with contextlib.suppress(FileNotFoundError):
                    sizes[key] = path.stat().st_size
            return sizes

    def folders(self, folder: str) -> list[str]:
        path = self._root / checked_folder(folder)
        with (
            self._naming_failures("read"),
            contextlib.suppress(FileNotFoundError),
            os.scandir(path) as entries,
        ):
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] != ".")
        return []

    def changed(self, folder: str) -> float:
        """When something was last added to it or removed from it, in Unix seconds. Infinite if it is not there."""
        with self._naming_failures("read"), contextlib.suppress(FileNotFoundError):
            return (self._root / checked_folder(folder)).stat().st_mtime
        return math.inf

    def delete(self, prefix: str) -> None:
        path = self._root / checked_folder(prefix)
        grave = self._root / f"{_DELETED}{secrets.token_hex(8)}"
        with self._naming_failures("delete"):
            try:
                os.rename(path, grave)  # at once for whoever reads beside it
            except FileNotFoundError:
                return
            _sync_directory(path.parent)
            shutil.rmtree(grave, ignore_errors=True)  # another may sweep it, and who is late may write to it

    def sweep(self) -> int:
        """Removes what writers and deleters left behind when they were killed. How many."""
        swept = 0
        with self._naming_failures("delete"):
            for directory, names, files in self._walk(self._root):
                for name in [name for name in names if name.startswith(_DELETED)]:
                    names.remove(name)
                    shutil.rmtree(os.path.join(directory, name), ignore_errors=True)  # another may be at it
                    swept += 1
                swept += sum(_is_swept(os.path.join(directory, name)) for name in files if name.startswith(_TEMPORARY))
        return swept

    def _files(self, prefix: str, on_gone: Callable[[OSError], None] = lambda _: None) -> Iterator[tuple[str, Path]]:
        """`on_gone` is told of each directory that was deleted before it was walked through."""
        folder, slash, _ = prefix.rpartition("/")
        top = self._root / checked_folder(folder + slash) if slash else self._root
        with self._naming_failures("read"):
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
        def tell(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error
            if error.filename != os.fspath(top):
                on_gone(error)

        return os.walk(top, onerror=tell)

    @contextlib.contextmanager
    def _naming_failures(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.describe}: could not {verb}: {error.strerror}") from error
        except _Stranger as error:
            raise StoreError(f"{self.describe}: could not {verb}: {error}") from error


def _refuse_strangers(root: Path) -> None:
    try:
        link = root.lstat()
        if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
            raise _Stranger(f"{root} is a symbolic link of another user (uid {link.st_uid}): name a directory of yours")
        found = root.stat()
    except OSError:
        return  # not there yet; whatever fails then is told then
    if not stat.S_ISDIR(found.st_mode):
        raise _Stranger(f"{root} is not a directory")
    if found.st_uid != os.geteuid() and (found.st_mode & 0o022 or root.parent.stat().st_mode & 0o002):
        raise _Stranger(
            f"{root} belongs to another user (uid {found.st_uid}) and can be written to by others: "
            "name a directory below it that does not exist yet, or one of yours"
        )


def _make_directories(path: Path) -> None:
    """Durable, and private from the topmost on that wasn't there."""
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
    """Where files have no second name. Killed halfway, it leaves a torn file, which the reader's checksum tells."""
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
    """The name of a durable file beside `path`."""
    temporary = str(path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}")
    file = _open_temporary(temporary)
    try:
        _write(file, data)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):  # renamed
            os.unlink(temporary)
        os.close(file)


def _open_temporary(temporary: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        file = os.open(temporary, flags, 0o600)
    except FileNotFoundError:
        _make_directories(Path(temporary).parent)
        file = os.open(temporary, flags, 0o600)
    with contextlib.suppress(OSError):  # without locks `sweep` finds none held either, and the writer tries again
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


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


def _is_swept(temporary: str) -> bool:
    """Whether the file was nobody's, and is gone."""
    try:
        file = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(temporary)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
