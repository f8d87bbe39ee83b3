"""How long a client has kept the server waiting, look by look."""

from __future__ import annotations

from container.server.stall import Missing, Phase, Stall

TIMEOUT_S = 3.0


def looks(
    stall: Stall, count: int, phase: Phase, *, is_answering: bool = False, unsent: int = 0
) -> list[Missing | None]:
    return [
        stall.look(phase, is_answering=is_answering, unsent_bytes=unsent, timeout_s=TIMEOUT_S) for _ in range(count)
    ]


def test_unfinished_head_is_missed_after_timeout() -> None:
    assert looks(Stall(1.0, TIMEOUT_S), 3, "head") == [None, None, "head"]


def test_trickling_head_is_missed_after_timeout() -> None:
    stall = Stall(1.0, TIMEOUT_S)
    for _ in range(2):
        stall.has_received = True
        assert looks(stall, 1, "head") == [None]
    stall.has_received = True
    assert looks(stall, 1, "head") == ["head"]


def test_silent_body_is_missed_after_timeout() -> None:
    assert looks(Stall(1.0, TIMEOUT_S), 3, "body") == [None, None, "body"]


def test_body_byte_restarts_the_timeout() -> None:
    stall = Stall(1.0, TIMEOUT_S)
    assert looks(stall, 2, "body") == [None, None]
    stall.has_received = True
    assert looks(stall, 3, "body") == [None, None, None]


def test_untaken_answer_is_missed_after_timeout() -> None:
    stall = Stall(1.0, TIMEOUT_S)
    assert looks(stall, 3, "whole", is_answering=True, unsent=100) == [None, None, "answer"]


def test_flowing_answer_restarts_the_timeout() -> None:
    stall = Stall(1.0, TIMEOUT_S)
    assert looks(stall, 2, "whole", is_answering=True, unsent=100) == [None, None]
    assert looks(stall, 1, "whole", is_answering=True, unsent=99) == [None]
    assert looks(stall, 2, "whole", is_answering=True, unsent=99) == [None, None]
    stall.has_sent = True
    assert looks(stall, 3, "whole", is_answering=True, unsent=99) == [None, None, None]


def test_working_server_misses_nothing() -> None:
    for phase in ("new", "head", "body", "whole"):
        assert looks(Stall(1.0, TIMEOUT_S), 9, phase, is_answering=True) == [None] * 9
    assert looks(Stall(1.0, TIMEOUT_S), 9, "new") == [None] * 9


def test_unsent_answer_comes_before_next_head() -> None:
    """If a client pipelines requests, the next head is not read while it takes no answer."""
    stall = Stall(1.0, TIMEOUT_S)
    assert looks(stall, 3, "head", unsent=100) == [None, None, "answer"]


def test_drain_timeout_restarts_the_count() -> None:
    stall = Stall(1.0, TIMEOUT_S)
    looks(stall, 2, "body")
    drained = [stall.look("body", is_answering=False, unsent_bytes=0, timeout_s=2.0) for _ in range(2)]
    assert drained == [None, "body"]
