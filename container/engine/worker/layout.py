"""What a model's step asks of the engine: its attention calls, in their order, and its modules that keep a state.

Found by a small forward pass at load, it decides the layout of the cache. Nothing here knows the names of models.
"""

from __future__ import annotations

from dataclasses import dataclass

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """One attention call of a step. Most models make one in each layer; some two, some none in most layers.

    The cache has a place for each call, by its number in the step, whatever layer it belongs to.
    """

    kind: str
    """Allocator of its keys and values: FULL or SLIDING."""
    query_heads: int
    key_heads: int
    key_size: int
    """Elements of a head's query or key."""
    value_size: int
    """Elements of a head's value: other than `key_size` in multi-head latent attention."""
    window: int | None = None
    """Number of last keys that a query sees, itself among them; None: all."""
    chunk: int | None = None
    """Number of positions in a chunk, of which a query sees its own alone (Llama 4); None: no chunks."""
    softcap: float | None = None
    has_sinks: bool = False
    """Whether each head has a learnt score that takes part in the softmax without a value (gpt-oss)."""
    is_indexed: bool = False
    """Whether an indexer picks the keys that each query sees (DeepSeek V3.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateModule:
    """A module that keeps something of a sequence from step to step, in a layer of transformers' cache."""

    name: str
    """Path in the model, as `get_submodule` takes it."""
    layer: int
    """Index of its layer in the cache."""
    is_indexer: bool = False
    """Whether it keeps keys that it picks from; else it is recurrent or a convolution."""
    takes_single_tokens: bool = False
    """Whether it forgets its state over a later piece of a prompt, and so must be given one token at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    calls: tuple[AttentionCall, ...]
    states: tuple[StateModule, ...] = ()
    state_bytes: int = 0
    """Bytes of one sequence's recurrent and convolution states, in all layers."""
    index_bytes_per_token: int = 0
    """Bytes of one token's keys in all indexers."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts that begin alike may share pages: not where a state goes with them."""
        return not self.states
