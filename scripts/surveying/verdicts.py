"""The engine's table made from results: each type's verdict, with a reason that users understand."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import transformers

from container.engine.worker.model_table import PATH, ModelTable, Verdict
from surveying.trial import Result
from testing.model_zoo import CAUSAL_TYPES

SAMPLE = (
    "bart",  # decoder of an encoder-decoder
    "bloom",  # attention code of its own
    "deepseek_v3",  # latent attention
    "deepseek_v32",  # picked keys
    "falcon_mamba",  # Mamba-1
    "gemma2",  # soft caps
    "gemma4_text",  # two sizes of heads, shared layers
    "gpt2",  # learnt positions
    "gpt_oss",  # sinks
    "hrm_text",  # several calls in a layer
    "hunyuan_v1_moe",  # linear layers whose weight is read
    "jamba",  # Mamba-1 beside attention and experts
    "lfm2",  # short convolutions
    "llama",  # plain
    "llama4_text",  # chunks
    "mamba2",  # Mamba-2
    "mistral",  # sliding layers alone
    "qwen3_5_text",  # delta rule
    "qwen3_moe",  # experts
    "stablelm",  # layers that lose the step's arguments
)
"""One type of each kind, for CI."""

NOT_TRIED: dict[str, str] = {
    "blt": "it reads bytes in patches that a second model cuts",
    "fuyu": "its prompts are images",
    "git": "its prompts are images",
    "moss_transcribe_diarize": "its prompts are speech",
    "musicgen": "it generates music",
    "musicgen_melody": "it generates music",
    "reformer": "its attention takes prompts of fixed lengths alone",
}
"""Why types were not tried: they are refused too."""

_ENCODER_DECODER = "it is the decoder of an encoder-decoder, which continuous batches have no encoder for"
_OWN_CACHE = "it keeps a cache of its own kind"
_PARTS = "no tiny model of it can be made without what only a released checkpoint has"
_REASONS: dict[str, str] = {
    **dict.fromkeys(
        [
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "mvp",
            "pegasus",
            "plbart",
            "prophetnet",
            "trocr",
            "whisper",
        ],
        _ENCODER_DECODER,
    ),
    **dict.fromkeys(
        ["deepseek_v4", "glm5_next", "minimax", "minimax_m3_vl_text", "qwen4_exp", "qwen4_exp_text"], _OWN_CACHE
    ),
    **dict.fromkeys(["recurrent_gemma", "rwkv", "xlstm"], "it keeps a state of its own kind, outside the cache"),
    **dict.fromkeys(
        ["inkling_text", "inkling2_text"], "it counts positions as if each step of a batch began a sequence"
    ),
    **dict.fromkeys(["gemma4_assistant", "gemma4_unified_assistant"], "it drafts from another model's keys"),
    "xlnet": "its code fixes its attention function",
    "gemma3n": "its vision tower needs timm and Pillow to load",
    "moshi": "it speaks: its text is not consistent without sound",
}
_WAY_OUT = "serve it with model.generate"


def make_table(results: Iterable[Result]) -> ModelTable:
    """Make the table. A wrapper's result stands for its text type unless that has one of its own."""
    verdicts = {name: Verdict(reason=reason) for name, reason in NOT_TRIED.items()}
    wrappers: dict[str, list[Result]] = {}
    for result in results:
        if result.model_type in CAUSAL_TYPES:
            verdicts[result.model_type] = Verdict(reason=reason_of(result))
        elif result.text_type:
            wrappers.setdefault(result.text_type, []).append(result)
    for text_type, tried in wrappers.items():
        if text_type not in verdicts:
            best = next((result for result in tried if result.is_equal), tried[0])
            verdicts[text_type] = Verdict(reason=reason_of(best))
    return ModelTable(transformers=transformers.__version__, types=dict(sorted(verdicts.items())))


def reason_of(result: Result) -> str:
    """Return why the type is refused, and the way out; empty if it is equal."""
    if result.is_equal:
        return ""
    if reason := _REASONS.get(result.model_type):
        return f"{reason}: {_WAY_OUT}"
    if "can't be loaded" in result.refusal:
        return f"transformers loads it as no language model: {_WAY_OUT}"
    if result.refusal:
        return result.refusal
    if result.stage in ("build", "generate"):
        return f"{_PARTS}: LONGHAUL_UNVERIFIED_MODELS=1 tries it"
    if result.differing:
        return f"its answers in batches are not those of model.generate: {_WAY_OUT}"
    return f"its code fails in batches: {_WAY_OUT}"


def is_as_in_table(result: Result, table: ModelTable) -> bool:
    name = result.model_type if result.model_type in CAUSAL_TYPES else result.text_type
    return result.is_equal == (name in table.equal)


def write_table(table: ModelTable) -> None:
    PATH.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
