"""What an answer's line says, whatever its dialect, without what is another each time (ids, times)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import Wrong

SAME_LOGPROB = 1e-3
"""As the suite has it: another batch rounds otherwise."""


@dataclass(frozen=True, slots=True)
class Choice:
    text: str
    finish_reason: str
    tokens: tuple[str, ...] = ()
    """Where log probabilities were asked for."""
    logprobs: tuple[float, ...] = ()

    def equals(self, other: Choice) -> bool:
        same = (self.text, self.finish_reason, self.tokens) == (other.text, other.finish_reason, other.tokens)
        pairs = zip(self.logprobs, other.logprobs, strict=False)
        return same and all(abs(one - another) <= SAME_LOGPROB for one, another in pairs)

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "deadline"


@dataclass(frozen=True, slots=True)
class Told:
    """One line. With an `error`, its code, there are no choices."""

    choices: tuple[Choice, ...] = ()
    generated: int = 0
    """Tokens, all choices'."""
    error: str | None = None


def told(line: Any) -> Told:
    """Raises Wrong for a line of no form."""
    try:
        return _told(line)
    except (KeyError, TypeError, ValueError) as error:
        raise Wrong(f"an answer's line has no known form ({type(error).__name__})") from None


def _told(line: Any) -> Told:
    match line:
        case [*entries]:
            return Told(tuple(map(_entry, entries)), sum(each["details"]["generated_tokens"] for each in entries))
        case {"custom_id": _, "response": {"body": body}}:
            return _told(body)
        case {"recordId": _, "modelOutput": output}:
            return _told(output)
        case {"recordId": _, "error": {"errorCode": code}}:
            return Told(error="deadline_exceeded" if code == 504 else str(code))
        case {"error": {"code": code}}:
            return Told(error=str(code))
        case {"choices": choices, "usage": usage}:
            return Told(tuple(map(_choice, choices)), usage["completion_tokens"])
    raise ValueError


def _entry(entry: Any) -> Choice:
    details = entry["details"]
    tokens = details.get("tokens", [])
    return Choice(
        entry["generated_text"],
        details["finish_reason"],
        tuple(str(each["id"]) for each in tokens),
        tuple(each["logprob"] for each in tokens),
    )


def _choice(choice: Any) -> Choice:
    logprobs = choice["logprobs"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    if not logprobs:
        return Choice(text, choice["finish_reason"])
    if "content" in logprobs:
        content = logprobs["content"]
        names, values = [each["token"] for each in content], [each["logprob"] for each in content]
    else:
        names, values = logprobs["tokens"], logprobs["token_logprobs"]
    return Choice(text, choice["finish_reason"], tuple(names), tuple(values))
