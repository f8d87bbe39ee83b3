"""Doc texts, and those of them that are fragments: they only continue the name above them."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from testing.sources import Finding, Source

_PREPOSITIONS = """
above across against along among around as at behind below beside between beyond by during except for from in inside
into like of off on onto out outside over per since through till to toward towards under until up upon via with within
without
"""
_RELATIVES = "that where wherever which who whoever whom whose"
_NEGATIONS = "not nor so than"

FRAGMENT_STARTS = frozenset(f"{_PREPOSITIONS} {_RELATIVES} {_NEGATIONS}".split())
"""First words that make a text a fragment. The test is the first word alone, whatever follows: "For a stored job, the
log is read" counts too, though a main clause follows. Left out are the words that often begin a complete sentence
(The, A, One, Each, No, Nothing, It, This, If, When, Once, While, Before, After, About) or a heading (What, Whether,
How, Why)."""

QUESTION_STARTS = frozenset({"what", "whatever", "whether", "how", "why"})
"""First words of texts that are a clause with nothing around it ("What the client is told."); counted apart."""

CHECKED_STARTS = (
    FRAGMENT_STARTS | {"what", "whatever"} | frozenset(["and", "because", "but", "else", "or", "unless", "whereas"])
)
"""First words that scripts/check refuses: fragments, clauses with "what", and texts that begin with a conjunction."""


def doc_texts(sources: Sequence[Source]) -> list[Finding]:
    """Finds the docstrings and the texts under attributes and constants: strings that are statements."""
    return [
        Finding(path=source.path, line=node.lineno, text=" ".join(node.value.value.split()))
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def starting_with(texts: Sequence[Finding], words: frozenset[str]) -> list[Finding]:
    """Selects the texts whose first word is one of `words`, which are in lower case."""
    return [text for text in texts if first_word(text.text) in words]


def first_word(text: str) -> str:
    """Returns the first word in lower case, without what stands around it; "" if the text begins otherwise."""
    match = re.match(r"[A-Za-z]+(?![\w'])", text)
    return match[0].lower() if match else ""
