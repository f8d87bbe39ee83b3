from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from container.disk.spool import CHUNK_BYTES, Spool
from container.invocations.invocation import Invocation
from container.server.answer import Answer

CONTENTS = {"empty": b"", "a byte": b"a", "short": b"abc", "pieces": b"ab" * CHUNK_BYTES + b"c"}


class Sending:
    """An invocation and a connection in one, which note what happens to an answer."""

    def __init__(self, *, has_open_slot: bool, is_taken: bool = True, may_have_left: bool = False) -> None:
        self.events: list[bytes | str] = []
        self.unfinished, self.attachment = 0, None
        self.has_open_slot = has_open_slot
        self.may_have_left = may_have_left
        self.outgoing = SimpleNamespace(is_lost=False, taking=self._taking)
        self._is_taken = is_taken

    async def _taking(self) -> bool:
        self.events.append("waits")
        self.outgoing.is_lost = not self._is_taken
        return self._is_taken

    async def close_slot(self) -> None:
        self.events.append("closes")

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.events.append("starts")
            return
        self.events.append(message["body"])
        if not message.get("more_body", False):
            self.events.append("ends")

    def run(self, content: bytes | Spool) -> list[bytes | str]:
        async def answer() -> None:
            response = Answer(content, "text/plain", cast(Invocation, self))
            await response({"type": "http", "state": {"connection": self}}, cast(Any, None), self.send)

        asyncio.run(answer())
        return self.events


def spooled(content: bytes, directory: Path) -> Spool:
    spool = Spool(str(directory))
    spool.append(content)
    spool.flush()
    return spool


@pytest.mark.parametrize("is_spooled", [False, True], ids=["in memory", "spooled"])
@pytest.mark.parametrize("size", CONTENTS)
def test_answer_ends_with_its_last_byte(tmp_path: Path, size: str, is_spooled: bool) -> None:
    content = CONTENTS[size]
    start, *body, end = Sending(has_open_slot=False).run(spooled(content, tmp_path) if is_spooled else content)
    assert (start, end) == ("starts", "ends")
    assert b"".join(cast(list[bytes], body)) == content
    assert size == "empty" or all(body)


@pytest.mark.parametrize("is_spooled", [False, True], ids=["in memory", "spooled"])
@pytest.mark.parametrize("size", CONTENTS)
def test_last_byte_waits_for_closed_slot(tmp_path: Path, size: str, is_spooled: bool) -> None:
    content = CONTENTS[size]
    events = Sending(has_open_slot=True).run(spooled(content, tmp_path) if is_spooled else content)
    closed = events.index("closes")
    assert events[closed - 1 : closed + 1] == ["waits", "closes"]
    assert events[closed + 1 :] == [content[-1:], "ends"] if content else ["starts", b"", "ends"]
    assert b"".join(event for event in events if isinstance(event, bytes)) == content


@pytest.mark.parametrize("gone", [{"is_taken": False}, {"may_have_left": True}], ids=["surely", "perhaps"])
def test_slot_of_client_that_left_stays_open(gone: dict[str, bool]) -> None:
    events = Sending(has_open_slot=True, **gone).run(b"abc")
    assert "closes" not in events and events[:3] == ["starts", b"ab", "waits"]
