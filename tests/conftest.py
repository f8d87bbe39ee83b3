from __future__ import annotations

from pathlib import Path

import pytest

# The edge's tokenizer hides torch from a process that hasn't imported it, and the engine's tests in this one need it.
import torch  # noqa: F401


@pytest.fixture(scope="session")
def model_dir() -> str:
    """The real small model that scripts/setup fetches."""
    return str(Path(__file__).parent.parent / ".models" / "SmolLM2-135M-Instruct")
