"""LlamaIndex' package for servers with OpenAI's API."""

from __future__ import annotations

import asyncio
import os

import openai
from llama_index.core.llms import ChatMessage, CompletionResponse
from llama_index.llms.openai_like import OpenAILike

from clients.checks import check, error_of
from clients.requests_sent import QUESTION, TOPICS

SERVER = {"api_base": f"{os.environ['LONGHAUL_URL']}/v1", "api_key": "unused", "model": "any", "max_retries": 0}


async def complete_all(model: OpenAILike) -> list[CompletionResponse]:
    return await asyncio.gather(*(model.acomplete(topic) for topic in TOPICS))


def main() -> None:
    chat = OpenAILike(is_chat_model=True, temperature=0, max_tokens=20, **SERVER)
    answer = chat.chat([ChatMessage(role="user", content=QUESTION)])
    check("chat", "Paris" in (answer.message.content or ""), answer)
    texts = asyncio.run(complete_all(OpenAILike(is_chat_model=False, max_tokens=4, **SERVER)))
    check("acomplete, three at once", all(each.text for each in texts), texts)
    nucleus = OpenAILike(is_chat_model=True, additional_kwargs={"top_p": 2}, **SERVER)
    wrong = error_of(lambda: nucleus.complete(QUESTION), openai.BadRequestError)
    check("a wrong value is a BadRequestError with its name", wrong.param == "top_p", wrong)


if __name__ == "__main__":
    main()
