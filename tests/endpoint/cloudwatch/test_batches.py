from __future__ import annotations

from endpoint.cloudwatch.batches import batches


def test_batches_keep_order_and_limits() -> None:
    items = [1] * 25 + [60] * 3 + [200] + [1]
    cut = list(batches(items, size=lambda item: item, max_items=10, max_size=100))
    assert [item for batch in cut for item in batch] == items
    assert all(len(batch) <= 10 for batch in cut)
    assert [batch for batch in cut if sum(batch) > 100] == [[200]]
    assert [len(batch) for batch in cut[:2]] == [10, 10]


def test_nothing_makes_no_batch() -> None:
    assert list(batches([], size=len, max_items=1, max_size=1)) == []
