"""LangChain's package for OpenAI's API."""

from __future__ import annotations

import os

import openai
from langchain_openai import ChatOpenAI, OpenAI

from clients.checks import check, error_of
from clients.requests_sent import QUESTION, TOPICS

SERVER = {"base_url": f"{os.environ['LONGHAUL_URL']}/v1", "api_key": "unused", "model": "any", "max_retries": 0}


def main() -> None:
    chat = ChatOpenAI(max_tokens=20, temperature=0, **SERVER)
    answer = chat.invoke(QUESTION)
    check("ChatOpenAI.invoke", "Paris" in answer.text, answer)
    check("ChatOpenAI.batch", [bool(each.usage_metadata) for each in chat.batch(list(TOPICS))] == [True] * 3)
    texts = OpenAI(max_tokens=4, **SERVER).generate(list(TOPICS)).generations
    check("OpenAI.generate", len(texts) == 3 and all(generations[0].text for generations in texts), texts)
    wrong = error_of(lambda: ChatOpenAI(top_p=2, **SERVER).invoke(QUESTION), openai.BadRequestError)
    check("a wrong value is a BadRequestError with its name", wrong.param == "top_p", wrong)


if __name__ == "__main__":
    main()
