"""The queue before the engine: sequences wait here until it has room, and their owners take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Hashable

from container.engine.messages import Step
from container.engine.sequence import EngineError, Sequence
from container.engine.supervisor.engine_client import EngineClient, no_longer_fits

# One in eight of the engine's places is kept for owners that have none yet, so that a prompt sent while a long batch
# fills the engine starts with the next step.
_RESERVED_SHARE = 8
# The engine starts newcomers' prompts first and the others' in the order in which they came, so that of those it gets
# no more ahead than fill this many steps.
_STEPS_AHEAD = 2


class Admission:
    """Owns the sequences that no engine has yet, a queue for each owner (an invocation)."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        # Ordered dicts as ordered sets: first out and removal from the middle take the same short time.
        self._queues: OrderedDict[Hashable, OrderedDict[Sequence, None]] = OrderedDict()
        self._pump_is_due = False

    def __len__(self) -> int:
        """Sequences waiting."""
        return sum(map(len, self._queues.values()))

    def enqueue(self, sequence: Sequence) -> None:
        self._queues.setdefault(sequence.owner, OrderedDict())[sequence] = None
        self._pump_soon()

    def withdraw(self, sequence: Sequence) -> None:
        """End a sequence wherever it is. Its listeners are not called again."""
        queue = self._queues.get(sequence.owner)
        if queue is not None and sequence in queue:
            del queue[sequence]
            if not queue:
                del self._queues[sequence.owner]
        else:
            self._engine.cancel(sequence)
            self._pump_soon()

    def fail_all(self, error: EngineError) -> None:
        """Tell every waiting sequence that no engine will ever come."""
        queues, self._queues = self._queues, OrderedDict()
        for queue in queues.values():
            for sequence in queue:
                sequence.on_error(error)

    def _pump_soon(self) -> None:
        """Schedule one `pump` for all the changes of this turn of the event loop."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self.pump)

    def pump(self, _step: Step | None = None) -> None:
        """Hand over what the engine has room for, one sequence an owner a turn."""
        self._pump_is_due = False
        info = self._engine.info
        if not self._queues or info is None or not self._engine.can_take_work:
            return
        in_engine = self._engine.sequences
        running = Counter(sequence.owner for sequence in in_engine)
        places = info.max_running - len(in_engine)
        open_places = places - info.max_running // _RESERVED_SHARE
        ahead = sum(len(s.prompt_ids) for s in in_engine if not s.output_ids)
        max_ahead = _STEPS_AHEAD * info.max_batch_tokens
        while self._queues and places > 0:
            takes_all = open_places > 0 and ahead < max_ahead
            owner = next((owner for owner in self._queues if takes_all or not running[owner]), None)
            if owner is None:
                return
            queue = self._queues[owner]
            sequence, _ = queue.popitem(last=False)
            if queue:
                self._queues.move_to_end(owner)
            else:
                del self._queues[owner]
            needed_tokens = len(sequence.prompt_ids) + sequence.sampling.max_new_tokens
            if needed_tokens > info.max_sequence_tokens:  # it did fit when it was checked
                sequence.on_error(no_longer_fits(info))
                continue
            self._engine.submit(sequence, newcomer=not running[owner])
            running[owner] += 1
            places, open_places, ahead = places - 1, open_places - 1, ahead + len(sequence.prompt_ids)
