"""The measured table: which model types give `model.generate`'s tokens in continuous batches, and why others don't.

`scripts/survey-models` makes it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

PATH = Path(__file__).with_name("supported.json")


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model type's result. `reason` says why it is refused; empty: it is equal."""

    reason: str = ""

    @property
    def is_equal(self) -> bool:
        return not self.reason


class ModelTable(msgspec.Struct, frozen=True):
    """Verdicts by model type (`model_type` of a text model's configuration), found with one release of transformers."""

    transformers: str
    types: dict[str, Verdict]

    @property
    def equal(self) -> frozenset[str]:
        return frozenset(name for name, verdict in self.types.items() if verdict.is_equal)


@cache
def model_table() -> ModelTable:
    return msgspec.json.decode(PATH.read_bytes(), type=ModelTable)
