"""A call: what one document asks for, and how its answer is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from container.core import Item, Result

Renderer = Callable[[Sequence[Result], str], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The items of one document, in the order in which its answer needs their results."""

    items: tuple[Item, ...]
    renderer: Renderer
    content_type: str = "application/json"

    def render(self, results: Sequence[Result], model: str) -> Any:
        """The answer: a JSON value, or a string where `content_type` is text.

        `results` has one for each item, in order. `model` is the served model's name, for a request that names none.
        """
        assert len(results) == len(self.items), f"{len(results)} results for {len(self.items)} items"
        return self.renderer(results, model)

    def answer(self, results: Sequence[Result], model: str) -> bytes:
        """The answer as it goes over the wire, in `content_type`."""
        rendered = self.render(results, model)
        return rendered.encode() if isinstance(rendered, str) else msgspec.json.encode(rendered)
