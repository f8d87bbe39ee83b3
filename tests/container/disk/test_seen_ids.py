from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from container.disk.seen_ids import SeenIds


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[SeenIds]:
    with closing(SeenIds(str(tmp_path))) as seen:
        yield seen


def test_a_name_is_new_once(seen: SeenIds) -> None:
    names = [f"request-{number}" for number in range(2000)]
    assert all(seen.add(name) for name in names)
    assert not any(seen.add(name) for name in names)


@pytest.mark.parametrize("name", ["", "é", "\ud83d", "a\x00b", "a" * 100_000])
def test_any_name_is_one(seen: SeenIds, name: str) -> None:
    assert (seen.add(name), seen.add(name), seen.add(name + "b")) == (True, False, True)


def test_nothing_shows_in_the_directory(seen: SeenIds, tmp_path: Path) -> None:
    seen.add("secret")
    assert list(tmp_path.iterdir()) == []
