"""The official client against `/v1`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from testing.server import Server

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
LONG = {"ignore_eos": True}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mine", messages=MESSAGES, max_tokens=8, extra_body=LONG)
    assert (answer.model, answer.choices[0].finish_reason) == ("mine", "length")
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="mine", prompt=["One", "Two"], max_tokens=4, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_completions_of_token_ids_with_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="mine", prompt=[504, 260, 314], max_tokens=4, echo=True)
    assert answer.choices[0].text.startswith("The the is")


def test_n_and_seed(client: openai.OpenAI) -> None:
    def ask() -> list[str | None]:
        answer = client.chat.completions.create(
            model="mine", messages=MESSAGES, n=3, seed=11, max_tokens=8, extra_body=LONG
        )
        return [choice.message.content for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3 and ask() == first


def test_texts_without_seed_differ(client: openai.OpenAI) -> None:
    texts = {
        client.completions.create(model="mine", prompt="One", max_tokens=8, extra_body=LONG).choices[0].text
        for _ in range(3)
    }
    assert len(texts) == 3


def test_stop(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="mine", prompt="One", temperature=0, max_tokens=20, extra_body=LONG)
    text = whole.choices[0].text
    stop = next(text[at : at + 2] for at in range(4, len(text)) if text[at : at + 2].isascii())
    cut = client.completions.create(
        model="mine", prompt="One", temperature=0, max_tokens=20, stop=[stop], extra_body=LONG
    )
    assert (cut.choices[0].text, cut.choices[0].finish_reason) == (text[: text.index(stop)], "stop")


def test_bad_value_raises_bad_request_with_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="mine", messages=MESSAGES, temperature=-1)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")


def test_unsupported_parameter_raises_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="mine", messages=MESSAGES, stream=True)
    assert (caught.value.param, caught.value.code) == ("stream", "unsupported_parameter")


def test_unknown_path_raises_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="mine", input="One")
    assert caught.value.code == "not_found"


def test_only_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_logprobs_with_top_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="mine", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2, temperature=0, extra_body=LONG
    )
    scored = answer.choices[0].logprobs
    assert scored is not None and scored.content is not None
    assert len(scored.content) == 4
    assert all(
        token.logprob == token.top_logprobs[0].logprob > token.top_logprobs[1].logprob for token in scored.content
    )


def test_penalties_and_bias_change_the_text(client: openai.OpenAI) -> None:
    def ask(**parameters: Any) -> str | None:
        answer = client.chat.completions.create(
            model="mine", messages=MESSAGES, max_tokens=8, temperature=0, extra_body=LONG, **parameters
        )
        return answer.choices[0].message.content

    assert ask(logit_bias={"19556": 100}) == "Hello" * 8
    assert ask(logit_bias={"19556": 100}, frequency_penalty=2.0, presence_penalty=2.0) is not None


def test_chat_cut_by_deadline(client: openai.OpenAI) -> None:
    deadline = {"X-Amzn-SageMaker-Custom-Attributes": "timeout=2"}
    answer = client.chat.completions.create(
        model="mine", messages=MESSAGES, max_tokens=8000, extra_body=LONG, extra_headers=deadline
    )
    assert str(answer.choices[0].finish_reason) == "deadline" and answer.choices[0].message.content
