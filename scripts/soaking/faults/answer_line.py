"""One line of a batch's answer in any dialect, without the parts that differ each time (ids, times)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import CheckFailed

SAME_LOGPROB = 1e-3
"""Largest difference between two log probabilities that count as equal: another batch rounds differently."""


@dataclass(frozen=True, slots=True)
class Choice:
    text: str
    finish_reason: str
    tokens: tuple[str, ...] = ()
    """Names or ids of the tokens; empty unless log probabilities were requested."""
    logprobs: tuple[float, ...] = ()

    def equals(self, other: Choice) -> bool:
        same = (self.text, self.finish_reason, self.tokens) == (other.text, other.finish_reason, other.tokens)
        pairs = zip(self.logprobs, other.logprobs, strict=False)
        return same and all(abs(one - another) <= SAME_LOGPROB for one, another in pairs)

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "deadline"


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """One line of an answer: its choices, or the code of its error."""

    choices: tuple[Choice, ...] = ()
    generated: int = 0
    """Number of generated tokens in all choices."""
    error: str | None = None


def parse_line(line: Any) -> AnswerLine:
    """Parse a line of any dialect. Raise CheckFailed if it has no known form."""
    try:
        return _parse(line)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckFailed(f"an answer's line has no known form ({type(error).__name__})") from None


def _parse(line: Any) -> AnswerLine:
    match line:
        case [*entries]:
            return AnswerLine(
                tuple(map(_entry, entries)), sum(entry["details"]["generated_tokens"] for entry in entries)
            )
        case {"custom_id": _, "response": {"body": body}}:
            return _parse(body)
        case {"recordId": _, "modelOutput": output}:
            return _parse(output)
        case {"recordId": _, "error": {"errorCode": code}}:
            return AnswerLine(error="deadline_exceeded" if code == 504 else str(code))
        case {"error": {"code": code}}:
            return AnswerLine(error=str(code))
        case {"choices": choices, "usage": usage}:
            return AnswerLine(tuple(map(_choice, choices)), usage["completion_tokens"])
    raise ValueError


def _entry(entry: Any) -> Choice:
    details = entry["details"]
    tokens = details.get("tokens", [])
    return Choice(
        entry["generated_text"],
        details["finish_reason"],
        tuple(str(token["id"]) for token in tokens),
        tuple(token["logprob"] for token in tokens),
    )


def _choice(choice: Any) -> Choice:
    logprobs = choice["logprobs"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    if not logprobs:
        return Choice(text, choice["finish_reason"])
    if "content" in logprobs:
        content = logprobs["content"]
        names, values = [entry["token"] for entry in content], [entry["logprob"] for entry in content]
    else:
        names, values = logprobs["tokens"], logprobs["token_logprobs"]
    return Choice(text, choice["finish_reason"], tuple(names), tuple(values))
