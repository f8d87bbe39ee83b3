"""What edge and engine say to each other: msgpack structs, length-prefixed, over a Unix socket pair."""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from container.engine.sequence import FinishReason, Sampling, TokenLogprobs

HEADER = struct.Struct("<I")
"""Each message is preceded by its length in bytes."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process is started with. `None` means: choose (see `model.py` for how)."""

    model_dir: str
    device: str | None = None
    needs_gpu: bool = False
    """Of no device: the machine has a GPU, so that the CPU is none to choose."""
    dtype: str | None = None
    threads: int | None = None
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    max_batch_tokens: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    log_level: str = "INFO"


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a started engine can do. Lengths and capacities in tokens."""

    model_type: str
    device: str
    dtype: str
    attention: str
    threads: int
    vocab_size: int
    max_model_len: int
    kv_cache_tokens: int
    max_sequence_tokens: int
    """The longest sequence (prompt and output) that fits in an empty cache and in the model's context."""
    max_batch_tokens: int
    max_running: int
    """Sequences that may run in one step."""
    load_seconds: float


# Edge to engine


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    config: EngineConfig


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    id: int
    prompt_ids: list[int]
    sampling: Sampling
    newcomer: bool = False
    """Whether it goes before what others have queued (see `fair_scheduler.py`)."""
    output_ids: list[int] = []
    """What an engine that died had generated. The sequence goes on behind them: `max_new_tokens` counts them."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    id: int


ToEngine = Configure | Submit | Cancel


# Engine to edge


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    info: EngineInfo


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The model or a setting is wrong: a restart would not help."""

    reason: str


class Log(msgspec.Struct, frozen=True, tag="log"):
    level: int
    logger: str
    message: str


class NewTokens(msgspec.Struct, frozen=True, array_like=True):
    id: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = []
    """One for each token id, if the sequence asks for them."""


class Failed(msgspec.Struct, frozen=True, array_like=True):
    """One sequence that the engine could not take, although the engine itself goes on."""

    id: int
    reason: str


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What one turn of the engine's loop did. Sent after every step, and when cancellations change what runs.

    `steps` counts forward passes since the engine's start: an engine with work whose count stands still is stalled.
    """

    steps: int
    tokens: list[NewTokens] = []
    failed: list[Failed] = []
    running: int = 0
    waiting: int = 0
    cache_use: float = 0.0
    preemptions: int = 0
    """Sequences put back into the queue since the last report, to make room in the cache."""


class Crashed(msgspec.Struct, frozen=True, tag="crashed"):
    """The engine's last word before it exits on an error."""

    reason: str


ToEdge = Ready | Refused | Log | Step | Crashed

to_engine = msgspec.msgpack.Decoder(ToEngine)
to_edge = msgspec.msgpack.Decoder(ToEdge)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Any) -> bytes:
    """The message with its length in front, ready to write."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
