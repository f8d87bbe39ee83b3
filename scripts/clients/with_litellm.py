"""LiteLLM, which calls other servers by OpenAI's API."""

from __future__ import annotations

import os

import litellm

from clients.checks import check, error_of
from clients.requests_sent import MESSAGES, TOPICS

SERVER = {"api_base": f"{os.environ['LONGHAUL_URL']}/v1", "api_key": "unused", "num_retries": 0}


def main() -> None:
    for provider in ("openai", "hosted_vllm"):
        answer = litellm.completion(f"{provider}/any", messages=MESSAGES, max_tokens=20, temperature=0, **SERVER)
        text = answer.choices[0].message.content
        check(f"completion of {provider}/any", "Paris" in text, text)
    text_answer = litellm.text_completion(
        model="text-completion-openai/any", prompt=list(TOPICS), max_tokens=4, **SERVER
    )
    check("text_completion of a list", len(text_answer.choices) == 3, text_answer)
    chats = [[{"role": "user", "content": topic}] for topic in TOPICS]
    answers = litellm.batch_completion("openai/any", messages=chats, max_tokens=4, **SERVER)
    check("batch_completion", [answer.usage.completion_tokens > 0 for answer in answers] == [True] * 3, answers)
    wrong = error_of(
        lambda: litellm.completion("openai/any", messages=MESSAGES, top_p=2, **SERVER), litellm.BadRequestError
    )
    check("a wrong value is a BadRequestError with its name", "top_p" in wrong.message, wrong)


if __name__ == "__main__":
    main()
