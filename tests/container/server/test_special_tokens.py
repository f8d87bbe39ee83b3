"""Special tokens and cut characters through a real engine, which a bias makes write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoTokenizer

from testing.server import Server

TOKEN, NAME = 1, "<|im_start|>"


def forced(token_id: int, **more: Any) -> dict[str, Any]:
    """Return a request for a completion of one token again and again."""
    return {"prompt": "The sea is", "max_tokens": 4, "temperature": 0, "logit_bias": {str(token_id): 100}} | more


@pytest.mark.parametrize(
    ("asked", "text", "tokens", "reason"),
    [
        ({}, "", 4, "length"),
        ({"stop": [NAME]}, "", 1, "stop"),
        ({"stop": [NAME], "include_stop_str_in_output": True}, NAME, 1, "stop"),
        ({"stop": [NAME * 2]}, "", 2, "stop"),
        ({"skip_special_tokens": False}, NAME * 4, 4, "length"),
        ({"stop": [NAME * 2], "skip_special_tokens": False, "include_stop_str_in_output": True}, NAME * 2, 2, "stop"),
        ({"stop_token_ids": [TOKEN], "skip_special_tokens": False}, "", 1, "stop"),
    ],
)
def test_forced_special_token_shows_and_stops(
    asked: dict[str, Any], text: str, tokens: int, reason: str, server: Server
) -> None:
    answer = server.ask(forced(TOKEN, **asked))
    (choice,) = answer["choices"]
    assert (choice["text"], answer["usage"]["completion_tokens"]) == (text, tokens)
    assert choice["finish_reason"] == reason


def test_cut_character_is_in_logprobs_alone(server: Server, model_dir: str) -> None:
    first, _ = AutoTokenizer.from_pretrained(model_dir)("日")["input_ids"]
    answer = server.ask(forced(first, max_tokens=1, logprobs=0))
    (choice,) = answer["choices"]
    assert choice["text"] == ""
    assert choice["logprobs"]["tokens"] == ["bytes:\\xe6\\x97"]


def test_setting_lets_messages_have_control_tokens(start: Callable[..., Server]) -> None:
    server = start(LONGHAUL_PARSE_CONTROL_TOKENS="on").wait_until_ready()

    def count(content: str, padding: str = "") -> int:
        """Count the prompt's tokens; a document with padding is large, and read by a process of its own."""
        body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 1}) + padding
        answer = server.post("/invocations", content=body, headers={"content-type": "application/json"})
        tokens: int = answer.json()["usage"]["prompt_tokens"]
        return tokens

    assert count(NAME) == count(NAME, padding=" " * (2 << 20)) == count("a")
