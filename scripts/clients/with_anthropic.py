"""Anthropic's client, for which nothing is served: it has to understand why."""

from __future__ import annotations

import os

import anthropic

from clients.checks import check, error_of
from clients.requests_sent import QUESTION


def main() -> None:
    with anthropic.Anthropic(base_url=os.environ["LONGHAUL_URL"], api_key="unused", max_retries=0) as client:
        gone = error_of(
            lambda: client.messages.create(model="any", max_tokens=8, messages=[{"role": "user", "content": QUESTION}]),
            anthropic.NotFoundError,
        )
        check("messages.create says what is served", "POST /v1/chat/completions" in gone.message, gone)
        body = gone.body
        check("its error has Anthropic's form", isinstance(body, dict) and body["error"]["type"] == "not_found_error")


if __name__ == "__main__":
    main()
