"""The check of a model that nobody has measured: tokens of its batch, compared with its own forward pass.

A model whose code does something that the engine doesn't see gives other scores in batches, mostly at the first token:
in tiny random models at least 0.1 of their spread, where right ones stay within 4e-5.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from container.engine.messages import Submit
from container.engine.sequence import Sampling
from container.engine.worker import attention
from container.engine.worker.model import LoadedModel
from container.engine.worker.refusal import ModelRefused

if TYPE_CHECKING:
    from container.engine.worker.batch import Batch

logger = logging.getLogger(__name__)

STEP_TOKENS = 40
"""Tokens of a step during the check: the longer prompts come in pieces, beside sequences that decode."""
_LENGTHS = (3, 17, 64, 101)
_NEW_TOKENS = 6
_LARGEST_GAP = 1e-3
"""Largest distance of a chosen token's score from the best one's in float32, as a share of the scores' spread."""
_SHARE = 0.5
"""Share of tokens that must be the best in half precision, where scores of right models differ, too."""


def check_tokens(batch: Batch, loaded: LoadedModel, max_tokens: int) -> None:
    """Raise ModelRefused if sequences of at most `max_tokens` get other tokens in the batch than outside of it.

    The batch must not be started yet, and is as new afterwards.
    """
    sequences = _generate(batch, loaded, max_tokens)
    gaps: list[float] = []
    with _own_attention(loaded.model):
        for prompt, output in sequences:
            gaps += _gaps(loaded, prompt, output)
    largest = max(gaps)
    right = sum(gap <= _LARGEST_GAP for gap in gaps)
    if right < len(gaps) if loaded.dtype == torch.float32 else right <= _SHARE * len(gaps):
        raise ModelRefused(
            f"model type {loaded.config.model_type} gives other tokens in batches than its own forward pass: "
            f"{len(gaps) - right} of {len(gaps)} differ, by up to {largest:.2g} of the spread of scores. Such a model "
            "can't be served"
        )
    logger.warning(
        "model type %s is not in the table of models: %d of %d tokens of a check in batches are those of its own "
        "forward pass",
        loaded.config.model_type,
        right,
        len(gaps),
    )


def _generate(batch: Batch, loaded: LoadedModel, max_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Return random prompts and what the batch makes of them, beside each other."""
    draw, config = random.Random(0), loaded.model.config
    parts = (config.to_dict(), loaded.config.to_dict())
    special = {value for part in parts for name, value in part.items() if name.endswith("_token_id")}
    plain = [token for token in range(min(loaded.config.vocab_size, 1 << 15)) if token not in special]
    lengths = [max(1, min(length, max_tokens - _NEW_TOKENS)) for length in _LENGTHS]
    prompts = [draw.choices(plain, k=length) for length in lengths]
    new_tokens = max(1, min(_NEW_TOKENS, max_tokens - max(lengths)))
    submits = [Submit(id, ids, Sampling(max_new_tokens=new_tokens)) for id, ids in enumerate(prompts)]
    try:
        outputs = batch.try_out(submits, STEP_TOKENS)
    except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # these may pass: a restart is worth trying
    except Exception as error:
        raise ModelRefused(
            f"model type {loaded.config.model_type} fails in continuous batches: {type(error).__name__}: {error}"
        ) from error
    return [(prompt, outputs[id]) for id, prompt in enumerate(prompts)]


def _gaps(loaded: LoadedModel, prompt: list[int], output: list[int]) -> list[float]:
    """Return how far each token of the output is from the best one, in shares of the spread of scores.

    It is outside of the batch, without a cache: of the whole sequence at once.
    """
    ids = torch.tensor([prompt + output[:-1]], device=loaded.device)
    try:
        with torch.no_grad():
            scores = loaded.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
    except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        raise ModelRefused(
            f"model type {loaded.config.model_type} can't be checked, as its own forward pass fails: "
            f"{type(error).__name__}: {error}"
        ) from error
    best = scores.amax(-1)
    chosen = scores.gather(-1, torch.tensor(output, device=loaded.device).unsqueeze(-1)).squeeze(-1)
    spread = (best - scores.amin(-1)).clamp_min(torch.finfo(torch.float32).tiny)
    gaps: list[float] = torch.nan_to_num((best - chosen) / spread, nan=1.0).tolist()
    return gaps


@contextlib.contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Have the model attend as the library does without us."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention.NAME)
