from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError
from testing import ROOT

OTHER = 12345
"""Id of another user."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "journal"))


def run(program: str, *arguments: object, within: tuple[str, ...] = ()) -> str:
    """Run a program, with the command `within` in front, and return what it prints."""
    command = [*within, sys.executable, "-W", "error", "-c", program, *map(str, arguments)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def everything(path: Path) -> list[Path]:
    return [path, *path.rglob("*")]


def test_files_are_private_with_any_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = DirectoryStore(str(tmp_path / "above" / "journal"))
        store.create("jobs/a/1", b"one")
        store.put("jobs/a/progress", b"two")
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in everything(tmp_path / "above") if path.is_dir()}
    assert modes == {0o700}
    assert {path.stat().st_mode & 0o777 for path in everything(tmp_path / "above") if path.is_file()} == {0o600}


def test_nothing_but_the_keys_is_left_lying(store: DirectoryStore, tmp_path: Path) -> None:
    store.create("jobs/a/1", b"one")
    store.create("jobs/a/1", b"two")
    store.put("jobs/a/2", b"three")
    store.create("jobs/b/1", b"four")
    store.delete("jobs/b/")
    files = [path.relative_to(tmp_path).as_posix() for path in everything(tmp_path) if path.is_file()]
    assert sorted(files) == ["journal/jobs/a/1", "journal/jobs/a/2"]


def test_deleted_root_is_made_again(store: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / "journal").rmdir()
    assert store.keys("") == []
    assert store.create("jobs/a/1", b"one")


# Owners


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="expected the path of a directory"):
            DirectoryStore(str(path))


def test_ones_own_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    DirectoryStore(str(tmp_path / "link")).create("a", b"one")
    assert (tmp_path / "there" / "a").read_bytes() == b"one"


@as_root
def test_other_users_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    os.lchown(tmp_path / "link", OTHER, OTHER)
    with pytest.raises(ValueError, match="symbolic link of another user"):
        DirectoryStore(str(tmp_path / "link"))


@as_root
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_other_users_shared_directory_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal").chmod(mode)
    os.chown(tmp_path / "journal", OTHER, OTHER)
    with pytest.raises(ValueError, match=rf"belongs to another user \(uid {OTHER}\)"):
        DirectoryStore(str(tmp_path / "journal"))


@as_root
def test_other_users_directory_in_tmp_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "journal").mkdir(mode=0o700)
    os.chown(tmp_path / "journal", OTHER, OTHER)
    with pytest.raises(ValueError, match="belongs to another user"):
        DirectoryStore(str(tmp_path / "journal"))


@as_root
def test_directory_given_away_is_not_written(store: DirectoryStore, tmp_path: Path) -> None:
    os.chown(tmp_path / "journal", OTHER, OTHER)
    (tmp_path / "journal").chmod(0o777)
    with pytest.raises(StoreError, match="belongs to another user"):
        store.create("a", b"one")
    assert list((tmp_path / "journal").iterdir()) == []


@as_root
def test_other_users_private_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir(mode=0o755)
    os.chown(tmp_path / "journal", OTHER, OTHER)
    assert DirectoryStore(str(tmp_path / "journal")).create("a", b"one")


# Failing disks


def mounted(path: Path) -> tuple[str, ...]:
    """Return a command that gives the process behind it a small file system of its own at the path."""
    path.mkdir()
    mount = ("unshare", "--user", "--map-root-user", "--mount")
    script = f'mount -t tmpfs -o size=64k,nr_inodes=64 none {path} && exec "$@"'
    within = (*mount, "sh", "-c", script, "sh")
    probe = subprocess.run([*within, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no file system can be mounted in a namespace here: {probe.stderr.strip()}")
    return within


FULL = """
import os, sys
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError

def failing(write):
    for number in range(1000):
        try:
            write(number)
        except StoreError as error:
            print(error)
            return number

store = DirectoryStore(sys.argv[1])
by_bytes = failing(lambda n: store.create(f"jobs/a/{n}", bytes([n]) * 5000))
assert store.keys("") == sorted(f"jobs/a/{n}" for n in range(by_bytes)), store.keys("")
assert all(store.get(f"jobs/a/{n}") == bytes([n]) * 5000 for n in range(by_bytes))
assert not any(name.startswith(".") for _, _, files in os.walk(sys.argv[1]) for name in files)
failing(lambda n: store.put("jobs/a/0", bytes(9000)))
assert store.get("jobs/a/0") == bytes(5000)
store.delete("jobs/a/")
by_files = failing(lambda n: store.create(f"jobs/b/{n}", b""))
assert len(store.keys("")) == by_files > 40
store.delete("jobs/b/")
assert store.create("jobs/a/1", b"one")
"""


def test_full_disk_leaves_nothing_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    answer = run(FULL, path, within=mounted(path))
    assert answer == f"directory {path}: could not write: No space left on device\n" * 3


READ_ONLY = """
import subprocess, sys
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError

store = DirectoryStore(sys.argv[1])
store.create("jobs/a/1", b"one")
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
for call in (
    lambda: store.create("jobs/a/2", b""),
    lambda: store.create("jobs/b/1", b""),
    lambda: store.put("jobs/a/1", b""),
    lambda: store.delete("jobs/a/"),
):
    try:
        call()
    except StoreError as error:
        print(error)
print(store.get("jobs/a/1"))
try:
    DirectoryStore(sys.argv[1] + "/below")
except ValueError as error:
    print(error)
"""


def test_unwritable_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = run(READ_ONLY, path, within=mounted(path)).splitlines()
    assert lines[:4] == [
        f"directory {path}: could not {verb}: Read-only file system" for verb in ("write",) * 3 + ("delete",)
    ]
    assert lines[4:] == [
        "b'one'",
        f"{path}/below can't be made: Read-only file system; expected the path of a directory",
    ]


# Kills


CALLS = """
import os, signal, sys
from container.journal.stores import directory
from container.journal.stores.directory import DirectoryStore

CALLS = ("open", "write", "fsync", "link", "rename", "unlink", "mkdir", "close")

class Counted:
    '''The module os, which calls `before` with the name of what is called in front of every change.'''
    def __init__(self, before):
        self.before = before
    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real
        def call(*arguments, **options):
            self.before(name, arguments)
            return real(*arguments, **options)
        return call
"""

KILLED = (
    CALLS
    + """
def work(path, tell):
    store = DirectoryStore(path)
    for number in range(3):
        if store.create(f"jobs/a/{number}", b"%d" % number * 1000):
            tell(f"jobs/a/{number}")
    store.put("jobs/a/progress", b"0" * 1000)
    store.put("jobs/a/progress", b"1" * 1000)
    tell("jobs/a/progress")

def kill_before(call, path):
    left = [call]
    def count(name, arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        directory.os = Counted(count)
        work(path, lambda key: os.write(write, key.encode() + b"\\n"))
        os._exit(0)
    os.close(write)
    with open(read) as told:
        keys = told.read().split()
    return keys, os.WIFSIGNALED(os.waitpid(child, 0)[1])

if __name__ == "__main__":
    was_killed, call, swept = True, 0, 0
    while was_killed:
        call += 1
        path = f"{sys.argv[1]}/{call}"
        told, was_killed = kill_before(call, path)
        store = DirectoryStore(path)
        there = store.keys("")
        assert set(told) <= set(there), (call, told, there)
        for key in there:
            name = key[len("jobs/a/"):]
            assert store.get(key) in ([b"0" * 1000, b"1" * 1000] if name == "progress" else [name.encode() * 1000])
        swept += sum(name[0] == "." for _, _, files in os.walk(path) for name in files)
        store.sweep()
        assert not any(name[0] == "." for _, _, files in os.walk(path) for name in files), call
        work(path, lambda key: None)
        assert store.keys("") == ["jobs/a/0", "jobs/a/1", "jobs/a/2", "jobs/a/progress"]
    print(call, swept)
"""
)


def test_killed_writer_keeps_durable_objects_whole(
    tmp_path: Path,
) -> None:
    calls, swept = map(int, run(KILLED, tmp_path).split())
    assert calls > 50 and swept > 12  # of five writes, each with four calls while it has a temporary file


ORDER = (
    CALLS
    + """
store = DirectoryStore(sys.argv[1])
store.create("jobs/a/0", b"")
calls = []
directory.os = Counted(lambda name, arguments: calls.append(name))
getattr(store, sys.argv[2])("jobs/a/1", b"one")
print(*calls)
"""
)


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("create", "open write fsync link unlink close open fsync close"),
        ("put", "open write fsync rename unlink close open fsync close"),
    ],
)
def test_file_is_synced_before_it_is_named(tmp_path: Path, method: str, calls: str) -> None:
    assert run(ORDER, tmp_path, method).strip() == calls


NO_LINKS = """
import errno, os, sys
from container.journal.stores import directory
from container.journal.stores.directory import DirectoryStore
from container.journal.stores.store import StoreError

class WithoutLinks:
    '''The module os on a file system where a file has one name.'''
    def __getattr__(self, name):
        return getattr(os, name)
    def link(self, source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

directory.os = WithoutLinks()
store = DirectoryStore(sys.argv[1])
assert store.create("jobs/a/1", b"one") and not store.create("jobs/a/1", b"two")
assert store.get("jobs/a/1") == b"one"
number = 0
try:
    while True:
        store.create(f"jobs/b/{number}", bytes(5000))
        number += 1
except StoreError as error:
    assert "No space" in str(error)
assert len(store.keys("jobs/b/")) == number
assert not any(name[0] == "." for _, _, files in os.walk(sys.argv[1]) for name in files)
"""


def test_key_is_created_once_without_links(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    run(NO_LINKS, path, within=mounted(path))


def test_a_file_under_construction_is_not_swept(store: DirectoryStore, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from container.journal.stores.directory import _temporary\n"
        "with _temporary(Path(sys.argv[1]), b'one'): print('made', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "journal" / "a")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"made\n"
        store.sweep()
        assert [path.name[:5] for path in (tmp_path / "journal").iterdir()] == [".new-"]
        writer.kill()
        writer.wait()
    store.sweep()
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_deletion_that_was_killed_is_completed(store: DirectoryStore, tmp_path: Path) -> None:
    store.create("jobs/a/1", b"one")
    (tmp_path / "journal" / "jobs" / "a").rename(tmp_path / "journal" / ".deleted-1")
    assert store.keys("") == []
    store.sweep()
    assert list((tmp_path / "journal").iterdir()) == [tmp_path / "journal" / "jobs"]


def test_listed_directory_never_there_is_failure(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems list a directory so that was deleted elsewhere."""
    store.create("jobs/a/b", b"")
    scandir = os.scandir

    def stale(path: str) -> Any:
        if path.endswith("/a"):
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(StoreError, match="could not list: directories were deleted"):
        store.keys("jobs/")
