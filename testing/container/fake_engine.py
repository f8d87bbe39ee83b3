"""An engine for tests of the admission queue."""

from __future__ import annotations

from container.engine.messages import EngineInfo
from container.engine.sequence import Sequence


class FakeEngine:
    """Accepts every sequence, and finishes those that the test says."""

    def __init__(self, max_running: int = 16, max_batch_tokens: int = 1000) -> None:
        self.can_take_work = True
        self.sequences: list[Sequence] = []
        self.newcomers: list[Sequence] = []
        self.info = EngineInfo(
            model_type="fake",
            device="cpu",
            dtype="float32",
            attention="none",
            threads=1,
            vocab_size=100,
            max_model_len=10_000,
            kv_cache_tokens=10_000,
            max_sequence_tokens=10_000,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            load_seconds=0,
        )

    @property
    def in_flight(self) -> int:
        return len(self.sequences)

    @property
    def owners(self) -> list[object]:
        return [sequence.owner for sequence in self.sequences]

    def submit(self, sequence: Sequence, *, newcomer: bool = False) -> None:
        self.sequences.append(sequence)
        if newcomer:
            self.newcomers.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        if sequence in self.sequences:  # nothing happens if it has ended
            self.sequences.remove(sequence)
