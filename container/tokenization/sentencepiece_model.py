"""sentencepiece's models: a `tokenizer.model`, converted for transformers.

transformers 5.23 converts such files, too, but orders the merges by the pieces' ids instead of their scores, so that
two spaces are cut otherwise than the model was trained, and for some types of models it forgets the space before a
text. So the conversion is made here, as its version 4 did, and compared with sentencepiece itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

NAME = "tokenizer.model"

_SPACE = "▁"
_BPE, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Numbers of sentencepiece's kinds of models and of pieces."""
_PROBES = ("The sea", "für 日本 🙂", "one\ntwo  three", "\t1,234.5   (a/b)", "x" * 9 + " " * 17 + "y")
"""Texts that both libraries must cut alike. None begins with a space, which transformers treats in a way of its own."""


def load(folder: Path, settings: dict[str, Any]) -> Any:
    """Return transformers' tokenizer for the file. `settings` are those of tokenizer_config.json.

    Raises OSError, and ValueError if the file is no model of sentencepiece's, or would be cut otherwise than by it.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    from transformers import TokenizersBackend

    path = folder / NAME
    content = path.read_bytes()
    messages: Any = sentencepiece_model_pb2  # made by protobuf, without types
    model = messages.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise ValueError(f"{NAME} is not one of sentencepiece's: give the model a tokenizer.json")
    options = _special_tokens(model, settings)
    if model.trainer_spec.model_type == _BPE:
        options["tokenizer_object"] = _convert(model, prepends_always=settings.get("legacy", True))
    make: Any = TokenizersBackend.from_pretrained
    tokenizer = make(str(folder), vocab_file=str(path), local_files_only=True, **options)
    processor: Any = SentencePieceProcessor(model_proto=content)
    for probe in _PROBES:
        if tokenizer(probe, add_special_tokens=False)["input_ids"] != processor.encode(probe):
            raise ValueError(f"converted from {NAME}, it would give other tokens: give the model a tokenizer.json")
    return tokenizer


def _special_tokens(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the options that name the first and the last token, as the file does where the settings don't."""
    spec = model.trainer_spec
    # As its users have it: transformers leaves out the first token where the settings say nothing.
    options: dict[str, Any] = {"add_bos_token": settings.get("add_bos_token", spec.bos_id >= 0)}
    for name in ("bos", "eos", "unk"):
        index = getattr(spec, f"{name}_id")
        if 0 <= index < len(model.pieces) and not settings.get(f"{name}_token"):
            options[f"{name}_token"] = model.pieces[index].piece
    return options


def _convert(model: Any, *, prepends_always: bool) -> Tokenizer:
    """Return a BPE model as `tokenizers` has it.

    `prepends_always`: a space goes before each part of a text between special tokens, not only before its start.
    """
    from transformers.tokenization_utils_base import generate_merges

    scores = {piece.piece: piece.score for piece in model.pieces}
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    spec = model.trainer_spec
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=generate_merges(vocabulary, scores),
            unk_token=spec.unk_piece,
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    )
    charsmap = model.normalizer_spec.precompiled_charsmap
    has_prefix = model.normalizer_spec.add_dummy_prefix
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if has_prefix and prepends_always:
        steps.append(normalizers.Prepend(_SPACE))
    if not has_prefix or prepends_always:
        steps.append(normalizers.Replace(" ", _SPACE))
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False)
    if steps:
        backend.normalizer = normalizers.Sequence(steps)
    decoding: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)] if has_prefix else decoding)
    added = [piece for piece in model.pieces if piece.type in (_CONTROL, _USER_DEFINED)]
    backend.add_tokens([AddedToken(p.piece, normalized=False, special=p.type == _CONTROL) for p in added])
    return backend
