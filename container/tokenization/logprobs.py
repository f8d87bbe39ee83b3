"""Log probabilities as an answer has them: the engine's numbers with their tokens' texts and offsets."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from container.core import TokenLogprob
from container.engine.sequence import TokenLogprobs
from container.tokenization.detokenizer import Detokenizer
from container.tokenization.vocabulary import Vocabulary

MIN_LOGPROB = -9999.0
"""OpenAI's number for the logarithm of 0, which JSON has no number for."""


def token_logprobs(
    vocabulary: Vocabulary,
    ids: list[int],
    scores: list[TokenLogprobs],
    *,
    characters: int | None,
) -> tuple[TokenLogprob, ...]:
    """Return one for each token of an output's text, of which a stop string left that many characters (None: all).

    As OpenAI has it, the tokens that begin at a stop string or behind it are left out. A token that begins before it is
    whole, though its end is not part of the text.
    """
    return tuple(
        _token_logprob(
            vocabulary,
            token_id,
            score.logprob,
            offset,
            tuple(_token_logprob(vocabulary, top_id, logprob) for top_id, logprob in score.top),
        )
        for token_id, score, offset in zip(ids, scores, _offsets(vocabulary, ids), strict=True)
        if characters is None or offset < characters
    )


def _token_logprob(
    vocabulary: Vocabulary, token_id: int, logprob: float, offset: int = 0, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    token = vocabulary.token(token_id)
    finite = max(MIN_LOGPROB, logprob)  # in this order, NaN too becomes a number
    return TokenLogprob(id=token_id, text=token.text, utf8=token.bytes, logprob=finite, offset=offset, top=top)


def _offsets(vocabulary: Vocabulary, ids: list[int]) -> Iterator[int]:
    """Yield the characters before each token: those released, and those complete in the run of bytes held back."""
    detokenizer = Detokenizer(vocabulary)
    released = held = 0
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    for token_id in ids:
        yield released + held
        token, piece = vocabulary.token(token_id), detokenizer.add(token_id)
        if piece:
            released, held = released + len(piece), 0
            utf8.reset()
        elif token.is_byte:
            held += len(utf8.decode(token.bytes or b""))
