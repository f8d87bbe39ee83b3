"""Special tokens and cut characters through a real engine, which a bias makes write them."""

from __future__ import annotations

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
