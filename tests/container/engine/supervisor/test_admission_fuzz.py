"""The queue before the engine, while sequences and engines come and go in random order."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from msgspec.structs import replace

from container.engine.sequence import EngineError, Sampling, Sequence
from container.engine.supervisor.admission import Admission
from container.engine.supervisor.engine_client import EngineClient
from testing.container.fake_engine import FakeEngine
from testing.fuzzing import fuzz_settings

OWNERS = st.sampled_from(["a", "b", "c", "d"])
ANY = st.integers(0, 10**6)
"""Chooses one of the sequences that there are by then."""
NOW = st.booleans()
"""Tells whether the event loop turns after an act, or more happens in the same turn."""
DIED = EngineError("engine_failed", "the engine died")


class WatchedEngine(FakeEngine):
    """Shows each sequence to the test before it takes it."""

    def __init__(self, watch: Callable[[Sequence], None], **limits: int) -> None:
        super().__init__(**limits)
        self._watch = watch

    def submit(self, sequence: Sequence, *, newcomer: bool = False) -> None:
        self._watch(sequence)
        super().submit(sequence, newcomer=newcomer)


class Turns(RuleBasedStateMachine):
    """An Admission, beside plain lists of the sequences that should wait and of what each has been told."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine = WatchedEngine(self.check_place, max_running=16, max_batch_tokens=100)
        self.admission = Admission(cast(EngineClient, self.engine))
        self.sequences: list[Sequence] = []
        self.waiting: dict[str, list[Sequence]] = {}
        self.told: Counter[Sequence] = Counter()
        self.withdrawn: set[Sequence] = set()
        self.overtaken: dict[str, Counter[str]] = {}
        """Places that others got while an owner with nothing running waited, by that owner."""
        self.due: list[Callable[[], None]] = []

    # What happens

    @rule(owner=OWNERS, count=st.integers(1, 20), tokens=st.sampled_from([1, 1, 30, 120, 900]), now=NOW)
    def enqueue(self, owner: str, count: int, tokens: int, now: bool) -> None:
        def act() -> None:
            for _ in range(count):
                sequence = self.new_sequence(owner, tokens)
                if not self.waiting.setdefault(owner, []):
                    self.overtaken.pop(owner, None)
                self.waiting[owner].append(sequence)
                self.admission.enqueue(sequence)

        self.do(act, now)

    def new_sequence(self, owner: str, tokens: int) -> Sequence:
        def on_error(error: EngineError) -> None:
            self.told[sequence] += 1
            assert sequence not in self.withdrawn
            if sequence in self.waiting[owner]:
                self.waiting[owner].remove(sequence)
                self.overtaken.pop(owner, None)  # one that doesn't fit any more was its turn

        def on_tokens(new: int) -> None:
            self.told[sequence] += sequence.finish_reason is not None

        sampling = Sampling(max_new_tokens=9)
        sequence = Sequence(array("I", [1]) * tokens, sampling, owner=owner, on_tokens=on_tokens, on_error=on_error)
        self.sequences.append(sequence)
        return sequence

    @rule(which=ANY, now=NOW)
    def withdraw(self, which: int, now: bool) -> None:
        """Withdraw any sequence, as an invocation withdraws those that have ended, too."""
        self.do(lambda: self.take_back(self.sequences[-1 - which % 50 :][:1]), now)

    @rule(owner=OWNERS, now=NOW)
    def close(self, owner: str, now: bool) -> None:
        """Withdraw all sequences of one owner, as an invocation does that ends."""
        self.do(lambda: self.take_back([s for s in self.sequences if s.owner == owner and not self.told[s]]), now)

    def take_back(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            if sequence in self.waiting[str(sequence.owner)]:
                self.waiting[str(sequence.owner)].remove(sequence)
            if not self.told[sequence]:
                self.withdrawn.add(sequence)
            self.admission.withdraw(sequence)

    @rule(count=st.integers(1, 6), now=NOW)
    def step(self, count: int, now: bool) -> None:
        """Give the first sequences a token, and end those that had one before."""

        def act() -> None:
            if self.engine.can_take_work:
                self.end([s for s in self.engine.sequences if s.output_ids][:count])
                for sequence in self.engine.sequences[:count]:
                    sequence.output_ids.append(1)
                    sequence.on_tokens(1)
                self.admission.pump()

        self.do(act, now)

    def end(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.engine.sequences.remove(sequence)
            sequence.finish_reason = "length"
            sequence.on_tokens(1)

    @rule(now=NOW)
    def close_connection(self, now: bool) -> None:
        """Let the engine be dead while its exit status is still waited for."""

        def act() -> None:
            self.engine.can_take_work = False

        self.do(act, now)

    @rule(now=NOW)
    def die(self, now: bool) -> None:
        self.do(self.fail_running, now)

    def fail_running(self) -> None:
        self.engine.can_take_work = False
        dead, self.engine.sequences = self.engine.sequences, []
        for sequence in dead:
            sequence.on_error(DIED)

    @rule(max_running=st.sampled_from([1, 2, 7, 8, 16, 40]), longest=st.sampled_from([20, 200, 10_000]), now=NOW)
    def restart(self, max_running: int, longest: int, now: bool) -> None:
        """Start an engine, which may find less memory than the one before."""

        def act() -> None:
            self.fail_running()
            self.engine.info = replace(self.engine.info, max_running=max_running, max_sequence_tokens=longest)
            self.engine.can_take_work = True
            self.admission.pump()

        self.do(act, now)

    @rule(now=NOW)
    def give_up(self, now: bool) -> None:
        def act() -> None:
            self.fail_running()
            self.admission.fail_all(DIED)

        self.do(act, now)

    # What must hold

    def check_place(self, sequence: Sequence) -> None:
        owner, info, taken = str(sequence.owner), self.engine.info, self.engine.in_flight
        assert self.engine.can_take_work and taken < info.max_running
        assert self.waiting[owner][0] is sequence, "first come, first served within an owner"
        if owner in self.engine.owners:
            assert taken < info.max_running - info.max_running // 8, "the last places are kept for newcomers"
            assert self.prompt_tokens_ahead() < 2 * info.max_batch_tokens
        for other in self.idle_owners() - {owner}:
            counts = self.overtaken.setdefault(other, Counter())
            counts[owner] += 1
            assert counts[owner] <= 1, f"{owner} gets a second place before {other} has its first"
        self.overtaken.pop(owner, None)
        self.waiting[owner].pop(0)

    def idle_owners(self) -> set[str]:
        """Return the owners that wait and have nothing running."""
        return {owner for owner, queue in self.waiting.items() if queue} - set(map(str, self.engine.owners))

    def prompt_tokens_ahead(self) -> int:
        return sum(len(s.prompt_ids) for s in self.engine.sequences if not s.output_ids)

    def do(self, act: Callable[[], None], now: bool) -> None:
        self.due.append(act)
        if now:
            self.turn()

    def turn(self) -> None:
        acts, self.due = self.due, []

        async def all_at_once() -> None:
            for act in acts:
                act()

        self.loop.run_until_complete(all_at_once())  # with what it left for the turn's end
        self.check_every_sequence()
        self.check_no_place_is_wasted()

    def check_every_sequence(self) -> None:
        queues = {owner: list(queue) for owner, queue in self.admission._queues.items()}
        assert queues == {owner: queue for owner, queue in self.waiting.items() if queue}
        assert len(self.admission) == sum(map(len, queues.values()))
        states = Counter([*chain(*queues.values()), *self.engine.sequences, *self.withdrawn]) + self.told
        assert states == Counter(self.sequences), "each waits, runs, was withdrawn, or was told its end, once"

    def check_no_place_is_wasted(self) -> None:
        info = self.engine.info
        ahead = self.prompt_tokens_ahead()
        open_places = info.max_running - self.engine.in_flight
        if self.engine.can_take_work and len(self.admission) and open_places:
            assert not self.idle_owners(), "a newcomer waits for nothing but a place"
            assert open_places <= info.max_running // 8 or ahead >= 2 * info.max_batch_tokens

    def teardown(self) -> None:
        self.turn()
        self.restart(16, 10_000, True)
        while self.engine.sequences:
            self.step(6, True)
        assert not len(self.admission)
        assert self.told.keys() | self.withdrawn == set(self.sequences)
        self.loop.close()


def test_every_sequence_ends_once_and_owners_alternate() -> None:
    run_state_machine_as_test(Turns, settings=fuzz_settings(150, stateful_step_count=40))
