"""Number of examples of property tests: few and always the same in the suite, many and seeded in scripts/soak."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

EXAMPLES_FACTOR = int(os.environ.get("FUZZ_EFFORT", "1"))
"""Factor on the suite's number of examples. Above 1, pytest's --hypothesis-seed chooses the examples."""


def fuzz_settings(examples: int, **options: Any) -> settings:
    """Return hypothesis settings for so many examples in the suite."""
    return settings(
        max_examples=examples * EXAMPLES_FACTOR,
        derandomize=EXAMPLES_FACTOR == 1,
        deadline=None,
        database=None,
        print_blob=True,
        **options,
    )
