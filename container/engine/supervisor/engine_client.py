"""The server's side of the engine process: starts it, feeds it, notices its death, and starts the next one, which goes
on with what the dead one had not finished.

It runs on the event loop, and knows no HTTP and no text.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from container.engine.messages import (
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
    to_server,
)
from container.engine.sequence import EngineError, Sequence
from container.engine.supervisor.crash_budget import CrashBudget
from container.engine.supervisor.environment import engine_environment
from container.engine.supervisor.memory_shortage import is_shortage, oom_kills
from container.engine.supervisor.recovery import Death, Recovery
from container.engine.supervisor.suspects import ISOLATED_TOKENS
from container.processes.child_process import ChildProcess, python_command

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "recovering", "failed", "stopped"]

_EXIT_TIMEOUT_S = 1.0
"""Seconds that an engine has to exit by itself, so that its exit status says why."""
_KILL_TIMEOUT_S = 5.0
"""Seconds that a killed one has: a GPU driver may hold it, but answers wait for it no longer."""


@dataclass(slots=True)
class _Engine:
    """One engine process, from before its start to after its end."""

    child: ChildProcess | None = None
    sequence_ids: set[int] = field(default_factory=set)
    """Sequences that were sent to it and have not ended there."""
    has_generated: bool = False
    last_step: Step = field(default_factory=lambda: Step(steps=0))
    last_words: str | None = None
    """Why it dies, where it or the server can tell."""
    idle_s: float = 0.0
    """Seconds since the last step, or since it was given work."""


class EngineClient:
    """Owns one engine process at a time and the sequences submitted to it.

    States: starting → ready ⇄ recovering → failed; stopped after `stop`. `failed` is final: the model was refused
    or the crash budget is spent; `reason` says which. `on_change` is called after every change of state.
    `library_path` is the process's LD_LIBRARY_PATH, where it is not this one's.

    A new engine gets every unfinished sequence again, with the tokens that it has. Suspects (see `suspects.py`) are
    isolated first, one at a time, and nothing else is taken until then. `on_restart` is called before each start but
    the first, `on_resubmit` with the number of sequences that were in an engine before, and `on_preemptions` after each
    step with the number of sequences that it put back.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        stall_timeout_s: float,
        library_path: str | None = None,
        budget: CrashBudget | None = None,
        command: tuple[str, ...] = python_command("container.engine.worker.process"),
        on_change: Callable[[], None] = lambda: None,
        on_step: Callable[[Step], None] = lambda step: None,
        on_restart: Callable[[], None] = lambda: None,
        on_resubmit: Callable[[int], None] = lambda sequences: None,
        on_preemptions: Callable[[int], None] = lambda sequences: None,
    ) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._library_path = library_path
        self._command = command
        self._on_change = on_change
        self.on_step = on_step
        """Called after each step: the engine may have room now."""
        self._on_restart = on_restart
        self._on_resubmit = on_resubmit
        self._on_preemptions = on_preemptions
        self.state: State = "starting"
        self.reason: str | None = None
        self.info: EngineInfo | None = None
        self._recovery = Recovery(config, budget or CrashBudget())
        self._engine = _Engine()
        self._sequences: dict[int, Sequence] = {}
        self._ids = itertools.count()
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        child = self._engine.child
        return None if child is None else child.pid

    @property
    def cache_use(self) -> float:
        """Share of the KV cache that running sequences hold, 0 to 1."""
        return self._engine.last_step.cache_use

    @property
    def can_take_work(self) -> bool:
        """False while suspects are isolated, and once the engine is dead, even before its exit status is known."""
        child = self._engine.child
        return self.state == "ready" and child is not None and child.is_open and not self._recovery.suspects.ids

    @property
    def sequences(self) -> Collection[Sequence]:
        """Those submitted and not finished, whether or not there is an engine that has them."""
        return self._sequences.values()

    def start(self) -> None:
        """Start the engine process and keep one running until `stop`."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")

    def submit(self, sequence: Sequence, *, newcomer: bool = False) -> None:
        """Send a sequence to the engine, which takes them in this order, newcomers first. Requires `can_take_work`."""
        sequence.id = next(self._ids)
        self._sequences[sequence.id] = sequence
        self._send(sequence, newcomer=newcomer)

    def cancel(self, sequence: Sequence) -> None:
        """Free what the sequence holds. Its listeners are not called again. Nothing happens if it has ended."""
        if self._sequences.pop(sequence.id, None) is None:
            return
        if sequence.id == self._recovery.suspects.isolated:
            return  # it ends by itself in a moment, and until then the next suspect would not be alone
        self._recovery.suspects.drop(sequence.id)
        engine = self._engine
        if sequence.id in engine.sequence_ids and engine.child is not None:
            engine.sequence_ids.remove(sequence.id)
            engine.child.send(Cancel(sequence.id))

    async def stop(self) -> None:
        """End the engine process now. Sequences still in flight fail."""
        self._change("stopped")
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        await self._end_process(exit_timeout_s=0)
        self._fail_all("engine_stopped", "the server is shutting down")

    async def _supervise(self) -> None:
        try:
            while self.state not in ("failed", "stopped"):
                death = await self._run_until_death()
                if self.state != "failed":
                    await self._recover(death)
        except Exception as error:  # without supervision, sequences would wait for an engine forever
            self._fail(f"the engine's supervision failed: {type(error).__name__}: {error}")

    async def _run_until_death(self) -> Death:
        kills = oom_kills()
        try:
            await self._run_process()
        except Exception as error:
            # No memory for a process, or a message that can't be handled: that engine is as good as dead.
            logger.exception("the engine is given up")
            self._engine.last_words = f"{type(error).__name__}: {error}"
        status = await self._end_process(exit_timeout_s=_EXIT_TIMEOUT_S)
        engine, self._engine = self._engine, _Engine()
        return Death(
            exit_status=status,
            last_words=engine.last_words,
            is_shortage=is_shortage(engine.last_words, status, kills, oom_kills()),
            sequence_ids=engine.sequence_ids,
            has_generated=engine.has_generated,
        )

    async def _run_process(self) -> None:
        """Start the engine and handle its messages until its death."""
        config = self._recovery.config
        environment = engine_environment(config, self._library_path)
        child = self._engine.child = await ChildProcess.start(self._command, self._handle, environment=environment)
        child.send(Configure(config))
        logger.info("engine starting", extra={"action": "engine_start", "engine_pid": child.pid})
        stall_watch = asyncio.create_task(self._watch_for_stalls(), name="stall watch")
        try:
            await child.closed
        finally:
            stall_watch.cancel()

    def _handle(self, encoded: bytes) -> None:
        match to_server.decode(encoded):
            case Step() as step:
                self._take_step(step)
            case Log() as message:
                logging.getLogger(message.logger).log(message.level, message.message)
            case Ready(info):
                self.info = info
                self._engine.idle_s = 0.0
                for sequence in list(self._sequences.values()):
                    # All fit the engine that died, but this one may have found less memory for its cache.
                    if sequence.max_tokens > info.max_sequence_tokens:
                        del self._sequences[sequence.id]
                        sequence.on_error(no_longer_fits(info))
                self._feed()
                self._change("ready")
            case Refused(reason):
                self._fail(reason)
            case Crashed(reason):
                self._engine.last_words = reason

    def _feed(self) -> None:
        """Give the engine what an earlier one didn't finish: a single suspect, or else all of it."""
        suspect = self._recovery.suspects.isolate_next(self._sequences)
        if suspect is not None:
            self._send(suspect, max_tokens=ISOLATED_TOKENS)
            return
        waiting = [sequence for sequence in self._sequences.values() if sequence.id not in self._engine.sequence_ids]
        for sequence in waiting:
            self._send(sequence)
        if waiting:
            logger.info("%d sequences go on", len(waiting), extra={"action": "resubmit", "sequences": len(waiting)})
            self._on_resubmit(len(waiting))

    def _send(self, sequence: Sequence, *, newcomer: bool = False, max_tokens: int | None = None) -> None:
        """Send a sequence to the engine, which is to end it after `max_tokens` more tokens."""
        engine = self._engine
        assert engine.child is not None, "nothing is sent between two engines"
        if not engine.sequence_ids:
            engine.idle_s = 0.0
        engine.sequence_ids.add(sequence.id)
        sampling, output_ids = sequence.sampling, sequence.output_ids
        if max_tokens is not None:
            limit = min(sampling.max_new_tokens, len(output_ids) + max_tokens)
            sampling = msgspec.structs.replace(sampling, max_new_tokens=limit)
        engine.child.send(Submit(sequence.id, sequence.prompt_ids.tolist(), sampling, newcomer, output_ids))

    def _take_step(self, step: Step) -> None:
        engine, suspects = self._engine, self._recovery.suspects
        if step.steps != engine.last_step.steps:
            engine.idle_s = 0.0
        engine.last_step = step
        for new in step.tokens:
            self._take_tokens(new)
        for failure in step.failed:
            engine.sequence_ids.discard(failure.id)
            sequence = self._sequences.pop(failure.id, None)
            if sequence is not None:
                sequence.on_error(EngineError("sequence_failed", failure.reason))
        if suspects.isolated is not None and suspects.isolated not in engine.sequence_ids:
            suspects.drop(suspects.isolated)
            self._feed()
        self._on_preemptions(step.preemptions)
        self.on_step(step)

    def _take_tokens(self, new: NewTokens) -> None:
        self._engine.has_generated = True
        if new.finish_reason is not None:
            self._engine.sequence_ids.discard(new.id)
        # Unknown ids are those cancelled while the engine was still working on them.
        sequence = self._sequences.get(new.id)
        if sequence is None:
            return
        sequence.output_ids += new.token_ids
        sequence.logprobs += new.logprobs
        goes_on = len(sequence.output_ids) < sequence.sampling.max_new_tokens
        is_isolated = new.id == self._recovery.suspects.isolated
        only_isolation_ended = is_isolated and new.finish_reason == "length" and goes_on
        if new.finish_reason is not None and not only_isolation_ended:
            sequence.finish_reason = new.finish_reason
            del self._sequences[new.id]
        try:
            sequence.on_tokens(len(new.token_ids))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of native code is no Exception, and its message may quote a text
            name = type(error).__name__
            logger.error("a sequence is given up: %s", name, extra={"action": "sequence_failed"})
            self.cancel(sequence)
            sequence.on_error(EngineError("sequence_failed", f"internal error ({name})"))

    async def _watch_for_stalls(self) -> None:
        """Kill an engine that has work but makes no step. Loading and idling are no stalls."""
        engine, tick_s = self._engine, min(1.0, self._stall_timeout_s / 4)
        while True:
            await asyncio.sleep(tick_s)
            if self.state != "ready" or not engine.sequence_ids:
                continue
            # Ticks, not a clock: while a container is paused, its engine makes no steps but has not stalled.
            engine.idle_s += tick_s
            if engine.idle_s > self._stall_timeout_s and engine.child is not None:
                engine.last_words = f"no step for {engine.idle_s:.0f} s with {len(self._sequences)} sequences in flight"
                engine.child.kill()

    async def _end_process(self, *, exit_timeout_s: float) -> int:
        """End the engine process and return its exit status, which is 0 if none was started."""
        child = self._engine.child
        if child is None:
            return 0
        child.close()
        status = await child.wait(exit_timeout_s)
        if status is None:
            self._engine.last_words = self._engine.last_words or "the engine closed its connection but did not exit"
            child.kill()
            status = await child.wait(_KILL_TIMEOUT_S)
        self._engine.child = None
        return -signal.SIGKILL if status is None else status

    async def _recover(self, death: Death) -> None:
        """Fail what caused an engine's death, and prepare the next start. Give up if the crash budget is spent."""
        logger.error(
            "engine died: %s",
            death.reason,
            extra={"action": "engine_died", "exit_status": death.exit_status, "sequences": len(self._sequences)},
        )
        cause = self._recovery.find_cause(death, self._sequences)
        if cause is not None:
            del self._sequences[cause.id]
            words = f"the engine died of this prompt, the last time with nothing else at work: {death.reason}"
            logger.error("a sequence is given up: %s", words, extra={"action": "sequence_failed"})
            cause.on_error(EngineError("engine_killed_by_item", words))
        if (spent := self._recovery.crashes.spent) is not None:
            self._fail(f"{spent}, last: {death.reason}")
            return
        needed_tokens = max((sequence.max_tokens for sequence in self._sequences.values()), default=0)
        self._recovery.shrink(death, self.info, needed_tokens)
        # A first start that fails has nothing to recover.
        self._change("recovering" if self.info is not None else "starting")
        await asyncio.sleep(self._recovery.crashes.delay_s)
        self._on_restart()

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
    """Return the error of a sequence that fit the engine until it was restarted."""
    held = f"the restarted engine holds {info.max_sequence_tokens} tokens, too few for this sequence"
    return EngineError("sequence_failed", held)
