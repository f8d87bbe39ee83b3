"""All that a generation is started with."""

from __future__ import annotations

from dataclasses import dataclass

from container.engine.supervisor.admission import Admission
from container.telemetry.metrics import Metrics
from container.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """The way to the engine, the model's tokenizer and what counts the tokens."""

    admission: Admission
    tokenizer: Tokenizer
    metrics: Metrics
