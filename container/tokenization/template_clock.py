"""The clock that chat templates see: the job's, so that a job that is resumed tomorrow has the prompts of today."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

_clock: ContextVar[float | None] = ContextVar("template clock", default=None)


class _TemplateTime:
    """Stands for `datetime` where transformers asks for the time."""

    @staticmethod
    def now() -> datetime:
        clock = _clock.get()
        return datetime.now() if clock is None else datetime.fromtimestamp(clock)


def install_clock() -> None:
    """Give this clock to `strftime_now`, the only one that transformers' templates have.

    A function of our own among a template's variables would not do: transformers lets plain data through, nothing else.
    """
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = _TemplateTime  # type: ignore[attr-defined, assignment]


@contextmanager
def stopped_clock(clock: float | None) -> Iterator[None]:
    """Let templates see this Unix time, in this thread; None: the present."""
    token = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(token)
