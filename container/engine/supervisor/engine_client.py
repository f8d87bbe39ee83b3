"""The edge's side of one engine process: starts it, feeds it, notices its death, starts the next one, which goes on
with what the dead one had not finished.

Runs on the event loop. Owns the process and the table of sequences it is working on; knows no HTTP and no text.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from typing import Literal

import msgspec

from container.engine.messages import (
    HEADER,
    Cancel,
    Configure,
    Crashed,
    EngineConfig,
    EngineInfo,
    Log,
    NewTokens,
    Ready,
    Refused,
    Step,
    Submit,
    encode,
    to_edge,
)
from container.engine.sequence import EngineError, Sequence
from container.engine.supervisor.crash_budget import CrashBudget, Crashes
from container.engine.supervisor.environment import engine_environment
from container.engine.supervisor.memory_shortage import is_shortage, oom_kills, smaller
from container.engine.supervisor.suspects import TRIAL_TOKENS, Suspects

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "recovering", "failed", "stopped"]

_COMMAND = (sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "container.engine.worker.process")
_GRACE_S = 1.0
_KILLED_S = 5.0


class EngineClient:
    """Owns one engine process at a time and the sequences submitted to it.

    States: starting → ready ⇄ recovering → failed; stopped after `stop`. `failed` is final: the model was refused
    or the crash budget is spent; `reason` says which. `on_change` is called after every change of state.
    `library_path` is the process's LD_LIBRARY_PATH, where it is not this one's.

    A new engine gets every unfinished sequence again, with the tokens that it has. Suspects (see `suspects.py`) are
    tried first, one at a time, and nothing else is taken until then. `on_restart` is called before each start but the
    first, `on_resubmit` with the number of sequences that were in an engine before.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        stall_timeout_s: float,
        library_path: str | None = None,
        budget: CrashBudget | None = None,
        command: tuple[str, ...] = _COMMAND,
        on_change: Callable[[], None] = lambda: None,
        on_step: Callable[[Step], None] = lambda step: None,
        on_restart: Callable[[], None] = lambda: None,
        on_resubmit: Callable[[int], None] = lambda sequences: None,
    ) -> None:
        self._config = config
        self._stall_timeout_s = stall_timeout_s
        self._library_path = library_path
        self._command = command
        self._on_change = on_change
        self._on_step = on_step
        self._on_restart = on_restart
        self._on_resubmit = on_resubmit
        self.state: State = "starting"
        self.reason: str | None = None
        self.info: EngineInfo | None = None
        self.last_step = Step(steps=0, tokens=[])
        self._sequences: dict[int, Sequence] = {}
        self._ids = itertools.count()
        self._in_engine: set[int] = set()
        self._on_trial: int | None = None
        self._suspects = Suspects()
        self._crashes = Crashes(budget or CrashBudget())
        self._was_fruitful = False
        self._oom_kills: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._last_words: str | None = None
        self._idle_s = 0.0
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def can_take_work(self) -> bool:
        """Not between the engine's death and the state's change: its exit status is waited for first."""
        return self.state == "ready" and self._writer is not None and not self._suspects

    @property
    def in_flight(self) -> int:
        return len(self._sequences)

    @property
    def sequences(self) -> Collection[Sequence]:
        """Those submitted and not finished, whether or not there is an engine that has them."""
        return self._sequences.values()

    def start(self) -> None:
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")
        self._supervisor.add_done_callback(self._supervision_ended)

    def submit(self, sequence: Sequence, *, newcomer: bool = False) -> None:
        """The engine takes sequences in this order, newcomers first. Call only while `can_take_work`."""
        sequence.id = next(self._ids)
        self._sequences[sequence.id] = sequence
        self._send(sequence, newcomer=newcomer)

    def cancel(self, sequence: Sequence) -> None:
        """Free what the sequence holds. Its listeners are not called again. Nothing happens if it has ended."""
        if self._sequences.pop(sequence.id, None) is None:
            return
        if sequence.id == self._on_trial:
            return  # it ends by itself in a moment, and until then the next one would not be alone
        self._suspects.drop(sequence.id)
        if sequence.id in self._in_engine:
            self._in_engine.remove(sequence.id)
            self._write(Cancel(sequence.id))

    async def stop(self) -> None:
        """End the engine process now. Sequences still in flight fail."""
        self._change("stopped")
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        await self._end_process(grace_s=0)
        self._fail_all("engine_stopped", "the server is shutting down")

    async def _supervise(self) -> None:
        while self.state not in ("failed", "stopped"):
            self._last_words = None
            self._was_fruitful = False
            self._oom_kills = oom_kills()
            try:
                await self._run_process()
            except Exception as error:
                # No memory for a process, or a message that can't be handled: that engine is as good as dead.
                logger.exception("the engine is given up")
                self._last_words = f"{type(error).__name__}: {error}"
            status = await self._end_process(grace_s=_GRACE_S)
            if self.state != "failed":
                await self._recover(status)

    def _supervision_ended(self, supervisor: asyncio.Task[None]) -> None:
        """Whatever ends it but `stop`, nobody may go on waiting for an engine."""
        if not supervisor.cancelled() and (error := supervisor.exception()) is not None:
            self._fail(f"the engine's supervision failed: {type(error).__name__}: {error}")

    async def _run_process(self) -> None:
        reader = await self._start_process()
        stall_watch = asyncio.create_task(self._watch_for_stalls(), name="stall watch")
        try:
            await self._read(reader)
        finally:
            stall_watch.cancel()

    async def _start_process(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = self._spawn(theirs.fileno())
        except OSError:
            ours.close()
            raise
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(encode(Configure(self._config)))
        logger.info("engine starting", extra={"action": "engine_start", "engine_pid": self._process.pid})
        return reader

    def _spawn(self, link: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._command, str(link)],
            pass_fds=[link],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal reaches the edge alone
            env=engine_environment(self._config, self._library_path),
        )

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Until the engine's end of the socket closes, which is its death."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._handle(to_edge.decode(await reader.readexactly(length)))

    def _handle(self, message: Ready | Refused | Log | Step | Crashed) -> None:
        match message:
            case Step():
                self._take_step(message)
            case Log():
                logging.getLogger(message.logger).log(message.level, message.message)
            case Ready():
                self.info = message.info
                self._idle_s = 0.0
                self._drop_what_no_longer_fits(message.info)
                self._feed()
                self._change("ready")
            case Refused():
                self._fail(message.reason)
            case Crashed():
                self._last_words = message.reason

    def _drop_what_no_longer_fits(self, info: EngineInfo) -> None:
        """It did in the engine that died, but the new one may have found less memory for its cache."""
        for sequence in list(self._sequences.values()):
            if sequence.most_tokens > info.max_sequence_tokens:
                del self._sequences[sequence.id]
                sequence.on_error(no_longer_fits(info))

    def _feed(self) -> None:
        """Give the engine what an earlier one didn't finish: a single suspect, or else all of it."""
        while (suspect := self._suspects.next) is not None:
            if suspect in self._sequences:
                self._on_trial = suspect
                self._send(self._sequences[suspect], most_tokens=TRIAL_TOKENS)
                return
            self._suspects.drop(suspect)
        waiting = [sequence for sequence in self._sequences.values() if sequence.id not in self._in_engine]
        for sequence in waiting:
            self._send(sequence)
        if waiting:
            logger.info("%d sequences go on", len(waiting), extra={"action": "resubmit", "sequences": len(waiting)})
            self._on_resubmit(len(waiting))

    def _send(self, sequence: Sequence, *, newcomer: bool = False, most_tokens: int | None = None) -> None:
        """`most_tokens`: after so many, the engine is to end it."""
        if not self._in_engine:
            self._idle_s = 0.0
        self._in_engine.add(sequence.id)
        sampling, output_ids = sequence.sampling, sequence.output_ids
        if most_tokens is not None:
            limit = min(sampling.max_new_tokens, len(output_ids) + most_tokens)
            sampling = msgspec.structs.replace(sampling, max_new_tokens=limit)
        prompt_ids = sequence.prompt_ids.tolist()
        self._write(Submit(sequence.id, prompt_ids, sampling, newcomer, output_ids))

    def _write(self, message: Submit | Cancel) -> None:
        """To a dead engine, nothing: the next one is told what matters."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    def _take_step(self, step: Step) -> None:
        if step.steps != self.last_step.steps:
            self._idle_s = 0.0
        self.last_step = step
        for new in step.tokens:
            self._take_tokens(new)
        for failure in step.failed:
            self._in_engine.discard(failure.id)
            sequence = self._sequences.pop(failure.id, None)
            if sequence is not None:
                sequence.on_error(EngineError("sequence_failed", failure.reason))
        if self._on_trial is not None and self._on_trial not in self._in_engine:
            self._suspects.drop(self._on_trial)
            self._on_trial = None
            self._feed()
        self._on_step(step)

    def _take_tokens(self, new: NewTokens) -> None:
        self._was_fruitful = True
        if new.finish_reason is not None:
            self._in_engine.discard(new.id)
        # Unknown ids are those cancelled while the engine was still working on them.
        sequence = self._sequences.get(new.id)
        if sequence is None:
            return
        sequence.output_ids += new.token_ids
        sequence.logprobs += new.logprobs
        goes_on = len(sequence.output_ids) < sequence.sampling.max_new_tokens
        only_trial_ended = new.id == self._on_trial and new.finish_reason == "length" and goes_on
        if new.finish_reason is not None and not only_trial_ended:
            sequence.finish_reason = new.finish_reason
            del self._sequences[new.id]
        self._tell(sequence, len(new.token_ids))

    def _tell(self, sequence: Sequence, new: int) -> None:
        """What a listener can't bear ends its own sequence, and nobody else's."""
        try:
            sequence.on_tokens(new)
        except BaseException as error:  # a panic of native code is no Exception, and its words may quote a text
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            name = type(error).__name__
            logger.error("a sequence is given up: %s", name, extra={"action": "sequence_failed"})
            self.cancel(sequence)
            sequence.on_error(EngineError("sequence_failed", f"internal error ({name})"))

    async def _watch_for_stalls(self) -> None:
        """Kill an engine that has work but makes no step. Loading and idling are no stalls."""
        tick_s = min(1.0, self._stall_timeout_s / 4)
        while True:
            await asyncio.sleep(tick_s)
            if self.state != "ready" or not self._in_engine:
                continue
            # Ticks and no clock: while a container is paused, its engine makes no steps but has not stalled.
            self._idle_s += tick_s
            if self._idle_s > self._stall_timeout_s and self._process is not None:
                self._last_words = f"no step for {self._idle_s:.0f} s with {self.in_flight} sequences in flight"
                self._process.kill()

    async def _recover(self, status: int) -> None:
        cause = self._last_words or _describe_exit(status)
        logger.error(
            "engine died: %s",
            cause,
            extra={"action": "engine_died", "exit_status": status, "sequences": self.in_flight},
        )
        ran_out = is_shortage(self._last_words, status, self._oom_kills, oom_kills())
        # A SIGKILL that neither the kernel nor this process has sent comes from outside: no sequence is to blame.
        came_from_outside = status == -signal.SIGKILL and self._last_words is None and not ran_out
        guilty = None if came_from_outside else self._blame()
        self._crashes.count(was_fruitful=self._was_fruitful, is_explained=guilty is not None)
        was_at_work = bool(self._in_engine)
        self._in_engine.clear()
        self._on_trial = None
        self.last_step = Step(steps=0, tokens=[])
        if guilty is not None:
            words = f"the engine died of this prompt, the last time with nothing else at work: {cause}"
            logger.error("a sequence is given up: %s", words, extra={"action": "sequence_failed"})
            guilty.on_error(EngineError("engine_killed_by_item", words))
        if (spent := self._crashes.spent) is not None:
            self._fail(f"{spent}, last: {cause}")
            return
        if ran_out:
            self._make_smaller(was_at_work)
        # A first start that fails has nothing to recover.
        self._change("recovering" if self.info is not None else "starting")
        await asyncio.sleep(self._crashes.delay_s)
        self._on_restart()

    def _blame(self) -> Sequence | None:
        """Note who was in the engine that died. The one that was on trial is guilty, and no longer ours."""
        if self._on_trial is not None:
            self._suspects.drop(self._on_trial)
            return self._sequences.pop(self._on_trial, None)
        if self._in_engine:
            self._suspects.blame([self._sequences[id] for id in sorted(self._in_engine & self._sequences.keys())])
        return None

    def _make_smaller(self, was_at_work: bool) -> None:
        needed = max((sequence.most_tokens for sequence in self._sequences.values()), default=0)
        config = smaller(self._config, self.info, was_at_work=was_at_work, needed_tokens=needed)
        if config is None:
            logger.warning("the engine ran out of memory, and has nothing left that could be made smaller")
            return
        self._config = config
        logger.warning(
            "the engine ran out of memory: the next one starts with max_batch_tokens %s and kv_cache_tokens %s",
            config.max_batch_tokens or "as before",
            config.kv_cache_tokens or "as before",
            extra={"action": "engine_made_smaller"},
        )

    async def _end_process(self, *, grace_s: float) -> int:
        """The engine's exit status. One that is exiting by itself has `grace_s`, so that its status says why."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is None:
            return 0
        status = await _exit_status(self._process, grace_s)
        if status is None:
            self._last_words = self._last_words or "it hung up, but lived on"
            self._process.kill()
            # Even then a process may take its time (a GPU driver's), but nobody's answer waits for it any longer.
            status = await _exit_status(self._process, _KILLED_S)
        self._process = None
        return -signal.SIGKILL if status is None else status

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._change("failed")
        self._fail_all("engine_failed", reason)

    def _fail_all(self, code: str, message: str) -> None:
        sequences, self._sequences = self._sequences, {}
        for sequence in sequences.values():
            sequence.on_error(EngineError(code, message))

    def _change(self, state: State) -> None:
        if self.state not in ("failed", "stopped") and state != self.state:
            self.state = state
            self._on_change()


def no_longer_fits(info: EngineInfo) -> EngineError:
    held = f"the restarted engine holds {info.max_sequence_tokens} tokens, too few for this sequence"
    return EngineError("sequence_failed", held)


async def _exit_status(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return await asyncio.to_thread(process.wait, timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _describe_exit(status: int) -> str:
    if status < 0:
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return f"killed by signal {-status}{hint}"
    return f"exit status {status}"
