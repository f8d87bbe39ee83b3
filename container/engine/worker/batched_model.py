"""The model as the library's manager is given it: with the layout's kinds of layers, and a step around each pass."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedModel

from container.engine.worker import attention
from container.engine.worker.attention import UnexpectedCall
from container.engine.worker.forward_step import ForwardStep, current
from container.engine.worker.layout import Layout


class BatchedModel:
    """Stands in for a model. `describe` turns the arguments of a forward pass into its step.

    The library asks the configuration which kinds of layers there are, and raises for those that it doesn't know. Here
    it sees the attention calls' instead.
    """

    def __init__(
        self, model: PreTrainedModel, layout: Layout, describe: Callable[[dict[str, Any]], ForwardStep]
    ) -> None:
        self._model, self._calls, self._describe = model, len(layout.calls), describe
        window = next((group.window for group in layout.groups if group.window is not None), None)
        self.config: Any = SimpleNamespace(
            _attn_implementation=attention.NAME,
            layer_types=[group.kind for group in layout.groups],
            sliding_window=window,
            get_text_config=lambda: self.config,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def eval(self) -> BatchedModel:
        return self

    def __call__(self, **arguments: Any) -> Any:
        """Run the step's forward pass. Raises UnexpectedCall if it isn't what the probe saw."""
        step = self._describe(arguments)
        token = current.set(step)
        try:
            outputs = self._model(**arguments)
        finally:
            current.reset(token)
        if step.calls_made != self._calls:
            raise UnexpectedCall(f"the step made {step.calls_made} attention calls; at load it was {self._calls}")
        return outputs
