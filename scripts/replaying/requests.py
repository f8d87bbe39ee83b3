"""The requests of a replay: valid ones of every dialect, with every parameter, greedy and seeded.

The seeds make answers repeatable. Where a request has none, on purpose, only the shape of its answer is compared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

JSON = "application/json"
JSON_LINES = "application/jsonlines"
TEXT = "text/plain"


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `by_shape`: its answer differs each time, so that only the shape counts."""

    name: str
    body: bytes = b""
    content_type: str | None = JSON
    path: str = "/invocations"
    attributes: str | None = None
    by_shape: bool = False
    method: str = "POST"


USER = {"role": "user", "content": "What is the capital of France?"}
SYSTEM = {"role": "system", "content": "Answer in one word."}
ASSISTANT = {"role": "assistant", "content": "It is Paris."}
AGAIN = {"role": "user", "content": "And of Peru?"}
UNICODE = "Grüße, 東京! 🦊 naïve café — Ωμέγα\n\ttab"
LONG = "The sea is wide and the ship is small. " * 40
SEEDED = {"temperature": 0.8, "seed": 7}
BIAS = {"100": 5, "200": -100, "300": 0.5}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}

# What all dialects of JSON take: each of these goes into a chat, a completion and, as `parameters`, into `inputs`.
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": SEEDED,
    "seed 0": {"temperature": 1, "seed": 0},
    "largest seed": {"temperature": 1, "seed": 2**64 - 1},
    "hot": {"temperature": 2, "seed": 3},
    "cold": {"temperature": 0.01, "seed": 3},
    "top_k": {**SEEDED, "top_k": 20},
    "top_k 1": {**SEEDED, "top_k": 1},
    "top_p": {**SEEDED, "top_p": 0.5},
    "top_p whole": {**SEEDED, "top_p": 1.0},
    "min_p": {**SEEDED, "min_p": 0.05},
    "all three": {**SEEDED, "top_k": 100, "top_p": 0.9, "min_p": 0.01},
    "repetition penalty": {"temperature": 0, "repetition_penalty": 1.3},
    "presence penalty": {"temperature": 0, "presence_penalty": 1.5},
    "frequency penalty": {"temperature": 0, "frequency_penalty": 1.5},
    "all penalties": {**SEEDED, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5},
    "bias": {"temperature": 0, "logit_bias": BIAS},
    "bias sampled": {**SEEDED, "logit_bias": BIAS},
    "stop": {**SEEDED, "stop": "e"},
    "stops": {**SEEDED, "stop": ["the", "\n", "er"]},
    "no stops": {**SEEDED, "stop": []},
    "stop ids": {**SEEDED, "stop_token_ids": [260, 28, 30, 198]},
    "ignore_eos": {"temperature": 0, "ignore_eos": True},
    "nulls": {"temperature": None, "seed": None, "top_k": None, "top_p": None, "stop": None, "ignore_eos": None},
}
OPENAI: dict[str, dict[str, Any]] = {
    "one token": {**SEEDED, "max_tokens": 1},
    "minimum": {**SEEDED, "min_tokens": 8, "stop_token_ids": list(range(120))},
    "n": {**SEEDED, "n": 3},
    "n greedy": {"temperature": 0, "n": 2},
    "top_k off": {**SEEDED, "top_k": -1},
    "model name": {**SEEDED, "model": "any/name:at-all"},
    "ignored": {**SEEDED, "user": "u1", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
    "no stream": {**SEEDED, "stream": False},
    "unseeded": {"temperature": 1},
    "unseeded n": {"temperature": 1, "n": 2},
}
CHATS: dict[str, dict[str, Any]] = {
    "system": {"messages": [SYSTEM, USER]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "turns": {"messages": [SYSTEM, USER, ASSISTANT, AGAIN]},
    "one part": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Name a river."}]}]},
    "name": {"messages": [{**USER, "name": "ann"}]},
    "unicode": {"messages": [{"role": "user", "content": UNICODE}]},
    "long": {"messages": [{"role": "user", "content": LONG}]},
    "refusal sent back": {"messages": [USER, {**ASSISTANT, "refusal": None, "annotations": []}, AGAIN]},
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 6},
    "logprobs": {"logprobs": True},
    "top logprobs": {"logprobs": True, "top_logprobs": 5},
    "top logprobs seeded": {**SEEDED, "logprobs": True, "top_logprobs": 20, "n": 2},
    "logprobs of unicode": {"messages": [{"role": "user", "content": UNICODE}], "logprobs": True, "top_logprobs": 2},
    "logprobs and stop": {**SEEDED, "logprobs": True, "top_logprobs": 1, "stop": ["a", "e"], "max_tokens": 24},
    "no logprobs": {"logprobs": False},
    "continued": {"messages": [USER, {"role": "assistant", "content": "The capital"}], "continue_final_message": True},
    "without generation prompt": {"add_generation_prompt": False},
    "text format": {"response_format": {"type": "text"}},
    "no tools": {"tools": [], "tool_choice": "none"},
    "tools not to be called": {"tools": [WEATHER], "tool_choice": "none"},
    "tools": {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": True},
    "tool call": {"messages": [USER, CALLING, RESULT], "tools": [WEATHER]},
    "template variables": {"chat_template_kwargs": {"enable_thinking": False, "mood": "calm", "list": [1, 2.5, "x"]}},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "list": {"prompt": ["The sea is", "The sky is"]},
    "list seeded": {"prompt": ["The sea is", "The sky is"], "n": 2, **SEEDED},
    "ids": {"prompt": [504, 2471, 314]},
    "lists of ids": {"prompt": [[504, 2471, 314], [504, 6376]], **SEEDED},
    "unicode": {"prompt": UNICODE},
    "long": {"prompt": LONG},
    "one character": {"prompt": "x"},
    "white space": {"prompt": " \n"},
    "echo": {"echo": True},
    "echo list": {"prompt": ["The sea is", "The sky is"], "echo": True},
    "best_of": {"best_of": 2, "n": 2, **SEEDED},
    "empty suffix": {"suffix": ""},
    "logprobs": {"logprobs": 0},
    "top logprobs": {"logprobs": 5},
    "top logprobs seeded": {**SEEDED, "logprobs": 3, "n": 2},
    "logprobs of unicode": {"prompt": UNICODE, "logprobs": 2, "max_tokens": 24},
    "logprobs and stop": {**SEEDED, "logprobs": 1, "stop": ["a", "e"], "max_tokens": 24},
}
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "one token": {"max_new_tokens": 1},
    "minimum": {**SEEDED, "min_new_tokens": 8, "stop_token_ids": list(range(120))},
    "sampled": {**SEEDED, "do_sample": True},
    "not sampled": {"do_sample": False},
    "details": {"details": True},
    "details seeded": {**SEEDED, "details": True},
    "logprobs": {"details": True, "logprobs": 0},
    "top logprobs": {**SEEDED, "details": True, "logprobs": 4},
    "full text": {"return_full_text": True},
    "several": {**SEEDED, "num_return_sequences": 3},
    "several with details": {**SEEDED, "num_return_sequences": 2, "details": True, "return_full_text": True},
    "stop_sequences": {**SEEDED, "stop_sequences": ["e"]},
    "stop_strings": {**SEEDED, "stop_strings": ["e"]},
    "hottest": {"temperature": 1_000_000, "seed": 1},
    "neutral": {"num_beams": 1, "typical_p": 1, "best_of": 1, "watermark": False, "length_penalty": 1},
    "unseeded": {"do_sample": True, "details": True},
}
INPUTS: dict[str, dict[str, Any]] = {
    "list": {"inputs": ["Once upon a time", "The sea is"]},
    "list seeded": {"inputs": ["Once upon a time", "The sea is"], "parameters": {**SEEDED, "details": True}},
    "messages": {"inputs": [SYSTEM, USER]},
    "lists of messages": {"inputs": [[USER], [SYSTEM, USER]], "parameters": {"details": True}},
    "messages in full": {"inputs": [USER], "parameters": {"return_full_text": True, "max_new_tokens": 8}},
    "messages continued": {
        "inputs": [USER, {"role": "assistant", "content": "The capital"}],
        "parameters": {"continue_final_message": True, "max_new_tokens": 8},
    },
    "messages with tools": {"inputs": [USER], "parameters": {"tools": [WEATHER], "max_new_tokens": 8}},
    "unicode": {"inputs": UNICODE, "parameters": {"max_new_tokens": 24, "details": True, "logprobs": 1}},
    "long": {"inputs": LONG, "parameters": {"max_new_tokens": 8}},
    "no stream": {"inputs": "The sea is", "stream": False, "parameters": {"max_new_tokens": 8}},
    "null parameters": {"inputs": "The sea is", "parameters": None},
}
TEXTS: dict[str, str] = {
    "greedy": "max_new_tokens=12",
    "seeded": "max_new_tokens=12;temperature=0.8;seed=7",
    "all": "max_new_tokens=20;min_new_tokens=2;temperature=0.9;top_k=50;top_p=0.9;min_p=0.01;seed=3;do_sample=true",
    "penalties": "max_new_tokens=12;repetition_penalty=1.2;presence_penalty=0.5;frequency_penalty=0.5",
    "stops": "max_new_tokens=20;stop=e;stop=the",
    "full text": "max_new_tokens=8;return_full_text=true",
    "ignore_eos": "max_new_tokens=12;ignore_eos=true",
    "unknown ones": "token=abc;max_new_tokens=8;trace;x=y=z",
    "spaces": " max_new_tokens = 8 ; seed = 3 ; temperature = 0.5 ",
    "timeout": "max_new_tokens=8;timeout=600",
}


def all_requests() -> list[Request]:
    """Return the requests in the order in which they are sent: some repeat a job that an earlier one began."""
    requests = [
        Request("ping", method="GET", path="/ping", content_type=None),
        Request("models", method="GET", path="/v1/models", content_type=None),
        *_chats(),
        *_completions(),
        *_inputs(),
        *_texts(),
        *_batches(),
        *_odd_bodies(),
    ]
    names = [request.name for request in requests]
    assert len(set(names)) == len(names), "names tell requests apart"
    return requests


def _json(name: str, document: Any, **other: Any) -> Request:
    return Request(name, json.dumps(document, ensure_ascii=False).encode(), **other)


def _is_unseeded(name: str) -> bool:
    return name.startswith("unseeded") or name == "nulls"


def _chats() -> list[Request]:
    base = {"messages": [USER], "max_tokens": 12, "temperature": 0}
    sampled = [
        _json(f"chat, {name}", {**base, **options}, by_shape=_is_unseeded(name))
        for name, options in (SAMPLING | OPENAI | CHATS).items()
    ]
    routed = _json("chat, own route", base, path="/v1/chat/completions")
    return [*sampled, routed]


def _completions() -> list[Request]:
    base = {"prompt": "The sea is", "max_tokens": 12, "temperature": 0}
    sampled = [
        _json(f"completion, {name}", {**base, **options}, by_shape=_is_unseeded(name))
        for name, options in (SAMPLING | OPENAI | COMPLETIONS).items()
    ]
    routed = _json("completion, own route", base, path="/v1/completions")
    return [*sampled, routed]


def _inputs() -> list[Request]:
    with_parameters = [
        _json(
            f"inputs, {name}",
            {"inputs": "The sea is", "parameters": {"max_new_tokens": 12, **options}},
            by_shape=name.startswith("unseeded"),
        )
        for name, options in (SAMPLING | HUGGING_FACE).items()
    ]
    return [*with_parameters, *(_json(f"inputs, {name}", document) for name, document in INPUTS.items())]


def _texts() -> list[Request]:
    return [
        Request(f"text, {name}", b"Once upon a time", TEXT, attributes=attributes) for name, attributes in TEXTS.items()
    ] + [Request("text, unicode", UNICODE.encode(), TEXT, attributes="max_new_tokens=12")]


_LINES: list[dict[str, Any]] = [
    {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [USER], "max_tokens": 8, "temperature": 0},
    },
    {
        "custom_id": "b",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": "The sea is", "max_tokens": 8, "n": 2, **SEEDED},
    },
    {"recordId": "c", "modelInput": {"prompt": "The sky is", "max_tokens": 8, "temperature": 0}},
    {"modelInput": {"messages": [USER], "max_tokens": 8, "temperature": 0}},
    {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8, "details": True}},
    {"messages": [SYSTEM, USER], "max_tokens": 8, **SEEDED},
    {"prompt": [504, 2471, 314], "max_tokens": 8, "temperature": 0, "logprobs": 2},
]
_BAD_LINES = [
    '{"prompt": 5}',
    "not JSON",
    "[1, 2]",
    '{"custom_id": "z", "method": "GET"}',
    '{"recordId": "y"}',
]


def _batches() -> list[Request]:
    lines = [json.dumps(line, ensure_ascii=False) for line in _LINES]
    whole, mixed = "\n".join(lines) + "\n", "\n".join([lines[0], *_BAD_LINES, "", lines[4]])
    named = "job=replay-1"
    return [
        *(
            Request(f"batch, line {number} alone", f"{line}\n".encode(), JSON_LINES)
            for number, line in enumerate(lines)
        ),
        Request("batch", whole.encode(), JSON_LINES),
        Request("batch, bad lines", mixed.encode(), JSON_LINES),
        Request("batch, no last newline", whole.rstrip().encode(), JSON_LINES),
        Request("batch, carriage returns", whole.replace("\n", "\r\n").encode(), JSON_LINES),
        Request("batch, byte order mark", b"\xef\xbb\xbf" + whole.encode(), JSON_LINES),
        Request("batch, ndjson", whole.encode(), "application/x-ndjson"),
        Request("batch, jsonl", whole.encode(), "application/jsonl; charset=utf-8"),
        Request("batch, custom_id twice", f"{lines[0]}\n{lines[0]}\n".encode(), JSON_LINES),
        Request("batch, named", whole.encode(), JSON_LINES, attributes=named),
        Request("batch, named again", whole.encode(), JSON_LINES, attributes=named),
        Request("batch, forty lines", "".join(f"{_short(number)}\n" for number in range(40)).encode(), JSON_LINES),
    ]


def _short(number: int) -> str:
    prompt = f"Number {number} is"
    return json.dumps({"prompt": prompt, "max_tokens": 4 + number % 9, "temperature": number % 2, "seed": number})


def _odd_bodies() -> list[Request]:
    """Return what clients do to a good document: other types of it, other spellings, names of jobs."""
    document = {"prompt": "The sea is", "max_tokens": 8, "temperature": 0}
    body, named = json.dumps(document).encode(), "job=replay-2;timeout=600"
    escaped = json.dumps({"prompt": UNICODE, "max_tokens": 8, "temperature": 0}).encode()
    return [
        Request("document, octet stream", body, "application/octet-stream"),
        Request("document, no type", body, None),
        Request("document, charset", body, "application/json; charset=UTF-8"),
        Request("document, own JSON type", body, "application/vnd.acme+json"),
        Request("document, byte order mark", b"\xef\xbb\xbf" + body),
        Request("document, spread out", json.dumps(document, indent=4).encode()),
        Request("document, escapes", escaped),
        Request("document, named", body, attributes=named),
        Request("document, named again", body, attributes=named),
        _json("document, unseeded", {"prompt": "x", "max_tokens": 8}, attributes="job=replay-3", by_shape=True),
        _json("document, large list", {"prompt": [f"{n} is" for n in range(60)], "max_tokens": 2, "temperature": 0}),
    ]
