"""How much the batch holds: tokens of a step, running sequences, and tokens of the KV cache.

A layout says what a token and a running sequence take; the settings may say the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from container.engine.messages import EngineConfig
from container.engine.worker.flash_attention import FLASH
from container.engine.worker.memory import available_bytes, cache_tokens
from container.engine.worker.model import LoadedModel
from container.engine.worker.refusal import ModelRefused

PAGE_TOKENS = 32
"""Prompts share a cached prefix in whole pages of this many tokens."""

_MAX_BATCH_TOKENS = {"cpu": 256, "cuda": 2048}  # a step takes well under a second on two cores, and fills a GPU
_MAX_RUNNING = {"cpu": 64, "cuda": 256}
_STATE_SHARE = 1 / 3
"""Largest share of the free memory for the states of running sequences: the rest is for the cache and the steps."""


@dataclass(frozen=True, slots=True)
class Capacity:
    batch_tokens: int
    running: int
    cache_tokens: int


def plan_capacity(loaded: LoadedModel, settings: EngineConfig) -> Capacity:
    """Divide the memory. Raises ModelRefused if there is too little."""
    kind = loaded.device.type
    batch_tokens = settings.max_batch_tokens or _MAX_BATCH_TOKENS[kind]
    running = min(_MAX_RUNNING[kind], batch_tokens)
    if state_bytes := loaded.layout.state_bytes:
        # Those that decode together are copied into one batch, a layer at a time.
        room = int(available_bytes(loaded.device) * _STATE_SHARE / state_bytes)
        running = max(1, min(running, room))
    return Capacity(batch_tokens, running, _cache_tokens(loaded, settings, batch_tokens, running))


def _cache_tokens(loaded: LoadedModel, settings: EngineConfig, batch_tokens: int, running: int) -> int:
    if settings.kv_cache_tokens is not None:
        return settings.kv_cache_tokens
    config, layout, per_element = loaded.config, loaded.layout, loaded.dtype.itemsize
    # The widest moments of a step: an MLP's two halves and its input, or the scores with the sampler's copies.
    width = 2 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size) + 2 * config.hidden_size
    step_bytes = batch_tokens * width * per_element + running * config.vocab_size * 4 * 4
    copies = 1
    if loaded.attention != FLASH:
        copies = 3  # the keys and values as read, and padded to no more than twice their length
        # The mask of a long prompt's last piece, and its scores three times over where PyTorch's kernels don't serve.
        capped = max((call.query_heads for call in layout.calls if call.softcap is not None), default=0)
        step_bytes += batch_tokens * loaded.max_model_len * (per_element + 3 * capped * 4)
    bytes_per_token = loaded.kv_bytes_per_token + layout.index_bytes_per_token
    held_bytes = running * layout.state_bytes
    tokens = cache_tokens(
        loaded.device,
        bytes_per_token=bytes_per_token,
        layers=layout.places_of_largest_size,
        copies=copies,
        step_bytes=step_bytes + held_bytes,
        max_model_len=loaded.max_model_len,
    )
    if tokens < PAGE_TOKENS:
        states = f", {held_bytes} bytes of states" if held_bytes else ""
        raise ModelRefused(
            f"the model fills {loaded.device}: no memory is left for a KV cache "
            f"({bytes_per_token} bytes a token, {step_bytes} bytes a step{states})"
        )
    return min(tokens, running * loaded.max_model_len)
