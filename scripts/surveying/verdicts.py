"""Verdicts by type of text model, out of results; with words for users where the engine's own reason is not enough."""

from __future__ import annotations

import re
from collections.abc import Mapping

from container.engine.worker.model_table import Verdict
from surveying.trials import MAX_ERROR, Result
from surveying.types import NOT_TRIED, is_causal

_DECODERS = "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr"
_OWN_ATTENTION = "its own code computes attention and takes no other function for it"
_UNMADE = "no tiny model of it is made yet, so that nothing is known"

REASONS: dict[str, str] = {
    "deepseek_v4": "it compresses keys in windows and blocks, in a cache of its own",
    "emu3": _UNMADE,
    "falcon": _OWN_ATTENTION,
    "gemma3n": "it needs timm and Pillow to load its vision tower",
    "glm5_next_text": "it pools the keys of its indexer, in a cache of its own",
    "gpt_neo": _OWN_ATTENTION,
    "gptj": _OWN_ATTENTION,
    "inkling2_text": "its position bias counts from the beginning of each step",
    "inkling_text": "its position bias counts from the beginning of each step",
    "minimax": "its lightning attention has a cache of its own",
    "minimax_m3_vl_text": "its indexer picks blocks of keys, in a cache of its own",
    "moshi": "it speaks: its own answers differ with and without a cache",
    "qwen4_exp": "it keeps compressed keys and n-grams, in a cache of its own",
    "qwen4_exp_text": "it keeps compressed keys and n-grams, in a cache of its own",
    "recurrent_gemma": "it keeps its state in its modules, for all sequences at once",
    "rwkv": "it has no attention, and keeps its state in a form of its own",
    "xlm": _OWN_ATTENTION,
    "xlnet": _OWN_ATTENTION,
    "xlstm": "it has no attention, and keeps its state in a form of its own",
    **dict.fromkeys(_DECODERS.split(), "it is the decoder of an encoder-decoder"),
}
"""Words for users on types that are not equal, before the engine's own."""


def verdicts(results: Mapping[str, Result]) -> dict[str, Verdict]:
    """Return a verdict for each causal type, and for the text models of others, sorted by type."""
    found: dict[str, Verdict] = {name: Verdict(f"not tried: {why}") for name, why in NOT_TRIED.items()}
    for name, result in results.items():
        if is_causal(name):
            found[name] = verdict(name, result)
    for result in results.values():
        text_type = result.text_type
        if text_type and text_type not in results and not is_causal(text_type):
            before, now = found.get(text_type), verdict(text_type, result)
            if before is None or not now.is_equal:  # of two wrappers, the worse one counts
                found[text_type] = now
    return dict(sorted(found.items()))


def verdict(name: str, result: Result) -> Verdict:
    if result.is_equal:
        return Verdict()
    return Verdict(REASONS.get(name) or _reason(result))


def _reason(result: Result) -> str:
    if "fixes its attention function" in result.refusal:
        return _OWN_ATTENTION
    if result.refusal:
        without_class = re.sub(r"^the code of \w+", "its code", result.refusal)
        return without_class.removesuffix(": it can't run in continuous batches")
    if result.unmade:
        return _UNMADE
    if result.failure:
        return f"it fails in a batch: {result.failure.partition(':')[0]}"
    return "its answers in a batch differ from those of model.generate"


def describe(result: Result) -> str:
    """Describe a result in a line, for the terminal."""
    if result.is_equal:
        ties = f", {result.ties} at ties" if result.ties else ""
        return f"equal{ties}, error {result.error:.0e}, {result.preemptions} preempted"
    if result.refusal:
        return f"refused: {result.refusal}"
    if result.unmade:
        return f"not made: {result.unmade}"
    wrong = ", ".join(f"{trial} {rows}" for trial, rows in result.differing.items() if rows)
    parts = [
        f"rows that differ: {wrong}" if wrong else "",
        f"error {result.error:.0e}" if result.error > MAX_ERROR else "",
        f"fails: {result.failure}" if result.failure else "",
    ]
    return "; ".join(part for part in parts if part)
