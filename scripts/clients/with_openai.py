"""OpenAI's client for Python."""

from __future__ import annotations

import asyncio
import os

import openai
from openai.types.chat import ChatCompletionMessageParam

from clients.checks import check, error_of
from clients.requests_sent import QUESTION, TOPICS

URL = f"{os.environ['LONGHAUL_URL']}/v1"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]


async def ask_at_once(count: int) -> list[str | None]:
    async with openai.AsyncOpenAI(base_url=URL, api_key="unused") as client:
        asked = [client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=8) for _ in range(count)]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]


def main() -> None:
    with openai.OpenAI(base_url=f"{URL}/", api_key="unused", max_retries=0) as client:
        chat = client.chat.completions.create(model="any", messages=MESSAGES, max_tokens=20, temperature=0)
        text = chat.choices[0].message.content or ""
        check("chat.completions.create", "Paris" in text, text)
        several = client.completions.create(model="any", prompt=list(TOPICS), max_tokens=4, n=2)
        check("completions.create of a list", [choice.index for choice in several.choices] == list(range(6)), several)
        check("sixteen at once", all(asyncio.run(ask_at_once(16))))
        (model,) = client.models.list()
        check("models.retrieve", client.models.retrieve(model.id) == model)
        wrong = error_of(
            lambda: client.chat.completions.create(model="any", messages=MESSAGES, top_p=2),
            openai.BadRequestError,
        )
        check("a wrong value is a BadRequestError with its name", wrong.param == "top_p", wrong)
        gone = error_of(lambda: client.responses.create(model="any", input=QUESTION), openai.NotFoundError)
        check("responses.create says what is served", "POST /v1/chat/completions" in gone.message, gone)
        gone = error_of(lambda: client.batches.list(), openai.NotFoundError)
        check("batches.list says what is served", "POST /invocations" in gone.message, gone)


if __name__ == "__main__":
    main()
