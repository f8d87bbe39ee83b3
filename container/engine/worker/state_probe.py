"""The search for modules that keep a state: recurrent layers, short convolutions, indexers.

Two small forward passes of other lengths, with a cache that notes who asks it for a state, also tell where each
argument and each result of such a module has its tokens. What can't be told is refused, because it would be a guess.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from container.engine.worker.layout import AXIS_OF_NONE, Axes, StateModule
from container.engine.worker.refusal import ModelRefused

_LENGTHS = (5, 7)
_ATTENTION_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
_STATE_LAYERS = (
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    DynamicIndexedLayer,
)
_STATE_METHODS = ("get_conv_state", "update_conv_state", "get_recurrent_state", "update_recurrent_state")
_INDEX_METHOD = "update_indexer"
_CACHE_ARGUMENTS = ("past_key_values", "cache_params", "past_key_value")
_WAY_OUT = "it can't run in continuous batches"
_FORGETS = 1e-4
"""Share of a result's spread from which on a module counts as one that has forgotten its state."""


class UnknownState(ModelRefused):
    """The model keeps something from step to step in a way that nothing here follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundStates:
    modules: tuple[StateModule, ...] = ()
    state_bytes: int = 0
    """Bytes of one sequence's recurrent and convolution states, in all layers."""
    index_bytes_per_token: int = 0
    """Bytes of one token's keys in all indexers."""


def find_states(model: PreTrainedModel) -> FoundStates:
    """Find the model's modules with a state. Attention must be taken by someone meanwhile.

    Raises UnknownState with the reason.
    """
    config = model.config.get_text_config(decoder=True)
    if not _has_states(config):
        return FoundStates()
    passes = [_watch(model, config, tokens) for tokens in _LENGTHS]
    found = tuple(_describe(model, config, name, [seen.uses[name] for seen in passes]) for name in passes[0].uses)
    last = passes[-1]
    return FoundStates(
        modules=found,
        state_bytes=sum(_state_bytes(layer) for layer in last.cache.layers),
        index_bytes_per_token=last.index_bytes // _LENGTHS[-1],
    )


def _has_states(config: PretrainedConfig) -> bool:
    try:
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    except (KeyError, AttributeError, TypeError, ValueError):
        return False  # not a cache of the library's layers: the probe's other findings judge the model
    if unknown := sorted(kind.__name__ for kind in kinds - {*_ATTENTION_LAYERS, *_STATE_LAYERS}):
        raise UnknownState(f"this model keeps its keys in a cache of its own kind ({', '.join(unknown)}): {_WAY_OUT}")
    return any(kind in _STATE_LAYERS for kind in kinds)


@dataclass(slots=True)
class _Use:
    """One forward pass of a module: its arguments and its result."""

    is_indexer: bool
    layer: int
    arguments: dict[str, Any] = field(default_factory=dict)
    result: Any = None


@dataclass(slots=True)
class _Pass:
    cache: DynamicCache
    uses: dict[str, _Use] = field(default_factory=dict)
    index_bytes: int = 0


class _WatchedCache(DynamicCache):
    """Tells who asks for which layer's state."""

    def watch(self, note: Callable[[str, int, Any], None]) -> None:
        for method in (*_STATE_METHODS, _INDEX_METHOD):
            setattr(self, method, self._noted(method, note))

    def _noted(self, method: str, note: Callable[[str, int, Any], None]) -> Callable[..., Any]:
        plain = getattr(self, method)

        def noted(*args: Any, **kwargs: Any) -> Any:
            layer = kwargs.get("layer_idx", next((given for given in args if isinstance(given, int)), 0))
            note(method, layer, args[0] if args else None)
            return plain(*args, **kwargs)

        return noted


def _watch(model: PreTrainedModel, config: PretrainedConfig, tokens: int) -> _Pass:
    """Run a forward pass, and note which modules ask for a state and what they are given."""
    seen = _Pass(cache=_WatchedCache(config=config))
    running: list[tuple[str, dict[str, Any]]] = []

    def note(method: str, layer: int, given: Any) -> None:
        name, arguments = running[-1]
        use = seen.uses.setdefault(name, _Use(method == _INDEX_METHOD, layer, arguments))
        if use.layer != layer:
            raise UnknownState(f"{name} keeps the states of several layers: {_WAY_OUT}")
        if method == _INDEX_METHOD:
            seen.index_bytes += given.nbytes

    def enter(name: str, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        running.append((name, bind(module, args, kwargs)))

    def leave(name: str, module: torch.nn.Module, args: Any, result: Any) -> None:
        running.pop()
        if name in seen.uses:
            seen.uses[name].result = result

    hooks = []
    for name, module in model.named_modules():
        # `functools.partial` has no place for the name here: a hook's arguments are given by position.
        hooks.append(module.register_forward_pre_hook(lambda *given, n=name: enter(n, *given), with_kwargs=True))
        hooks.append(module.register_forward_hook(lambda *given, n=name: leave(n, *given), always_call=True))
    assert isinstance(seen.cache, _WatchedCache)
    seen.cache.watch(note)
    ids = torch.arange(tokens, device=model.device).unsqueeze(0)
    given = {"input_ids": ids, "use_cache": True, cache_argument(inspect.signature(model.forward)): seen.cache}
    try:
        with torch.no_grad():
            model(**given)
    except (ModelRefused, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the latter may pass: a restart is worth trying
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise UnknownState(f"the code of {type(model).__name__} fails with the library's cache: {cause}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def bind(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a module's arguments by name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def cache_argument(signature: inspect.Signature) -> str:
    """Return the name of the argument that takes the cache. Raises UnknownState if there is none."""
    for name in _CACHE_ARGUMENTS:
        if name in signature.parameters:
            return name
    raise UnknownState(f"a part of this model keeps a state of its own kind: {_WAY_OUT}")


def _describe(model: PreTrainedModel, config: PretrainedConfig, name: str, uses: list[_Use]) -> StateModule:
    first, second = uses
    module = model.get_submodule(name)
    cache_name = cache_argument(inspect.signature(type(module).forward))
    special = {cache_name, "attention_mask", "use_cache"}
    arguments = {
        key: _axes(f"{name}: {key}", given, second.arguments.get(key))
        for key, given in first.arguments.items()
        if key not in special
    }
    # An indexer's second axis has the tokens, its third the picks, which may be as many.
    result = 1 if first.is_indexer else _axes(f"{name}: its result", first.result, second.result)
    if (result[0] if isinstance(result, tuple) else result) == AXIS_OF_NONE:
        raise UnknownState(f"{name}: its result has no tokens: {_WAY_OUT}")
    found = StateModule(
        name=name,
        layer=first.layer,
        is_indexer=first.is_indexer,
        cache_name=cache_name,
        takes_mask="attention_mask" in first.arguments,
        arguments=arguments,
        result=result,
    )
    if found.is_indexer:
        return found
    return _told_by_behaviour(module, config, found, second.arguments)


def _axes(what: str, first: Any, second: Any) -> Axes:
    """Return the axis on which the tokens lie: where the shapes of two passes differ."""
    if isinstance(first, tuple):
        if not isinstance(second, tuple) or len(first) != len(second):
            raise UnknownState(f"{what} changes its form: {_WAY_OUT}")
        return tuple(_axes(what, one, other) for one, other in zip(first, second, strict=True))
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor) or first.shape == second.shape:
        return AXIS_OF_NONE
    differ = [axis for axis, sizes in enumerate(zip(first.shape, second.shape, strict=False)) if len({*sizes}) > 1]
    if len(differ) != 1 or first.dim() != second.dim() or differ[0] == 0 or first.shape[0] != 1:
        raise UnknownState(f"{what} has its tokens in no one place: {_WAY_OUT}")
    if (first.shape[differ[0]], second.shape[differ[0]]) != _LENGTHS:
        raise UnknownState(f"{what} has other tokens than the step: {_WAY_OUT}")
    return differ[0]


def _told_by_behaviour(
    module: torch.nn.Module, config: PretrainedConfig, found: StateModule, given: dict[str, Any]
) -> StateModule:
    """Run the module over the same tokens whole, in two pieces, and one by one. Raises UnknownState if none goes on."""
    tokens, singly = _LENGTHS[-1], (3, *range(4, _LENGTHS[-1] + 1))
    axis = found.result[0] if isinstance(found.result, tuple) else found.result

    def run(given: dict[str, Any], ends: tuple[int, ...]) -> torch.Tensor:
        cache, pieces, start = DynamicCache(config=config), [], 0
        for end in ends:
            piece = module(**(found.cut(given, start, end) | found.fixed(cache, None)))
            pieces.append(piece[0] if isinstance(piece, tuple) else piece)
            start = end
        return torch.cat(pieces, dim=cast(int, axis))

    def goes_on(given: dict[str, Any], ends: tuple[int, ...]) -> bool:
        whole = run(given, (tokens,))
        spread = float(whole.max() - whole.min()) or 1.0
        return float((run(given, ends) - whole).abs().max()) <= _tolerance(whole.dtype) * spread

    with torch.no_grad():
        takes_pieces = goes_on(given, (3, tokens))
        if not takes_pieces and not goes_on(given, singly):
            raise UnknownState(
                f"the state of {found.name} does not go on from one piece of a prompt to the next: {_WAY_OUT}"
            )
        # Large inputs reach the limits of step sizes, which some modules keep in prompts alone.
        decodes_alike = goes_on(given, singly) and goes_on(_enlarged(given), singly)
    return replace(found, takes_single_tokens=not takes_pieces, decodes_otherwise=not decodes_alike)


def _enlarged(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: 20 * value if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }


def _tolerance(dtype: torch.dtype) -> float:
    return _FORGETS if dtype.itemsize >= torch.float32.itemsize else 0.05


def _state_bytes(layer: Any) -> int:
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return 0
    states = (*layer.conv_states.values(), *layer.recurrent_states.values())
    return sum(state.nbytes for state in states if state is not None)
