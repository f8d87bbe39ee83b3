"""Lines to a pipe: with a reader, with a slow one, and without one."""

from __future__ import annotations

import os
import select
import threading

from endpoint.terminal import Terminal
from testing.server import TIMEOUT_S, eventually


def read_until(descriptor: int, end: bytes) -> bytes:
    read = b""
    while not read.endswith(end):
        read += os.read(descriptor, 2**16)
    return read


def test_lines_keep_order_until_close() -> None:
    reader, writer = os.pipe()
    terminal = Terminal(writer)
    for line in ("one", "zwei €", "\udcff"):
        terminal.put(line)
    terminal.close(5)
    assert os.read(reader, 2**16) == "one\nzwei €\n\\udcff\n".encode()
    os.close(reader)
    os.close(writer)


def test_unread_lines_are_dropped_and_counted() -> None:
    reader, writer = os.pipe()
    terminal = Terminal(writer, max_waiting=10)
    terminal.put("x" * 10**6)  # more than a pipe holds
    assert select.select([reader], [], [], TIMEOUT_S)[0]  # its thread has taken the line
    for number in range(100):
        terminal.put(str(number))
    terminal.close(0.1)  # gives up soon
    read = read_until(reader, b"and dropped]\n").decode()
    assert read.split()[1:11] == [str(number) for number in range(10)]
    assert read.endswith("\n[90 lines were not read in time and dropped]\n")
    terminal.put("again")
    assert read_until(reader, b"\n") == b"again\n"
    terminal.close(5)
    os.close(reader)
    os.close(writer)


def test_terminal_stops_when_reader_is_gone() -> None:
    reader, writer = os.pipe()
    terminal = Terminal(writer)
    os.close(reader)
    terminal.put("unread")
    eventually(lambda: f"terminal {writer}" not in [thread.name for thread in threading.enumerate()])
    terminal.put("unread")
    terminal.close(5)
    os.close(writer)
