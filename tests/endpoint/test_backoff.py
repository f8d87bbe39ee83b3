from __future__ import annotations

from endpoint.backoff import Backoff


def test_pauses_double_to_the_maximum_until_reset() -> None:
    backoff = Backoff(first_s=0.5, max_s=3.0)
    assert backoff.is_first
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert not backoff.is_first
    backoff.reset()
    assert backoff.is_first and backoff.next_s() == 0.5
