"""The quickstart's output: headings, a line of progress, questions with their answers."""

from __future__ import annotations

import sys
import textwrap
import time


class Failed(Exception):
    """A step failed that should have worked; the message says what."""


class StatusLine:
    """A line that is rewritten on a terminal; elsewhere a line every five seconds."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.next_print = time.monotonic() + 5

    def show(self, text: str) -> None:
        if self.is_terminal:
            print(f"\r\x1b[2K{text}", end="", flush=True)
        elif time.monotonic() >= self.next_print:
            print(text, flush=True)
            self.next_print = time.monotonic() + 5

    def end(self, text: str) -> None:
        print(f"\r\x1b[2K{text}" if self.is_terminal else text, flush=True)


def heading(title: str) -> None:
    print(f"\n── {title} {'─' * (76 - len(title))}", flush=True)


def exchange(prompt: str, answer: str) -> None:
    print(textwrap.fill(" ".join(prompt.split()), 78, initial_indent="> ", subsequent_indent="> "))
    for paragraph in answer.strip().splitlines():
        print(textwrap.fill(paragraph, 78, initial_indent="    ", subsequent_indent="    "))
    if not answer.strip():
        raise Failed(f"nothing was generated for {prompt!r}")
