"""A batch that is killed in the middle, and another one that goes on with what the journal has of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import zlib
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import msgspec

from container.engine.messages import Step
from container.journal.job_log import JobLog
from container.journal.job_reader import JobReader
from container.journal.output_table import OutputTable
from container.journal.segment import SHARED, GenerationKey, Record, pack, unpack
from container.journal.stores.directory import DirectoryStore
from testing.container.hand_turned_engine import Engine

_FORK = multiprocessing.get_context("fork")
_JOB, _DIGEST, _SECRET = "survey", "digest", b"secret"
_HOUR_S = 3600.0


def resume_after_kill(
    make_engine: Callable[[], Engine], prompts: Sequence[list[int]], new_tokens: int, journal: str
) -> list[list[int]]:
    """Generate from all prompts in a process that is killed when it has reported half of all tokens, and in a second
    one that is given what a journal has of the first. Returns the tokens of both.

    `journal` is an empty directory. Raises RuntimeError where a process ends early, or had ended before it was killed.
    """
    steps = _report_until_killed(make_engine, prompts, new_tokens)
    _write_journal(journal, prompts, steps)
    known = _read_journal(journal, len(prompts))
    open_ids = [id for id, tokens in enumerate(known) if len(tokens) < new_tokens]
    if not open_ids or not any(known):
        raise RuntimeError("the process was not killed in the middle")
    rest = _finish(make_engine, {id: (prompts[id], known[id]) for id in open_ids}, new_tokens)
    return [tokens + rest.get(id, []) for id, tokens in enumerate(known)]


def _report_until_killed(
    make_engine: Callable[[], Engine], prompts: Sequence[list[int]], new_tokens: int
) -> list[Step]:
    def generate(connection: Connection) -> None:
        engine = make_engine()
        for id, prompt in enumerate(prompts):
            engine.submit(id, prompt, max_new_tokens=new_tokens)
        reported = 0
        while len(engine.finished) < len(prompts):
            engine.turn()
            for step in engine.steps[reported:]:
                connection.send_bytes(msgspec.msgpack.encode(step))
            reported = len(engine.steps)

    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=generate, args=(theirs,))
    process.start()
    theirs.close()
    steps: list[Step] = []
    tokens = 0
    with ours, contextlib.suppress(EOFError, OSError):  # the latter for a report that the death has torn
        while True:
            steps.append(msgspec.msgpack.decode(ours.recv_bytes(), type=Step))
            tokens += len(steps[-1].tokens)
            if tokens >= len(prompts) * new_tokens // 2:
                process.kill()  # reports under way are still read
    process.join()
    if not tokens:
        raise RuntimeError("the process to be killed reported nothing")
    return steps


def _finish(
    make_engine: Callable[[], Engine], known: dict[int, tuple[list[int], list[int]]], new_tokens: int
) -> dict[int, list[int]]:
    """Go on with the sequences, of which prompts and first tokens are known, in a new process."""

    def generate(connection: Connection) -> None:
        engine = make_engine()
        for id, (prompt, output) in known.items():
            engine.submit(id, prompt, output_ids=output, max_new_tokens=new_tokens)
        engine.finish(known)
        connection.send_bytes(msgspec.msgpack.encode(engine.output))

    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=generate, args=(theirs,))
    process.start()
    theirs.close()
    try:
        with ours:
            return msgspec.msgpack.decode(ours.recv_bytes(), type=dict[int, list[int]])
    except EOFError as error:
        raise RuntimeError("the process that resumes ended early") from error
    finally:
        process.join()


def _key(id: int) -> GenerationKey:
    return GenerationKey(slot=SHARED, line=0, item=id, choice=0)


def _write_journal(directory: str, prompts: Sequence[list[int]], steps: Sequence[Step]) -> None:
    """Write a record of each report, as the server does."""
    reader = JobReader(DirectoryStore(directory), _JOB, _DIGEST, lifetime_s=_HOUR_S)
    reader.open()
    log = JobLog(reader, writer="survey", max_bytes=1 << 24)
    log.take(_SECRET)
    written = [0] * len(prompts)
    for step in steps:
        records = []
        for new in step.tokens:
            crc, start = zlib.crc32(pack(prompts[new.id])), written[new.id]
            records.append(Record.of(_key(new.id), crc, start, new.token_ids, [], new.finish_reason, None))
            written[new.id] += len(new.token_ids)
        log.append(records)


def _read_journal(directory: str, prompts: int) -> list[list[int]]:
    """Return the tokens that the journal has of each prompt's answer."""
    reader = JobReader(DirectoryStore(directory), _JOB, _DIGEST, lifetime_s=_HOUR_S)
    if reader.open() != _SECRET:
        raise RuntimeError("the journal is not the one that was written")
    table = OutputTable(directory)
    with contextlib.closing(table):
        reader.read(table)
        outputs = [table.get(_key(id)) for id in range(prompts)]
    return [[] if output is None else unpack(output.token_ids) for output in outputs]
