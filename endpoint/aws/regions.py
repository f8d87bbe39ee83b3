"""Regions of AWS: their partitions and their names, from botocore's own data."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from botocore.loaders import Loader


def partition_of(region: str) -> str:
    """Return the partition that begins an ARN of `region`; "aws" for a region that no partition has."""
    return next((each["id"] for each in _partitions() if re.match(each["regionRegex"], region)), "aws")


def display_name(region: str) -> str:
    """Return the region's name as messages show it, "US East (N. Virginia)"; the region itself if it has none."""
    for partition in _partitions():
        if region in partition["regions"]:
            description: str = partition["regions"][region]["description"]
            return description
    return region


@cache
def _partitions() -> list[dict[str, Any]]:
    loader = Loader(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    partitions: list[dict[str, Any]] = loader.load_data("partitions")["partitions"]
    return partitions
