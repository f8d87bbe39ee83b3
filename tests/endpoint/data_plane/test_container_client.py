from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from endpoint.data_plane.container_client import Answer, BadAnswer, ContainerClient, NoAnswer, Timeout
from endpoint.data_plane.storage import InputUnreadable
from testing.endpoint.faulty_container import FaultyContainer
from testing.server import TIMEOUT_S, free_port

MEBIBYTE = 1 << 20


@pytest.fixture
def container() -> Iterator[FaultyContainer]:
    with FaultyContainer() as container:
        yield container


class Stream:
    """A body of zeros, which breaks after some bytes."""

    def __init__(self, size: int, breaks_after: int | None = None) -> None:
        self.size = size
        self._breaks_after = size if breaks_after is None else breaks_after

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(self._breaks_after // MEBIBYTE):
            yield bytes(MEBIBYTE)
        if self._breaks_after < self.size:
            raise InputUnreadable("broken")


def invoke(url: str, spool: Path, told: str = "", *, body: Any = b"body", timeout_s: float = TIMEOUT_S) -> Answer:
    async def work() -> Answer:
        client = ContainerClient()
        headers = {"Content-Type": "a/b", "X-Amzn-SageMaker-Custom-Attributes": told}
        try:
            return await client.invoke(url, headers, body, timeout_s, spool)
        finally:
            await client.close()

    return asyncio.run(work())


def is_hung_up_on(container: FaultyContainer) -> bool:
    return container.hung_up_on.acquire(timeout=TIMEOUT_S)


def test_answer_is_spooled(container: FaultyContainer, tmp_path: Path) -> None:
    answer = invoke(container.url, tmp_path / "spool", "type=c/d")
    assert (answer.status, answer.content_type, answer.size) == (200, "c/d", 4)
    assert answer.file.read_bytes() == b"body"


def test_only_http_headers_are_added(container: FaultyContainer, tmp_path: Path) -> None:
    invoke(container.url, tmp_path / "spool")
    assert set(container.seen[0].headers) == {
        "host",
        "connection",
        "content-type",
        "content-length",
        "x-amzn-sagemaker-custom-attributes",
    }


@pytest.mark.parametrize("size", [0, 1, MEBIBYTE - 1, MEBIBYTE, 5 * MEBIBYTE + 1])
def test_answers_of_any_size_come_whole(container: FaultyContainer, tmp_path: Path, size: int) -> None:
    answer = invoke(container.url, tmp_path / "spool", f"size={size}")
    assert answer.size == size
    assert answer.file.read_bytes() == b"x" * size


def test_the_body_is_streamed(container: FaultyContainer, tmp_path: Path) -> None:
    invoke(container.url, tmp_path / "spool", "size=1", body=Stream(32 * MEBIBYTE))
    assert container.seen[0].size == 32 * MEBIBYTE
    assert container.seen[0].digest == hashlib.sha256(bytes(32 * MEBIBYTE)).hexdigest()


@pytest.mark.parametrize("status", [201, 204, 400, 404, 500, 503])
def test_any_status_is_an_answer(container: FaultyContainer, tmp_path: Path, status: int) -> None:
    assert invoke(container.url, tmp_path / "spool", f"status={status} size=0").status == status


def test_answer_before_body_is_read_counts(container: FaultyContainer, tmp_path: Path) -> None:
    answer = invoke(container.url, tmp_path / "spool", "early", body=Stream(16 * MEBIBYTE))
    assert (answer.status, answer.file.read_bytes()) == (413, b"too big")


@pytest.mark.parametrize("told", ["hang_up", "reset", "half", "garbage"])
def test_early_end_of_connection_is_no_answer(container: FaultyContainer, tmp_path: Path, told: str) -> None:
    with pytest.raises(NoAnswer):
        invoke(container.url, tmp_path / "spool", told)
    assert not (tmp_path / "spool").exists()


def test_refused_connection_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(NoAnswer):
        invoke(f"http://127.0.0.1:{free_port()}", tmp_path / "spool")


@pytest.mark.parametrize(
    "told, words",
    [
        ("chunked", "did not specify the required Content-Length header"),
        ("no_length", "did not specify the required Content-Length header"),
        ("long_headers", "greater than 4096 bytes"),
        ("long_line", "greater than 4096 bytes"),
    ],
)
def test_unacceptable_headers_are_bad_answers(
    container: FaultyContainer, tmp_path: Path, told: str, words: str
) -> None:
    with pytest.raises(BadAnswer, match=words):
        invoke(container.url, tmp_path / "spool", told)


def test_redirects_are_not_followed(container: FaultyContainer, tmp_path: Path) -> None:
    assert invoke(container.url, tmp_path / "spool", "redirect").status == 302


def test_bodies_are_not_unpacked(container: FaultyContainer, tmp_path: Path) -> None:
    assert invoke(container.url, tmp_path / "spool", "gzip").file.read_bytes() == b"no gzip at all"


@pytest.mark.parametrize("told", ["never", "slow"])
def test_timeout_closes_connection(container: FaultyContainer, tmp_path: Path, told: str) -> None:
    with pytest.raises(Timeout):
        invoke(container.url, tmp_path / "spool", told, timeout_s=0.2)
    assert is_hung_up_on(container)
    assert not (tmp_path / "spool").exists()


def test_timeout_closes_connection_while_body_is_unsent(container: FaultyContainer, tmp_path: Path) -> None:
    with pytest.raises(Timeout):
        invoke(container.url, tmp_path / "spool", "deaf", body=Stream(64 * MEBIBYTE), timeout_s=0.2)
    container.let_go()
    assert is_hung_up_on(container)


def test_input_error_is_raised_as_is(container: FaultyContainer, tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="broken"):
        invoke(container.url, tmp_path / "spool", body=Stream(4 * MEBIBYTE, breaks_after=2 * MEBIBYTE))
    assert is_hung_up_on(container)
    assert container.seen == []


def test_a_cancelled_call_hangs_up(container: FaultyContainer, tmp_path: Path) -> None:
    async def work() -> None:
        client = ContainerClient()
        headers = {"X-Amzn-SageMaker-Custom-Attributes": "never"}
        call = asyncio.create_task(client.invoke(container.url, headers, b"", TIMEOUT_S, tmp_path / "spool"))
        assert await asyncio.to_thread(container.came.acquire, timeout=TIMEOUT_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await client.close()

    asyncio.run(work())
    assert is_hung_up_on(container)


def test_each_call_has_own_connection(container: FaultyContainer, tmp_path: Path) -> None:
    async def work() -> None:
        client = ContainerClient()
        for number in range(3):
            await client.invoke(container.url, {}, b"", TIMEOUT_S, tmp_path / str(number))
        await client.close()

    asyncio.run(work())
    assert len({seen.connection for seen in container.seen}) == 3


def test_unwritable_spool_raises_os_error(container: FaultyContainer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        invoke(container.url, tmp_path / "missing" / "spool", "size=3000000")
