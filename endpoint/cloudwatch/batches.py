"""Batches within the limits of a CloudWatch operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], *, size: Callable[[T], int], max_items: int, max_size: int) -> Iterator[list[T]]:
    """Cut `items` into lists of at most `max_items` items whose `size` adds up to at most `max_size`.

    An item that is larger than `max_size` comes alone. No list is empty.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        item_size = size(item)
        if batch and (len(batch) == max_items or total + item_size > max_size):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += item_size
    if batch:
        yield batch
