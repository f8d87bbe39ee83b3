"""Requests with one right answer, in every dialect, and bad ones made from them, all drawn from a seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from container.dialects.plain_text import HEADER

CANARY = "kept-secret"
"""Value in bad documents: an error that shows it quotes its request. Names of fields may be shown."""
MAX_TOKENS = 24
JSON, LINES, TEXT = "application/json", "application/jsonlines", "text/plain"

_WORDS = ("the", "sea", "is", "calm", "and", "old", "ships", "sail", "home", "under", "pale", "moon", "gulls", "cry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    kind: str
    body: bytes
    path: str = "/invocations"
    content_type: str = JSON
    attributes: str = ""

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Content-Type": self.content_type}
        return headers | {HEADER: self.attributes} if self.attributes else headers

    def stable_answer(self, answer: bytes) -> Any:
        """Return what must be the same each time: everything but names, times and numbers near a rounding error."""
        if self.content_type == TEXT:
            return answer.decode()
        if self.content_type == LINES:
            return [_stable(json.loads(line)) for line in answer.splitlines()]
        return _stable(json.loads(answer))


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        volatile = ("id", "created", "request_id", "logprob", "token_logprobs", "top_logprobs", "top")
        return {name: _stable(inner) for name, inner in value.items() if name not in volatile}
    return [_stable(inner) for inner in value] if isinstance(value, list) else value


def difference(before: Any, now: Any) -> str:
    """Describe where two answers first differ, by path and position, without their text."""
    match before, now:
        case dict(), dict() if before.keys() == now.keys():
            name = next(name for name in before if before[name] != now[name])
            return f".{name}{difference(before[name], now[name])}"
        case list(), list() if len(before) == len(now):
            index = next(index for index in range(len(now)) if before[index] != now[index])
            return f"[{index}]{difference(before[index], now[index])}"
        case str(), str():
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False)))
            return f" from character {same} of {len(before)} and {len(now)}"
    return f": {type(before).__name__} and {type(now).__name__}"


def words(draw: random.Random, max_words: int = 40) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(1, max_words)))


def _sampling(draw: random.Random) -> dict[str, Any]:
    """Draw parameters that every dialect knows. A sampled request has its seed."""
    chosen: dict[str, Any] = {}
    if draw.random() < 0.6:
        chosen |= {"temperature": draw.choice([0.5, 1.0, 1.7]), "seed": draw.randrange(2**64)}
        chosen |= draw.choice([{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.01}])
    else:
        chosen["temperature"] = 0
    return chosen | draw.choice([{}, {}, {"repetition_penalty": 1.3}, {"frequency_penalty": 0.7}])


def _only_json(draw: random.Random) -> dict[str, Any]:
    return draw.choice([{}, {}, {"stop": [" a", "e"]}, {"stop_token_ids": [5, 6]}, {"logit_bias": {"300": 4}}])


def _messages(draw: random.Random) -> list[dict[str, str]]:
    roles = draw.choice([["user"], ["system", "user"], ["user", "assistant", "user"]])
    return [{"role": role, "content": words(draw)} for role in roles]


def hugging_face(draw: random.Random) -> dict[str, Any]:
    inputs = draw.choice([words(draw), [words(draw) for _ in range(draw.randint(1, 6))], _messages(draw)])
    parameters = {"max_new_tokens": draw.randint(1, MAX_TOKENS)} | _sampling(draw) | _only_json(draw)
    parameters |= draw.choice([{}, {"details": True}, {"details": True, "logprobs": 2}, {"return_full_text": True}])
    return {"inputs": inputs, "parameters": parameters}


def chat(draw: random.Random) -> dict[str, Any]:
    body = {"messages": _messages(draw), "max_tokens": draw.randint(1, MAX_TOKENS), "n": draw.choice([1, 1, 3])}
    return body | _sampling(draw) | _only_json(draw) | draw.choice([{}, {"logprobs": True, "top_logprobs": 3}])


def completion(draw: random.Random) -> dict[str, Any]:
    ids = [draw.randrange(5, 40_000) for _ in range(draw.randint(1, 80))]
    prompt = draw.choice([words(draw), [words(draw), words(draw)], ids])
    return {"prompt": prompt, "max_tokens": draw.randint(1, MAX_TOKENS)} | _sampling(draw) | _only_json(draw)


DOCUMENTS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "hugging face": hugging_face,
    "chat": chat,
    "completion": completion,
}
OPENAI = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


def draw_document(draw: random.Random, kind: str) -> Request:
    paths = ["/invocations", OPENAI.get(kind, "/invocations")]
    return Request(kind=kind, body=json.dumps(DOCUMENTS[kind](draw)).encode(), path=draw.choice(paths))


def draw_text(draw: random.Random) -> Request:
    options = {"max_new_tokens": draw.randint(1, MAX_TOKENS)} | _sampling(draw)
    attributes = ";".join(f"{name}={value}" for name, value in options.items())
    return Request(kind="text", body=words(draw).encode(), content_type=TEXT, attributes=attributes)


def draw_batch(draw: random.Random) -> Request:
    """Draw a batch of good lines in all three forms and some bad ones, each of which fails alone."""
    lines = [_line(draw, number) for number in range(draw.randint(2, 30))]
    return Request(kind="batch", body=b"\n".join(lines), content_type=LINES)


def _line(draw: random.Random, number: int) -> bytes:
    if draw.random() < 0.2:
        return draw.choice([b"{", b"[]", b'{"inputs": 1}', b'{"prompt": "a", "nonsense": 1}', b'{"recordId": "r"}'])
    kind = draw.choice(list(DOCUMENTS))
    document = DOCUMENTS[kind](draw)
    match draw.randrange(3):
        case 0 if kind in OPENAI:
            document = {"custom_id": str(number), "method": "POST", "url": OPENAI[kind], "body": document}
        case 1:
            document = {"recordId": str(number), "modelInput": document}
    return json.dumps(document).encode()


def draw_large_document(draw: random.Random) -> Request:
    """Draw a document so large that it gets a reader process."""
    document = completion(draw) | {"metadata": {"of no effect": "a" * 1_200_000}}
    return Request(kind="large", body=json.dumps(document).encode())


def draw_pool(seed: str, count: int) -> list[Request]:
    """Draw `count` requests of each kind."""
    draw = random.Random(seed)
    documents = [draw_document(draw, kind) for kind in DOCUMENTS for _ in range(count)]
    return documents + [draw_text(draw) for _ in range(count)] + [draw_batch(draw) for _ in range(count)]


# Bad requests

_JUNK: list[Any] = [None, True, -1, 0.5, 2**63, 10**400, "", CANARY, [], {}, [CANARY], {"nonsense": CANARY}, [[]], [{}]]


def draw_bad_document(draw: random.Random) -> Request:
    """Draw a good document and break it in one to three places, so that it gets further than noise. Some stay right."""
    kind = draw.choice(list(DOCUMENTS))
    document: Any = DOCUMENTS[kind](draw)
    for _ in range(draw.randint(1, 3)):
        _break(draw, document)
    body = json.dumps(document | draw.choice([{}, {"nonsense": CANARY}])).encode()
    if draw.random() < 0.3:
        cut = draw.randrange(len(body))
        body = draw.choice([body[:cut], body[:cut] + draw.randbytes(3) + body[cut:], body + body, b"[" * 5000])
    content_type = draw.choice([JSON] * 6 + [LINES, TEXT, "application/xml", "application/json; charset=utf-16", ";"])
    paths = ["/invocations", "/invocations", *OPENAI.values()]
    return Request(kind=f"bad {kind}", body=body, content_type=content_type, path=draw.choice(paths))


def _break(draw: random.Random, value: Any) -> None:
    """Change one value, at the top or further in."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = draw.choice(keys)
    if isinstance(value[key], dict | list) and draw.random() < 0.7:
        _break(draw, value[key])
    elif isinstance(value, dict) and draw.random() < 0.3:
        value[draw.choice([key + "s", "nonsense", "stream", "n", "tools"])] = value.pop(key)
    else:
        value[key] = copy.deepcopy(draw.choice(_JUNK))
