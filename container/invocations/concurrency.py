"""Functions in threads, and bounds of what is at work side by side."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")


def run_in_thread(threads: ThreadPoolExecutor, function: Callable[[], T]) -> asyncio.Future[T]:
    """Run a function in one of the threads. Its log lines carry the invocation's id, too."""
    context = contextvars.copy_context()
    return asyncio.get_running_loop().run_in_executor(threads, partial(context.run, _turn_panic_into_error, function))


def _turn_panic_into_error(function: Callable[[], T]) -> T:
    try:
        return function()
    except Exception:
        raise
    except BaseException as panic:  # native code's panic is not an Exception, and its text may quote a prompt
        name = type(panic).__name__
    raise RuntimeError(f"{name} in native code")


class WeightedSemaphore:
    """Bounds work in flight, by number and by weight. Only one task may acquire."""

    def __init__(self, max_count: int, max_weight: int) -> None:
        self._max_count = max_count
        self._max_weight = max_weight
        self._count = 0
        self._weight = 0
        self._released = asyncio.Event()

    async def acquire(self, weight: int) -> None:
        """Wait for room. Work that is heavier than the limit runs alone."""
        while self._count == self._max_count or (self._count and self._weight + weight > self._max_weight):
            self._released.clear()
            await self._released.wait()
        self._count += 1
        self._weight += weight

    def release(self, weight: int, _task: object = None) -> None:
        self._count -= 1
        self._weight -= weight
        self._released.set()
