"""How much tests with random input try: little and always the same in the suite, much and seeded in scripts/soak."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

EFFORT = int(os.environ.get("FUZZ_EFFORT", "1"))
"""Times the examples of the suite. Above 1, pytest's --hypothesis-seed chooses them."""


def tries(examples: int, **options: Any) -> settings:
    return settings(
        max_examples=examples * EFFORT,
        derandomize=EFFORT == 1,
        deadline=None,
        database=None,
        print_blob=True,
        **options,
    )
