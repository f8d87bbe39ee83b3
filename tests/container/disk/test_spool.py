from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from container.disk.ordered_spool import OrderedSpool
from container.disk.spool import Spool
from container.errors import OutOfSpace
from testing import ROOT
from testing.server import Server


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(str(tmp_path))) as spool:
        yield spool


@pytest.fixture
def ordered(tmp_path: Path) -> Iterator[OrderedSpool]:
    with closing(OrderedSpool(str(tmp_path))) as ordered:
        yield ordered


def read(ordered: OrderedSpool) -> list[bytes]:
    ordered.flush()

    async def pieces() -> list[bytes]:
        return [piece async for piece in ordered.chunks()]

    return asyncio.run(pieces())


def lines(spool: Spool, *written: bytes, longest: int = 10) -> list[bytes | None]:
    for part in written:
        spool.append(part)
    spool.flush()
    found = list(spool.lines(longest))
    assert [spool.read_at(line.offset, line.size) for line in found if line.text] == [
        line.text for line in found if line.text
    ]
    assert sum(line.size for line in found) == spool.size
    return [line.text for line in found]


def test_lines_come_as_they_were_written(spool: Spool) -> None:
    assert lines(spool, b"one\nt", b"wo\r\n\nthree") == [b"one\n", b"two\r\n", b"\n", b"three"]


def test_an_empty_spool_has_no_lines(spool: Spool) -> None:
    assert lines(spool) == []


def test_line_after_long_one_is_whole(spool: Spool) -> None:
    assert lines(spool, b"a" * 3_000_000 + b"\nnext\n") == [None, b"next\n"]
    assert [(line.number, line.offset, line.size) for line in spool.lines(10)] == [(1, 0, 3_000_001), (2, 3_000_001, 5)]


def test_a_last_line_may_be_long(spool: Spool) -> None:
    assert lines(spool, b"first\n" + b"a" * 3_000_000) == [b"first\n", None]


def test_line_of_limit_is_not_long(spool: Spool) -> None:
    assert lines(spool, b"a" * 10 + b"\n", longest=11) == [b"a" * 10 + b"\n"]


def test_the_size_is_what_was_written(spool: Spool) -> None:
    lines(spool, b"one\n", b"two\n")
    assert spool.size == 8


def test_nothing_shows_in_the_directory(spool: Spool, tmp_path: Path) -> None:
    spool.append(b"secret")
    assert list(tmp_path.iterdir()) == []


def test_records_are_read_in_order(ordered: OrderedSpool) -> None:
    numbers = list(range(1000))
    random.Random(0).shuffle(numbers)
    for number in numbers:
        ordered.put(number, b"%d\n" % number)
    assert b"".join(read(ordered)) == b"".join(b"%d\n" % number for number in range(1000))


def test_many_threads_may_put_at_once(ordered: OrderedSpool) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: ordered.put(number, b"%d\n" % number * 50), range(2000)))
    whole = b"".join(read(ordered))
    assert whole == b"".join(b"%d\n" % number * 50 for number in range(2000))
    assert ordered.size == len(whole)


def test_records_are_read_in_moderate_pieces(ordered: OrderedSpool) -> None:
    for number in range(50):
        ordered.put(number, b"a" * 100_000)
    assert [len(piece) for piece in read(ordered)] == [1_100_000] * 4 + [600_000]


def test_body_without_room_is_refused_early(spool: Spool) -> None:
    with pytest.raises(OutOfSpace, match="bytes free") as caught:
        spool.reserve(1 << 60)
    assert (caught.value.status, caught.value.code) == (507, "disk_full")


def test_a_body_with_room_is_not_refused(spool: Spool) -> None:
    spool.reserve(1)


# The file size limit of a process of its own stands for a disk that is full.
ON_A_FULL_DISK = """
import resource, sys, tempfile
from container.errors import OutOfSpace
from container.disk.ordered_spool import OrderedSpool
from container.disk.spool import Spool

resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    {}
except OutOfSpace as error:
    print(error.status, error.code)
"""


def on_a_full_disk(program: str) -> str:
    command = [sys.executable, "-W", "error", "-c", ON_A_FULL_DISK.format(program)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.mark.parametrize(
    "program",
    [
        "Spool(tempfile.gettempdir()).append(bytes(1 << 20))",
        "spool = Spool(tempfile.gettempdir()); [spool.append(bytes(1000)) for _ in range(100)]",
        "spool = Spool(tempfile.gettempdir()); [spool.append(bytes(101)) for _ in range(100)]; spool.flush()",
        "spool = OrderedSpool(tempfile.gettempdir()); [spool.put(n, bytes(101)) for n in range(100)]; spool.flush()",
    ],
)
def test_a_full_disk_is_named(program: str) -> None:
    assert on_a_full_disk(program) == "507 disk_full\n"


def test_closing_on_full_disk_hides_nothing() -> None:
    program = (
        "spool = Spool(tempfile.gettempdir()); spool.append(bytes(5000)); spool.append(bytes(5001)); spool.close()"
    )
    assert on_a_full_disk(program) == ""


# End to end

BAD_LINE = json.dumps({"recordId": "a", "modelInput": {"prompt": "a" * 4000, "no such field": 1}}) + "\n"


def post_lines_to_a_full_disk(server: Server, lines: int, room: int) -> httpx.Response:
    """Limit the size of the server's files to `room` bytes."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        return server.post(content=BAD_LINE * lines, headers={"content-type": "application/jsonlines"})
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("room", [10_000, 3_000_000])
def test_body_without_room_is_507(server: Server, room: int) -> None:
    response = post_lines_to_a_full_disk(server, 1000, room)
    assert (response.status_code, response.json()["error"]["code"]) == (507, "disk_full")


@pytest.mark.parametrize("lines", [1, 10, 100])
def test_answers_without_room_are_507(server: Server, lines: int) -> None:
    response = post_lines_to_a_full_disk(server, lines, room=len(BAD_LINE) * lines + 10)
    assert (response.status_code, response.json()["error"]["code"]) == (507, "disk_full")


def test_disk_with_room_is_used_again(server: Server) -> None:
    post_lines_to_a_full_disk(server, 10, room=100)
    response = server.post(content=BAD_LINE * 10, headers={"content-type": "application/jsonlines"})
    assert (response.status_code, len(response.text.splitlines())) == (200, 10)
