from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.engine.sequence import TokenLogprobs
from container.journal.merged_output import MergedOutput
from container.journal.output_table import OutputTable
from container.journal.segment import End, Entry, GenerationKey, Record, SlotClosed, pack, unpack
from testing import ROOT
from testing.fuzzing import fuzz_settings
from testing.server import eventually

KEY = GenerationKey(0, 0, 0, 0)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[OutputTable]:
    with closing(OutputTable(str(tmp_path))) as table:
        yield table


def record(
    start: int,
    token_ids: list[int],
    end: End | None = None,
    *,
    key: GenerationKey = KEY,
    crc: int = 1,
    with_logprobs: bool = False,
) -> Record:
    logprobs = [TokenLogprobs(-float(token_id)) for token_id in token_ids] if with_logprobs else []
    return Record(*key, crc, start, pack(token_ids), logprobs, end)


def ids(table: OutputTable, key: GenerationKey = KEY) -> list[int] | None:
    output = table.get(key)
    return output and unpack(output.token_ids)


def test_unknown_output_is_none(table: OutputTable) -> None:
    table.add([record(0, [1, 2])])
    assert table.get(GenerationKey(0, 0, 0, 1)) is None


def test_pieces_make_one_output(table: OutputTable) -> None:
    logprobs = [TokenLogprobs(-1.0, [(1, -1.0)]), TokenLogprobs(-2.0), TokenLogprobs(-0.25)]
    table.add([Record(*KEY, 7, 0, pack([1, 2]), logprobs[:2])])
    table.add([Record(*KEY, 7, 2, pack([3]), logprobs[2:])])
    table.add([Record(*KEY, 7, 3, b"", end="stop_string", stop_chars=4)])
    assert table.get(KEY) == MergedOutput(
        token_ids=pack([1, 2, 3]), logprobs=logprobs, end="stop_string", stop_chars=4, prompt_crc=7
    )


def test_an_output_without_tokens_is_known(table: OutputTable) -> None:
    table.add([record(0, [], "length")])
    assert table.get(KEY) == MergedOutput(token_ids=b"", logprobs=[], end="length", stop_chars=None, prompt_crc=1)


def test_what_would_make_a_gap_is_ignored(table: OutputTable) -> None:
    table.add([record(1, [2])])
    assert table.get(KEY) is None
    table.add([record(0, [1]), record(2, [3], "stop")])
    assert ids(table) == [1]


def test_what_was_put_already_changes_nothing(table: OutputTable) -> None:
    entries: list[Entry] = [record(0, [1, 2]), record(2, [3, 4]), record(0, [1, 2]), record(2, [3]), record(4, [5])]
    table.add(entries)
    assert ids(table) == [1, 2, 3, 4, 5]


def test_nothing_follows_an_end(table: OutputTable) -> None:
    table.add([record(0, [1, 2], "stop"), record(2, [3]), record(0, [4]), record(2, [], "length")])
    output = table.get(KEY)
    assert output and (unpack(output.token_ids), output.end) == ([1, 2], "stop")


def test_end_cuts_later_tokens(table: OutputTable) -> None:
    table.add([record(0, [1, 2, 3, 4]), record(2, [], "stop_string")])
    assert ids(table) == [1, 2]


def test_newer_writers_tokens_replace_older(table: OutputTable) -> None:
    table.add([record(0, [1, 2, 3, 4]), record(2, [9])])
    assert ids(table) == [1, 2, 9]


def test_other_prompt_replaces_output(table: OutputTable) -> None:
    table.add([record(0, [1, 2], "stop"), record(1, [5], crc=2), record(0, [7], crc=2)])
    output = table.get(KEY)
    assert output and (unpack(output.token_ids), output.end, output.prompt_crc) == ([7], None, 2)


def test_part_without_logprobs_is_ignored(table: OutputTable) -> None:
    table.add([record(0, [1], with_logprobs=True), record(1, [2])])
    assert ids(table) == [1]
    table.add([record(1, [2], with_logprobs=True), record(2, [], "stop")])
    output = table.get(KEY)
    assert output and (unpack(output.token_ids), len(output.logprobs), output.end) == ([1, 2], 2, "stop")


def test_counts_are_outputs_and_tokens(table: OutputTable) -> None:
    keys = [GenerationKey(0, 0, item, choice) for item in range(100) for choice in range(2)]
    table.add([record(0, [1, 2], key=key) for key in keys])
    table.add([record(2, [3], "stop", key=key) for key in keys[:50]])
    table.add([SlotClosed(0)])
    assert table.counts() == (50, 150, 450)


def test_nothing_shows_in_the_directory(table: OutputTable, tmp_path: Path) -> None:
    table.add([record(0, list(range(100_000)))])
    assert list(tmp_path.iterdir()) == []


def test_many_tracks_take_no_memory(tmp_path: Path) -> None:
    program = """
import resource, sys
from container.journal.output_table import OutputTable
from container.journal.segment import Record
table = OutputTable(sys.argv[1])
def fill(slot):
    for first in range(0, 60_000, 1000):
        table.add([Record(slot, 0, first + item, 0, 1, 0, bytes(800), [], "stop") for item in range(1000)])
fill(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    root = ROOT
    command = [sys.executable, "-c", program, str(tmp_path)]
    grown_kib = int(subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout)
    assert grown_kib < 8 << 10  # of the 48 MB that were added


def test_full_disk_ends_the_table(tmp_path: Path) -> None:
    program = """
import resource, sys
from container.errors import OutOfSpace
from container.journal.output_table import OutputTable
from container.journal.segment import Record, GenerationKey
table = OutputTable(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, 20 << 20))
put = lambda: [table.add([Record(0, 0, item, 0, 1, 0, bytes(80_000))]) for item in range(1000)]
load = lambda: table.add([Record(1, 0, 0, 0, 1, 0, b"")])
for call in (put, load, table.counts, lambda: table.get(GenerationKey(0, 0, 0, 0))):
    try:
        call()
    except OutOfSpace as error:
        print(error.code)
table.close()
"""
    root = ROOT
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    answer = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True)
    assert answer.stdout == "disk_full\n" * 4


def test_waiting_reader_has_next_turn(table: OutputTable) -> None:
    """Otherwise a thread that adds a whole journal would keep readers out for half a second."""
    turns = []

    def wait() -> None:
        with table._turn():
            turns.append("reader")

    reader = threading.Thread(target=wait)
    with table._turn():
        reader.start()
        eventually(table._next.locked)
    with table._turn():
        turns.append("load")
    reader.join()
    assert turns == ["reader", "load"]


def test_reader_sees_outputs_added_so_far(table: OutputTable) -> None:
    much: list[Entry] = [record(0, [1], "stop", key=GenerationKey(0, 0, item, 0)) for item in range(20_000)]
    loading = threading.Thread(target=table.add, args=(much,))
    loading.start()
    finished = [0]
    while finished[-1] < len(much):
        finished.append(table.counts()[0])
    loading.join()
    assert finished == sorted(finished) and table.counts() == (20_000, 0, 20_000)


# Comparison with a simple list

LENGTH = 12
TRUTHS = ([1] * LENGTH, [1, 1, 1, 2, *[1] * (LENGTH - 4)], [1] * 8 + [3] * (LENGTH - 8))
"""Outputs of writers that agree up to where they broke a tie in another way."""


def naive_output(records: list[Record]) -> tuple[list[int], End | None] | None:
    """Merge the records in a list, one after the other."""
    known: list[int] | None = None
    for record in records:
        new = unpack(record.token_ids)
        if known is None:
            if record.start:
                continue
            known = []
        if record.start > len(known):
            continue
        longer = known[: record.start] + new
        if record.end or known[: len(longer)] != longer:
            known = longer
        if record.end:
            return known, record.end
    return None if known is None else (known, None)


@st.composite
def one_writers(draw: st.DrawFn, start: int, truth: list[int]) -> list[Record]:
    """Draw pieces in order, some of them twice, perhaps to the end."""
    records = []
    while start < LENGTH and draw(st.integers(0, 4)):
        size = draw(st.integers(0, LENGTH - start))
        end: End | None = "stop" if start + size == LENGTH else None
        records += [record(start, truth[start : start + size], end)] * draw(st.integers(1, 2))
        start += size
    return records


@fuzz_settings(200)
@given(st.data())
def test_writers_outputs_merge_as_in_list(data: st.DataObject) -> None:
    """Each writer begins anew, or goes on from what is known, perhaps with other tokens."""
    added: list[Record] = []
    with closing(OutputTable(tempfile.gettempdir())) as table:
        for truth in data.draw(st.lists(st.sampled_from(TRUTHS), min_size=1, max_size=4)):
            known, _ = naive_output(added) or ([], None)
            start = len(known) if data.draw(st.booleans()) else 0
            for piece in data.draw(one_writers(start, known[:start] + truth[start:])):
                added.append(piece)
                table.add([piece])
                output, expected = table.get(KEY), naive_output(added)
                assert (output and (unpack(output.token_ids), output.end)) == expected
                tokens, end = expected or ([], None)
                is_known = expected is not None
                assert table.counts() == (is_known and end is not None, is_known and end is None, len(tokens))
