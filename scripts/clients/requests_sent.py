"""Requests that all programs send."""

from __future__ import annotations

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
TOPICS = ("The sea is", "The sky is", "A good book is")
LINES = [
    {
        "custom_id": f"line-{number}",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": text, "max_tokens": 4},
    }
    for number, text in enumerate(TOPICS)
]
