"""A process with a batch that is killed in the middle, and what is left in the journal's files."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence

from container.journal.job_log import JobLog
from container.journal.job_reader import JobReader
from container.journal.output_table import OutputTable
from container.journal.segment import SHARED, GenerationKey, Record, unpack
from container.journal.stores.open_store import open_store
from testing.container.hand_turned_engine import Engine

_JOB, _DIGEST = "survey", "digest"
_MAX_BYTES = 1 << 24


def generate_until_killed(
    engine: Engine, submit: Callable[[], Sequence[int]], *, tokens: int, directory: str
) -> list[list[int]]:
    """Have a fork of this process generate with `engine` until it has reported `tokens` tokens, and is killed.

    `submit` gives the fork's engine its sequences and returns their ids. Each step's tokens go to a journal in
    `directory`. Returns each sequence's tokens as they are read back from there. Raises RuntimeError if the fork ended
    in another way.
    """
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _generate(engine, submit(), tokens, directory)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise RuntimeError(f"the process to be killed ended by itself: {status}")
    return _read(directory)


def _generate(engine: Engine, ids: Sequence[int], tokens: int, directory: str) -> None:
    log = JobLog(_reader(directory), writer="survey", max_bytes=_MAX_BYTES)
    log.reader.open()
    log.take(bytes(16))
    written = dict.fromkeys(ids, 0)
    while sum(written.values()) < tokens:
        engine.turn()
        records = []
        for item, id in enumerate(ids):
            new = engine.output.get(id, [])[written[id] :]
            if new:
                records.append(Record.of(GenerationKey(SHARED, 0, item, 0), 0, written[id], new, [], None, None))
                written[id] += len(new)
        log.append(records)
    os.kill(os.getpid(), signal.SIGKILL)


def _read(directory: str) -> list[list[int]]:
    reader = _reader(directory)
    reader.open()
    table = OutputTable(directory)
    with contextlib.closing(table):
        reader.read(table)
        outputs, item = [], 0
        while (output := table.get(GenerationKey(SHARED, 0, item, 0))) is not None:
            outputs.append(list(unpack(output.token_ids)))
            item += 1
    return outputs


def _reader(directory: str) -> JobReader:
    return JobReader(open_store(directory), _JOB, _DIGEST, lifetime_s=1e9)
