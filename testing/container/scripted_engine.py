"""A service whose engine generates the tokens of a script."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from container.engine.messages import EngineInfo
from container.engine.sequence import FinishReason, Sequence, TokenLogprobs
from container.engine.supervisor.admission import Admission
from container.invocations.service import Service
from container.jobs.generator import Generator
from container.jobs.registry import JobRegistry
from container.journal.stores.directory import DirectoryStore
from container.telemetry.metrics import Metrics
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import Preparer
from container.tokenization.tokenizer import Tokenizer

INFO = EngineInfo(
    model_type="scripted",
    device="cpu",
    dtype="float32",
    attention="none",
    threads=1,
    vocab_size=49152,
    max_model_len=100,
    kv_cache_tokens=1000,
    max_sequence_tokens=100,
    max_batch_tokens=1 << 20,
    max_running=1 << 20,
    load_seconds=0,
)
SCORE = TokenLogprobs(-0.5, [(504, -0.25)])
END = 2
"""Id of SmolLM2's `<|im_end|>`."""


class ScriptedEngine:
    """Generates the tokens of its script at once, like a step that hears of a cancellation too late."""

    info = INFO
    can_take_work = True
    sequences: tuple[Sequence, ...] = ()

    def __init__(self, script: list[int], finish: FinishReason | None) -> None:
        self._script = script
        self._finish = finish

    def submit(self, sequence: Sequence, *, newcomer: bool = False) -> None:
        for token_id in self._script:
            sequence.output_ids.append(token_id)
            if sequence.sampling.logprobs is not None:
                sequence.logprobs.append(SCORE)
            if len(sequence.output_ids) == len(self._script):
                sequence.finish_reason = self._finish
            sequence.on_tokens(1)

    def cancel(self, sequence: Sequence) -> None:
        pass


def scripted_service(
    engine: ScriptedEngine, tokenizer: Tokenizer, workers: ThreadPoolExecutor, directory: Path
) -> Service:
    """Make a service around the engine. Close its `jobs`."""
    metrics = Metrics()
    store = DirectoryStore(str(directory / "checkpoints"))
    return Service(
        preparer=Preparer(
            tokenizer=tokenizer,
            defaults=ModelDefaults(eos_token_ids=(END,)),
            max_sequence_tokens=INFO.max_sequence_tokens,
            default_max_new_tokens=50,
        ),
        readers=cast(Any, None),
        info=INFO,
        generator=Generator(admission=Admission(cast(Any, engine)), tokenizer=tokenizer, metrics=metrics),
        jobs=JobRegistry(store, metrics, interval_s=10, lifetime_s=60, max_bytes=1 << 20, spool_dir=str(directory)),
        progress=None,
        metrics=metrics,
        workers=workers,
        writers=workers,
        name="scripted",
        identity="scripted",
    )
