from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from openai.types import Completion as OpenAICompletion
from openai.types.chat import ChatCompletion

from container.core import Call, Chat, Completion, Parameters, Prompt, Result, Text, TokenIds, TokenLogprob
from container.dialects.chat import read_chat
from container.dialects.completions import read_completion
from container.errors import InvalidRequest
from testing.container.documents import rendered

CANARY = "kept-secret"
MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**given: Any) -> Call:
    return read_chat({"messages": MESSAGES} | given)


def completion(**given: Any) -> Call:
    return read_completion({"prompt": "Once"} | given)


def messages(*given: dict[str, Any]) -> list[dict[str, Any]]:
    prompt = chat(messages=list(given)).items[0].prompt
    assert isinstance(prompt, Chat)
    return list(prompt.messages)


def prompts(prompt: object) -> list[Prompt]:
    return [item.prompt for item in completion(prompt=prompt).items]


def result(*texts: str, prompt_tokens: int = 3) -> Result:
    completions = tuple(Completion(text=text, token_ids=(5, 6), finish_reason="length", seed=9) for text in texts)
    return Result(prompt_text="prompt:", prompt_tokens=prompt_tokens, completions=completions)


def chat_refusal(**given: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        chat(**given)
    assert CANARY not in caught.value.message
    return caught.value


def completion_refusal(**given: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        completion(**given)
    assert CANARY not in caught.value.message
    return caught.value


def test_messages_keep_their_roles() -> None:
    roles = ("system", "developer", "user", "assistant", "tool")
    read = messages(*({"role": role, "content": "a"} for role in roles))
    assert [message["role"] for message in read] == list(roles)


def test_several_text_parts_stay_parts() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert messages({"role": "user", "content": parts}) == [{"role": "user", "content": parts}]
    assert messages({"role": "user", "content": parts[:1]}) == [{"role": "user", "content": "one "}]


def test_an_assistant_may_have_said_nothing() -> None:
    assert messages({"role": "assistant", "content": None}) == [{"role": "assistant", "content": ""}]


def test_an_answers_message_can_be_sent_back() -> None:
    answer = ChatCompletion.model_validate(rendered(chat(), result("Hello")))
    message = answer.choices[0].message.model_dump()
    assert messages(message) == [{"role": "assistant", "content": "Hello"}]


def test_a_tools_message_keeps_its_call() -> None:
    message = {"role": "tool", "content": "4", "tool_call_id": "call-1", "name": "sum"}
    assert messages(message) == [message]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (CANARY, "messages"),
        ([], "messages"),
        ([CANARY], "messages[0]"),
        ([{"role": f"a {CANARY}", "content": "a"}], "messages[0].role"),
        ([{"content": CANARY}], "messages[0].role"),
        ([*MESSAGES, {"role": "user", "content": None}], "messages[1].content"),
        ([*MESSAGES, {"role": "user", "content": 3}], "messages[1].content"),
        ([{"role": "user", "content": [3]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": CANARY}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": "a", "images": [CANARY]}], "messages[0].images"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{"id": CANARY}]}], "messages[0].tool_calls[0].function"),
    ],
)
def test_bad_message_is_named_by_path(given: object, param: str) -> None:
    assert chat_refusal(messages=given).param == param


def test_a_prompt_is_one_text_or_several() -> None:
    assert prompts("a") == [Text(text="a")]
    assert prompts(["a", "b"]) == [Text(text="a"), Text(text="b")]


def test_prompt_may_be_token_ids() -> None:
    assert prompts([1, 2]) == [TokenIds(ids=(1, 2))]
    assert prompts([[1, 2], [3]]) == [TokenIds(ids=(1, 2)), TokenIds(ids=(3,))]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        (None, "prompt"),
        ({"text": CANARY}, "prompt"),
        ([1.5], "prompt"),
        ([CANARY, ""], "prompt[1]"),
        ([CANARY, 1], "prompt[1]"),
        ([1, CANARY], "prompt[1]"),
        ([1, -1], "prompt[1]"),
        ([1, True], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        ([[1], [1, CANARY]], "prompt[1][1]"),
    ],
)
def test_bad_prompt_is_named_by_path(given: object, param: str) -> None:
    assert completion_refusal(prompt=given).param == param


def test_too_many_texts_are_refused_with_numbers() -> None:
    error = completion_refusal(prompt=["a"] * 79, n=128)
    assert (error.param, error.code) == ("n", "invalid_value")
    assert all(number in error.message for number in ("79", "128", "10000"))
    assert len(completion(prompt=["a"] * 78, n=128).items) == 78


def test_parameters_of_both_kinds_reach_the_items() -> None:
    expected = Parameters(
        max_new_tokens=7,
        min_new_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=4,
        n=2,
        stop=("x",),
        stop_token_ids=(4,),
        ignore_eos=True,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        logit_bias=((5, -100.0),),
    )
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 4, "n": 2, "stop": "x", "min_tokens": 2}
    given |= {"stop_token_ids": [4], "ignore_eos": True, "max_tokens": 7, "min_p": 0.1, "repetition_penalty": 1.2}
    given |= {"presence_penalty": -1, "frequency_penalty": 0.5, "logit_bias": {"5": -100}}
    assert chat(**given).items[0].parameters == expected
    assert completion(**given).items[0].parameters == expected


def test_top_k_is_off_at_minus_one() -> None:
    assert chat(top_k=-1).items[0].parameters.top_k == 0


def test_max_completion_tokens_is_newer_name() -> None:
    (item,) = chat(max_completion_tokens=5).items
    assert item.parameters.max_new_tokens == 5
    assert item.name_of("max_new_tokens") == "max_completion_tokens"
    assert chat(max_completion_tokens=5, max_tokens=5).items[0].parameters.max_new_tokens == 5
    assert chat_refusal(max_completion_tokens=5, max_tokens=6).param == "max_completion_tokens"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", CANARY),
        ("temperature", 1_000_001),
        ("temperature", -1),
        ("temperature", CANARY),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", CANARY),
        ("logit_bias", {CANARY: 1}),
        ("logit_bias", {"5": 101}),
        ("n", 0),
        ("n", 129),
        ("stop", [CANARY] * 129),
        ("stop", [3]),
        ("seed", -(2**63) - 1),
        ("min_tokens", -1),
        ("ignore_eos", CANARY),
        ("stop_token_ids", [-1]),
        ("model", [CANARY]),
    ],
)
def test_a_parameter_out_of_range_is_named(name: str, value: object) -> None:
    for error in (chat_refusal(**{name: value}), completion_refusal(**{name: value})):
        assert error.message.startswith(f"{name} must be ")
        assert error.param is not None and error.param.startswith(name)


@pytest.mark.parametrize(
    "name",
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options"],
)
def test_field_without_effect_is_taken(name: str) -> None:
    assert chat(**{name: CANARY}).items[0].parameters == Parameters()
    assert completion(**{name: CANARY}).items[0].parameters == Parameters()


@pytest.mark.parametrize(
    ("name", "neutral", "value"),
    [
        ("stream", False, True),
        ("response_format", {"type": "text"}, {"type": "json_object"}),
        ("tool_choice", "none", "required"),
        ("tool_choice", "auto", {"type": "function"}),
        ("moderation", None, {"model": "omni"}),
        ("return_token_ids", False, True),
    ],
)
def test_unsupported_field_is_taken_if_neutral(name: str, neutral: object, value: object) -> None:
    assert chat(**{name: neutral}).items[0].parameters == Parameters()
    error = chat_refusal(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_completions_have_neutral_values_of_their_own() -> None:
    assert completion(suffix="", logprobs=None, best_of=2, n=2).items[0].parameters == Parameters(n=2)
    for given in ({"suffix": CANARY}, {"echo": True, "logprobs": 0}, {"best_of": 2}):
        assert completion_refusal(**given).code == "unsupported_parameter"


def test_streaming_is_refused_with_its_reason() -> None:
    assert "asynchronous inference refuses" in chat_refusal(stream=True).message


def test_unknown_fields_are_named_all_together() -> None:
    error = completion_refusal(tempature=CANARY, max_token=CANARY)
    assert error.code == "unknown_parameter"
    assert "unknown fields tempature, max_token; known are " in error.message


def test_another_dialects_field_is_named_as_such() -> None:
    error = completion_refusal(messages=[CANARY])
    assert (error.param, error.message) == ("messages", "messages is another dialect's: leave it out")
    assert chat_refusal(prompt=CANARY).message == "prompt is another dialect's: leave it out"


@pytest.mark.parametrize("name", [f"a {CANARY}", f"{CANARY}\n", CANARY + "x" * 30, "ü" + CANARY, "5" + CANARY, ""])
def test_odd_field_name_is_counted_not_shown(name: str) -> None:
    error = completion_refusal(**{name: 1})
    assert (error.param, error.code) == (None, "unknown_parameter")
    assert error.message.startswith("the document has 1 unknown field; known are temperature, ")
    assert completion_refusal(**{name: 1, "max_token": 1}).message.startswith("unknown fields max_token and 1 more; ")
    assert chat_refusal(**{name: 1}).message.startswith("the document has 1 unknown field; ")


def test_openais_own_client_reads_a_chats_answer() -> None:
    body = chat(n=2).render([result("one", "two")], "served")
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert [choice.message.content for choice in answer.choices] == ["one", "two"]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.total_tokens == 3 + 4


def test_openais_own_client_reads_a_completions_answer() -> None:
    body = completion().render([result("one")], "served")
    answer = OpenAICompletion.model_validate_json(body, strict=True)
    assert (answer.object, answer.choices[0].text, answer.choices[0].index) == ("text_completion", "one", 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_chat_asks_for_logprobs_by_two_fields(given: dict[str, Any], expected: int | None) -> None:
    assert chat(**given).items[0].parameters.logprobs == expected


def test_top_logprobs_need_logprobs() -> None:
    for given in ({"top_logprobs": 3}, {"top_logprobs": 3, "logprobs": False}, {"top_logprobs": 21, "logprobs": True}):
        assert chat_refusal(**given).param == "top_logprobs"
    assert chat_refusal(logprobs=3).param == "logprobs"


def test_completion_asks_for_logprobs_by_one_field() -> None:
    assert [completion(logprobs=n).items[0].parameters.logprobs for n in (None, 0, 20)] == [None, 0, 20]
    for value in (21, -1, True):
        assert completion_refusal(logprobs=value).param == "logprobs"


HALF = TokenLogprob(id=8, text=" \\xe6", utf8=b" \xe6", logprob=-3.0)
END = TokenLogprob(id=2, text="<|im_end|>", utf8=None, logprob=-0.25)
SEA = TokenLogprob(id=5, text=" sea", utf8=b" sea", logprob=-1.5, top=(END,))
SCORED = Result(
    prompt_text="prompt:",
    prompt_tokens=1,
    completions=(
        Completion(
            text=" sea \ufffd",
            token_ids=(5, 8),
            finish_reason="length",
            seed=None,
            logprobs=(SEA, replace(HALF, offset=4)),
        ),
    ),
)


def test_openai_client_reads_chat_logprobs() -> None:
    body = chat(logprobs=True, top_logprobs=1).render([SCORED], "served")
    logprobs = ChatCompletion.model_validate_json(body, strict=True).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    first, second = logprobs.content
    assert (first.token, first.bytes, first.logprob) == (" sea", list(b" sea"), -1.5)
    assert [(top.token, top.bytes, top.logprob) for top in first.top_logprobs] == [("<|im_end|>", None, -0.25)]
    assert (second.token, second.bytes, second.top_logprobs) == (" \\xe6", list(b" \xe6"), [])


def test_openai_client_reads_completion_logprobs() -> None:
    body = completion(logprobs=1).render([SCORED], "served")
    logprobs = OpenAICompletion.model_validate_json(body, strict=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [" sea", "bytes: \\xe6"]
    assert logprobs.token_logprobs == [-1.5, -3.0]
    assert logprobs.text_offset == [0, 4]
    # The chosen token is always among them.
    assert logprobs.top_logprobs == [{"<|im_end|>": -0.25, " sea": -1.5}, {"bytes: \\xe6": -3.0}]


def test_answer_without_logprobs_has_null() -> None:
    assert rendered(chat(), result("a"))["choices"][0]["logprobs"] is None


def test_choices_are_numbered_by_prompt_first() -> None:
    call = completion(prompt=["a", "b"], n=2)
    answer = rendered(call, result("a0", "a1"), result("b0", "b1"))
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(
        enumerate(["a0", "a1", "b0", "b1"])
    )


def test_usage_counts_prompts_once() -> None:
    call = completion(prompt=["a", "b"], n=2)
    usage = rendered(call, result("a0", "a1", prompt_tokens=10), result("b0", "b1", prompt_tokens=1))["usage"]
    assert usage == {"prompt_tokens": 11, "completion_tokens": 8, "total_tokens": 19}


def test_echo_puts_the_prompt_before_the_text() -> None:
    assert rendered(completion(echo=True), result(" more"))["choices"][0]["text"] == "prompt: more"


def test_answer_has_requested_or_served_model() -> None:
    assert rendered(chat(model="any/name"), result("a"))["model"] == "any/name"
    assert rendered(chat(), result("a"))["model"] == "served"


def test_every_choice_has_its_seed() -> None:
    assert rendered(chat(), result("a"))["choices"][0]["seed"] == 9


def test_openai_samples_by_default() -> None:
    assert chat().items[0].sample_by_default
    assert completion().items[0].sample_by_default
