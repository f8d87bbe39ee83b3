"""The probe: one small forward pass at load, which finds what a model's step asks of the engine.

The model's masks say which keys its queries see, its attention calls everything else. What can't be placed is refused,
because it would be silently wrong.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from container.engine.worker import attention
from container.engine.worker.layout import FULL, SLIDING, AttentionCall, Layout
from container.engine.worker.refusal import ModelRefused
from container.engine.worker.state_probe import find_states

_TOKENS = 3
_HIDDEN = -1e4
"""Score from which on down a key has no share: its exponential is zero."""
_MEANINGLESS = frozenset(
    {"is_causal", "position_ids", "cache_position", "position_embeddings", "past_key_values", "return_dict"}
)
"""Arguments of attention that change nothing here: the mask says more, or the model has used them before the call."""
_WAY_OUT = "it can't run in continuous batches"


@dataclass(frozen=True, slots=True)
class _Sight:
    """Keys that a query sees: all up to its own, the last `window` of them, or those of its own chunk."""

    window: int | None = None
    chunk: int | None = None
    is_confirmed: bool = True
    """False where the mask was seen over the pass's few tokens alone: then the call itself has to name the window."""


@dataclass(slots=True)
class _Recorder:
    """Takes the attention calls and the masks of the forward pass of a model of class `code`."""

    code: type[PreTrainedModel]
    calls: list[AttentionCall] = field(default_factory=list)
    masks: dict[int, tuple[torch.Tensor, _Sight | ModelRefused]] = field(default_factory=dict)
    """Masks that the library has made, by the address of their storage: layers may take a part of one."""

    def make_mask(
        self,
        batch_size: int,
        q_length: int,
        kv_length: int,
        *,
        mask_function: Callable[..., torch.Tensor],
        local_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> torch.Tensor:
        """Make a causal mask [B, 1, Q, K], and note what it stands for. Not all masks are used."""
        mask = torch.zeros(batch_size, 1, q_length, kv_length, dtype=dtype, device=device)
        mask += torch.full((q_length, kv_length), float("-inf"), dtype=dtype, device=device).triu(1)
        try:
            sight: _Sight | ModelRefused = _sight(mask_function, local_size, device)
        except ModelRefused as refusal:
            sight = refusal
        self.masks[mask.untyped_storage().data_ptr()] = (mask, sight)
        return mask

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        softcap: float | None,
        s_aux: torch.Tensor | None,
        indices: torch.Tensor | None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Note the call. Returns zeros of the right shape. Raises ModelRefused if it fits no batch."""
        if "position_ids" not in inspect.signature(self.code.forward).parameters:
            raise ModelRefused(f"the code of {self.code.__name__} counts positions by its own cache: {_WAY_OUT}")
        if unknown := sorted(name for name, given in kwargs.items() if name not in _KNOWN and _means_something(given)):
            raise ModelRefused(f"this model calls attention with {', '.join(unknown)}, which {_WAY_OUT} with")
        if key.shape[2] != query.shape[2]:
            raise ModelRefused(f"this model attends to something else than its own tokens: {_WAY_OUT}")
        is_indexed = indices is not None
        if attention_mask is None:
            if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
                raise ModelRefused("this model attends in both directions: it is an encoder")
            sight = _Sight(window=sliding_window)
        else:
            sight = self._sight_of(attention_mask, is_indexed=is_indexed, window=sliding_window)
        call = AttentionCall(
            kind=FULL if sight.window is None else SLIDING,
            query_heads=query.shape[1],
            key_heads=key.shape[1],
            key_size=key.shape[3],
            value_size=value.shape[3],
            window=sight.window,
            chunk=sight.chunk,
            softcap=softcap,
            has_sinks=s_aux is not None,
            is_indexed=is_indexed,
        )
        self.calls.append(call)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    def _sight_of(self, mask: torch.Tensor, *, is_indexed: bool, window: int | None) -> _Sight:
        _, sight = self.masks.get(mask.untyped_storage().data_ptr(), (None, None))
        if isinstance(sight, ModelRefused):
            raise sight
        if sight is not None and not sight.is_confirmed and sight.window != window:
            raise ModelRefused(f"this model masks attention in a way of its own: {_WAY_OUT}")
        if sight is not None:
            return sight
        if is_indexed:  # a mask of the picked keys
            return _Sight()
        if _is_causal(mask):
            return _Sight(window=window)
        raise ModelRefused(f"this model changes the mask that attention is given: {_WAY_OUT}")


_KNOWN = _MEANINGLESS | {"scaling", "dropout", "use_cache"}


def _means_something(given: Any) -> bool:
    return given is not None and not (isinstance(given, bool | int | float) and not given)


def _is_causal(mask: torch.Tensor) -> bool:
    """Tell whether a mask that the library has not made hides later keys, and does nothing else."""
    if mask.dim() < 2 or mask.shape[-1] != mask.shape[-2]:
        return False
    seen = mask if mask.dtype == torch.bool else mask == 0
    hidden = ~mask if mask.dtype == torch.bool else mask <= _HIDDEN
    expected = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    return bool((seen == expected).all() and (hidden == ~expected).all())


def _sight(mask_function: Callable[..., torch.Tensor], size: int | None, device: torch.device | str) -> _Sight:
    """Find out what a mask function shows to a query that is far enough from the start. Raises ModelRefused."""
    last = 64 if size is None else 2 * size
    key, zero = torch.arange(last + 2, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    try:
        seen = torch.as_tensor(mask_function(zero, zero, torch.full_like(key, last), key)).expand(key.shape)
    except IndexError as error:  # it looks up something of each token, as where images are, and these are too far
        if _is_causal(_evaluate(mask_function, device)):
            return _Sight(window=size, is_confirmed=False)
        raise ModelRefused(f"this model masks attention in a way of its own: {_WAY_OUT}") from error
    except Exception as error:
        raise ModelRefused(f"this model masks attention in a way of its own: {_WAY_OUT}") from error
    if bool(seen[last + 1]):
        raise ModelRefused("this model attends in both directions: it is an encoder")
    for sight, first in (
        (_Sight(), 0),
        (_Sight(window=size), last - (size or 0) + 1),
        (_Sight(chunk=size), last),
    ):
        if torch.equal(seen, (key >= first) & (key <= last)):
            return sight
    raise ModelRefused(f"this model masks attention in a way of its own: {_WAY_OUT}")


def _evaluate(mask_function: Callable[..., torch.Tensor], device: torch.device | str) -> torch.Tensor:
    """Return which of the pass's keys each of its queries sees, [Q, K]."""
    token, zero = torch.arange(_TOKENS, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    rows = [mask_function(zero, zero, query.expand(_TOKENS), token) for query in token]
    return torch.stack([torch.as_tensor(row).expand(_TOKENS) for row in rows])


def probe(model: PreTrainedModel) -> Layout:
    """Find the layout of the model, which was loaded with our attention. Raises ModelRefused with the reason."""
    recorder = _Recorder(type(model))
    with _recorded(recorder):
        _run(model)
    with _recorded(_Recorder(type(model))):
        states = find_states(model)
    layout = Layout(
        calls=tuple(recorder.calls),
        states=states.modules,
        state_bytes=states.state_bytes,
        index_bytes_per_token=states.index_bytes_per_token,
    )
    _check(type(model), layout)
    if any(call.is_indexed for call in layout.calls):
        attention.register_masks()
    return layout


def _run(model: PreTrainedModel) -> None:
    ids = torch.arange(_TOKENS, device=model.device).unsqueeze(0)
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except (ModelRefused, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # the latter may pass: a restart is worth trying
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ModelRefused(f"the code of {type(model).__name__} fails without a cache of its own: {cause}") from error


def _check(code: type[PreTrainedModel], layout: Layout) -> None:
    """Raise ModelRefused if the model's calls don't fit a batch together."""
    if not layout.calls and not layout.states:
        raise ModelRefused(f"the code of {code.__name__} fixes its attention function: {_WAY_OUT}")
    windows = sorted({call.window for call in layout.calls if call.window is not None})
    if len(windows) > 1:
        raise ModelRefused(f"this model has windows of {' and '.join(map(str, windows))} tokens: one size is supported")


@contextlib.contextmanager
def _recorded(recorder: _Recorder) -> Iterator[None]:
    """Have the recorder take attention calls and masks. Afterwards no masks are made: the batch needs none."""
    token = attention.recording.set(recorder.attend)
    AttentionMaskInterface.register(attention.NAME, recorder.make_mask)
    try:
        yield
    finally:
        del AttentionMaskInterface._global_mapping[attention.NAME]
        attention.recording.reset(token)
