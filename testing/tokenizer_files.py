"""Tokenizer files as other libraries have them, small ones: sentencepiece's and mistral-common's."""

from __future__ import annotations

import argparse
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import sentencepiece

PIECES = 800
"""Size of the vocabulary that `save_sentencepiece` makes."""


def save_sentencepiece(directory: Path) -> Path:
    """Train a BPE model with byte fallback, as Llama 2's and Mistral's are. Returns its file."""
    prefix = directory / "tokenizer"
    source = Path(argparse.__file__).read_text().splitlines()
    train: Any = sentencepiece.SentencePieceTrainer.train
    train(
        sentence_iterator=iter(source),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        control_symbols=["[INST]", "[/INST]"],
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


def save_tekken(directory: Path) -> Path:
    """Cut a real tekken.json to its first 2,000 tokens: the whole one takes seconds. Returns its file."""
    real = Path(str(files("mistral_common"))) / "data" / "tekken_240718.json"
    content = json.loads(real.read_bytes())
    content["config"]["default_vocab_size"] = content["config"]["default_num_special_tokens"] + 2000
    content["vocab"] = content["vocab"][:2000]
    path = directory / "tekken.json"
    path.write_text(json.dumps(content))
    return path
