"""Outcomes of responses."""

from __future__ import annotations

import pytest

from container.server.responses import OUTCOMES


@pytest.mark.parametrize(("status", "outcome"), [(200, "ok"), (413, "client_error"), (507, "server_error")])
def test_status_is_counted_as_outcome(status: int, outcome: str) -> None:
    assert OUTCOMES[status // 100] == outcome
