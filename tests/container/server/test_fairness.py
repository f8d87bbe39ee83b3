"""The order of sequences: invocations take turns, and a new one does not wait for a batch to end."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Coroutine
from typing import Any, cast

from container.engine.sequence import EngineError, Sampling, Sequence
from container.engine.supervisor.admission import Admission
from container.engine.supervisor.engine_client import EngineClient
from testing.container.fake_engine import FakeEngine
from testing.server import Server, eventually, lasting


class Queue:
    """Runs an Admission before a fake engine, on an event loop."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.admission = Admission(cast(EngineClient, engine))
        self.errors: list[EngineError] = []

    async def enqueue(self, owner: str, count: int, prompt_tokens: int = 1) -> list[Sequence]:
        new = [
            Sequence(
                array("I", [1] * prompt_tokens),
                Sampling(max_new_tokens=9),
                owner=owner,
                on_tokens=lambda new: None,
                on_error=self.errors.append,
            )
            for _ in range(count)
        ]
        for sequence in new:
            self.admission.enqueue(sequence)
        await asyncio.sleep(0)  # one turn of the loop: the queue moves by itself
        return new


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_invocations_take_turns() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine())
        queue.engine.can_take_work = False
        await queue.enqueue("first", 5)
        await queue.enqueue("second", 2)
        queue.engine.can_take_work = True
        queue.admission.pump()
        assert queue.engine.owners == ["first", "second", "first", "second", "first", "first", "first"]

    run(scenario())


def test_batch_leaves_room_for_new_owner() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine(max_running=16))
        await queue.enqueue("batch", 1000)
        assert queue.engine.owners == ["batch"] * 14
        await queue.enqueue("newcomer", 5)
        assert queue.engine.owners[14:] == ["newcomer"]

    run(scenario())


def test_free_place_goes_to_next_owner() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine(max_running=16))
        await queue.enqueue("batch", 1000)
        await queue.enqueue("newcomer", 5)
        for _ in range(4):
            queue.admission.withdraw(queue.engine.sequences[0])
        await asyncio.sleep(0)
        assert queue.engine.owners[-3:] == ["batch", "newcomer", "batch"]

    run(scenario())


def test_queued_prompts_fill_at_most_two_steps() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine(max_batch_tokens=100))
        await queue.enqueue("batch", 10, prompt_tokens=60)
        assert queue.engine.in_flight == 4
        queue.engine.sequences[0].output_ids.append(1)  # its prompt is done
        queue.admission.pump()
        assert queue.engine.in_flight == 5

    run(scenario())


def test_prompt_longer_than_two_steps_runs() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine(max_batch_tokens=100))
        await queue.enqueue("long", 1, prompt_tokens=5000)
        assert queue.engine.in_flight == 1

    run(scenario())


def test_new_owner_overtakes_long_prompt() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine(max_batch_tokens=100))
        await queue.enqueue("batch", 3, prompt_tokens=5000)
        newcomer, _ = await queue.enqueue("newcomer", 2)
        assert queue.engine.owners == ["batch", "newcomer"]
        assert queue.engine.newcomers == [queue.engine.sequences[0], newcomer]

    run(scenario())


def test_withdrawn_sequence_never_reaches_engine() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine())
        queue.engine.can_take_work = False
        first, second = await queue.enqueue("a", 2)
        queue.admission.withdraw(first)
        queue.engine.can_take_work = True
        queue.admission.pump()
        assert queue.engine.sequences == [second] and len(queue.admission) == 0

    run(scenario())


def test_final_engine_failure_fails_waiting_sequences() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine())
        queue.engine.can_take_work = False
        await queue.enqueue("a", 3)
        queue.admission.fail_all(EngineError("engine_failed", "gone"))
        assert [error.code for error in queue.errors] == ["engine_failed"] * 3 and len(queue.admission) == 0

    run(scenario())


def test_sequence_too_long_after_restart_fails_alone() -> None:
    async def scenario() -> None:
        queue = Queue(FakeEngine())
        await queue.enqueue("a", 1, prompt_tokens=9_992)
        (fits,) = await queue.enqueue("b", 1, prompt_tokens=9_991)
        assert "10000 tokens" in str(queue.errors[0])
        assert queue.engine.sequences == [fits]

    run(scenario())


def test_later_prompt_is_answered_before_long_batch(server: Server) -> None:
    lines = "".join(json.dumps(lasting(f"{number} is", 60)) + "\n" for number in range(200))
    batch = server.post_soon(content=lines, headers={"content-type": "application/jsonlines"})
    eventually(lambda: server.metric("longhaul_sequences_waiting") > 0)
    assert server.post(json=lasting("The sea is", 3)).status_code == 200
    assert not batch.done()
    assert batch.result().status_code == 200
