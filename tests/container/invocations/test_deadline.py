"""Deadlines and their margins, without a server."""

from __future__ import annotations

import time
from typing import Any

import pytest

from container.dialects.document import RequestHead
from container.errors import InvalidRequest
from container.invocations.deadline import Deadline
from container.settings import Settings

MIB = 1 << 20


def deadline(attributes: str | None = None, **settings: Any) -> Deadline:
    head = RequestHead.parse("invocations", None, attributes)
    return Deadline.of(Settings(**settings), head.timeout_s, time.monotonic())


@pytest.mark.parametrize("attributes", [None, "", "our-own-token;max_new_tokens=5", "Timeout=1"])
def test_setting_is_the_default_timeout(attributes: str | None) -> None:
    own = deadline(attributes, invocation_timeout_s=70.0)
    assert (own.timeout_s, own.source) == (70, "setting")


@pytest.mark.parametrize(("given", "seconds"), [("1", 1), ("3600", 3600), ("1800", 1800), ("2.5", 2.5), (" 5 ", 5)])
def test_request_timeout_overrides_setting(given: str, seconds: float) -> None:
    own = deadline(f"our-own-token; timeout={given};job=a")
    assert (own.timeout_s, own.source) == (seconds, "attribute")


@pytest.mark.parametrize("given", ["", "0", "0.9", "3600.1", "-5", "soon", "1e3", "nan", "1_0", "0x10", "٣", "900s"])
def test_malformed_timeout_is_refused_by_name(given: str) -> None:
    with pytest.raises(InvalidRequest, match=r"timeout must be a number of seconds from 1 to 3600") as refusal:
        deadline(f"timeout={given}")
    assert refusal.value.param == "X-Amzn-SageMaker-Custom-Attributes: timeout"


def test_two_timeouts_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="timeout is given 2 times"):
        deadline("timeout=5;timeout=5")


@pytest.mark.parametrize(
    ("timeout_s", "size", "items", "margin_s"),
    [
        (900, 0, 0, 1),
        (900, 64 * MIB, 0, 1 + 3.2),
        (900, 0, 100_000, 1 + 10),
        (900, 1024 * MIB, 1_000_000, 1 + 51.2 + 100),
        (60, 1024 * MIB, 1_000_000, 30),
        (1, 0, 0, 0.5),
    ],
)
def test_margin_grows_up_to_half_the_timeout(timeout_s: float, size: int, items: int, margin_s: float) -> None:
    own = deadline(invocation_timeout_s=float(timeout_s))
    before = time.monotonic()
    ends = own.left_s(size=size, items=items) + before
    late = time.monotonic() - before
    assert own.arrived + timeout_s - margin_s - late - 1e-6 <= ends <= own.arrived + timeout_s - margin_s + 1e-6


def test_time_runs_from_request_arrival() -> None:
    assert 0 < Deadline.of(Settings(), 100, time.monotonic() - 50).left_s() <= 49
    assert Deadline.of(Settings(), 100, time.monotonic() - 99.5).left_s() < 0
