from __future__ import annotations

from typing import Any

import pytest

from container.core import Chat, Completion, Parameters, Prompt, Result, Text, TokenLogprob
from container.dialects.huggingface import read_request
from container.errors import InvalidRequest
from testing.container.documents import rendered

CANARY = "kept-secret"
USER = {"role": "user", "content": "Hi"}


def result(*texts: str, seed: int | None = None) -> Result:
    completions = tuple(Completion(text=text, token_ids=(5, 6), finish_reason="stop", seed=seed) for text in texts)
    return Result(prompt_text="prompt:", prompt_tokens=3, completions=completions)


def prompts(inputs: object) -> list[Prompt]:
    return [item.prompt for item in read_request({"inputs": inputs}).items]


def parameters(**given: Any) -> Parameters:
    return read_request({"inputs": "a", "parameters": given}).items[0].parameters


def refusal(document: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_request(document)
    assert CANARY not in caught.value.message
    return caught.value


def test_a_string_is_one_text() -> None:
    assert prompts("Once upon") == [Text(text="Once upon")]


def test_list_of_strings_is_several_texts() -> None:
    assert prompts(["a", "b"]) == [Text(text="a"), Text(text="b")]


def test_messages_are_one_chat() -> None:
    assert prompts([USER]) == [Chat(messages=(USER,))]


def test_lists_of_messages_are_a_chat_each() -> None:
    assert prompts([[USER], [USER, USER]]) == [Chat(messages=(USER,)), Chat(messages=(USER, USER))]


def test_each_input_is_named_by_index() -> None:
    assert [item.param for item in read_request({"inputs": ["a", "b"]}).items] == ["inputs[0]", "inputs[1]"]
    assert [item.param for item in read_request({"inputs": [USER]}).items] == ["inputs"]


def test_null_is_the_same_as_absent() -> None:
    nothing = {
        name: None for name in ("temperature", "stop", "seed", "details", "repetition_penalty", "stop_token_ids")
    }
    assert parameters(**nothing) == Parameters()
    assert read_request({"inputs": "a", "parameters": None}).items[0].parameters == Parameters()


def test_every_parameter_reaches_the_item() -> None:
    assert parameters(
        max_new_tokens=7,
        min_new_tokens=2,
        do_sample=True,
        temperature=0.5,
        top_k=3,
        top_p=1,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1,
        frequency_penalty=0.5,
        logit_bias={"5": -100, "0": 0.5},
        logprobs=2,
        details=True,
        seed=2**64 - 1,
        stop=["x"],
        stop_token_ids=[4],
        ignore_eos=True,
        num_return_sequences=2,
    ) == Parameters(
        max_new_tokens=7,
        min_new_tokens=2,
        do_sample=True,
        temperature=0.5,
        top_k=3,
        top_p=1.0,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        logit_bias=((5, -100.0), (0, 0.5)),
        logprobs=2,
        seed=2**64 - 1,
        stop=("x",),
        stop_token_ids=(4,),
        ignore_eos=True,
        n=2,
    )


@pytest.mark.parametrize("name", ["stop", "stop_sequences", "stop_strings"])
def test_stop_strings_have_three_names(name: str) -> None:
    assert parameters(**{name: "END"}).stop == ("END",)
    assert parameters(**{name: ["END", "\n"]}).stop == ("END", "\n")
    assert parameters(**{name: []}).stop == ()


def test_two_names_for_stop_strings_are_refused() -> None:
    error = refusal({"inputs": "a", "parameters": {"stop": CANARY, "stop_strings": CANARY}})
    assert error.param == "parameters.stop_strings"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_new_tokens", 0, "1 or more"),
        ("max_new_tokens", 1.5, "integer"),
        ("max_new_tokens", True, "integer"),
        ("max_new_tokens", CANARY, "integer"),
        ("max_new_tokens", 2**31, "integer"),
        ("min_new_tokens", -1, "0 or more"),
        ("do_sample", 1, "true or false"),
        ("do_sample", CANARY, "true or false"),
        ("temperature", -0.1, "0 .* to 1,000,000"),
        ("temperature", 1e39, "0 .* to 1,000,000"),
        ("temperature", 10**400, "0 .* to 1,000,000"),
        ("temperature", [CANARY], "number"),
        ("top_k", -2, "1 or more, or 0 or -1"),
        ("top_p", -0.1, "from 0 .* to 1"),
        ("top_p", 1.01, "from 0 .* to 1"),
        ("min_p", -0.1, "from 0 .* to 1"),
        ("min_p", 1.01, "from 0 .* to 1"),
        ("repetition_penalty", 0, "above 0 and at most 10"),
        ("repetition_penalty", 10.1, "above 0 and at most 10"),
        ("presence_penalty", 2.1, "-2 to 2"),
        ("frequency_penalty", -2.1, "-2 to 2"),
        ("frequency_penalty", CANARY, "-2 to 2"),
        ("logit_bias", [5], "object of at most 1024"),
        ("logit_bias", {str(token_id): 1 for token_id in range(1025)}, "object of at most 1024"),
        ("logit_bias", {CANARY: 1}, "token ids"),
        ("logit_bias", {"-1": 1}, "token ids"),
        ("logit_bias", {"05": 1}, "token ids"),
        ("logit_bias", {"5": 100.5}, "-100 to 100"),
        ("logit_bias", {"5": True}, "-100 to 100"),
        ("logit_bias", {"5": CANARY}, "-100 to 100"),
        ("logprobs", 21, "0 to 20"),
        ("logprobs", True, "0 to 20"),
        ("seed", -(2**63) - 1, r"to 2\*\*64 - 1"),
        ("seed", 2**64, r"to 2\*\*64 - 1"),
        ("truncate", 0, "1 or more, or -1"),
        ("stop", CANARY * 1000, "at most 1000 characters"),
        ("stop", [CANARY] * 129, "up to 128"),
        ("stop", [CANARY, 3], "up to 128"),
        ("stop_token_ids", 3, "list of at most 128"),
        ("stop_token_ids", list(range(129)), "list of at most 128"),
        ("num_return_sequences", 0, "1 to 128"),
        ("num_return_sequences", 129, "1 to 128"),
        ("return_full_text", CANARY, "true or false"),
        ("details", CANARY, "true or false"),
    ],
)
def test_parameter_out_of_range_names_expectation(name: str, value: object, expected: str) -> None:
    error = refusal({"inputs": CANARY, "parameters": {name: value}})
    assert error.param == f"parameters.{name}"
    assert error.message.startswith(f"parameters.{name} must be ")
    with pytest.raises(InvalidRequest, match=expected):
        raise error


def test_wrong_list_entry_is_named_by_index() -> None:
    assert (
        refusal({"inputs": "a", "parameters": {"stop_token_ids": [1, CANARY]}}).param == "parameters.stop_token_ids[1]"
    )


@pytest.mark.parametrize(
    ("inputs", "param"),
    [
        ("", "inputs"),
        ([], "inputs"),
        ({"text": CANARY}, "inputs"),
        (7, "inputs"),
        ([7], "inputs"),
        ([CANARY, ""], "inputs[1]"),
        ([CANARY, 7], "inputs[1]"),
        ([USER, CANARY], "inputs[1]"),
        ([[USER], []], "inputs[1]"),
        ([[USER], USER], "inputs[1]"),
        ([{"role": f"a {CANARY}", "content": "a"}], "inputs[0].role"),
        ([{"role": "user"}], "inputs[0].content"),
        ([[USER], [USER, {"role": "user", "content": [{"type": CANARY}]}]], "inputs[1][1].content[0].type"),
        ([CANARY] * 10_001, "inputs"),
    ],
)
def test_bad_inputs_are_named_by_their_path(inputs: object, param: str) -> None:
    assert refusal({"inputs": inputs}).param == param


def test_too_many_texts_name_num_return_sequences() -> None:
    error = refusal({"inputs": ["a"] * 5001, "parameters": {"num_return_sequences": 2}})
    assert error.param == "parameters.num_return_sequences"


@pytest.mark.parametrize("given", [7, [CANARY], CANARY])
def test_parameters_must_be_an_object(given: object) -> None:
    assert refusal({"inputs": "a", "parameters": given}).param == "parameters"


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({"inputs": "a", "parameters": {"tempature": CANARY}}, "parameters.tempature"),
        ({"inputs": "a", "temperature": CANARY}, "temperature"),
    ],
)
def test_unknown_field_lists_known_ones(document: dict[str, Any], param: str) -> None:
    error = refusal(document)
    assert (error.param, error.code) == (param, "unknown_parameter")
    assert "known are" in error.message


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [("typical_p", 0.9, 1.0), ("num_beams", 4, 1), ("watermark", True, False), ("grammar", {}, None)],
)
def test_unsupported_parameter_is_taken_if_neutral(name: str, value: object, neutral: object) -> None:
    assert parameters(**{name: neutral}) == Parameters()
    error = refusal({"inputs": "a", "parameters": {name: value}})
    assert (error.param, error.code) == (f"parameters.{name}", "unsupported_parameter")


def test_answer_is_flat_list_in_order() -> None:
    call = read_request({"inputs": ["a", "b"], "parameters": {"num_return_sequences": 2}})
    answer = rendered(call, result("a1", "a2"), result("b1", "b2"))
    assert answer == [{"generated_text": text} for text in ("a1", "a2", "b1", "b2")]


def test_full_text_is_prompt_and_output() -> None:
    call = read_request({"inputs": "a", "parameters": {"return_full_text": True}})
    assert rendered(call, result(" new")) == [{"generated_text": "prompt: new"}]


def test_details_have_finish_reason_and_seed() -> None:
    call = read_request({"inputs": "a", "parameters": {"details": True}})
    (generated,) = rendered(call, result("new", seed=7))
    assert generated["details"] == {"finish_reason": "stop", "prompt_tokens": 3, "generated_tokens": 2, "seed": 7}


def test_details_have_tokens_with_logprobs() -> None:
    rival = TokenLogprob(id=7, text=" sky", utf8=b" sky", logprob=-2.0)
    token = TokenLogprob(id=5, text=" sea", utf8=b" sea", logprob=-0.5, top=(rival,))
    completion = Completion(text=" sea", token_ids=(5, 2), finish_reason="stop", seed=None, logprobs=(token,))
    call = read_request({"inputs": "a", "parameters": {"details": True, "logprobs": 1}})
    (generated,) = rendered(call, Result(prompt_text="a", prompt_tokens=1, completions=(completion,)))
    top = [{"id": 7, "text": " sky", "logprob": -2.0}]
    assert generated["details"]["tokens"] == [{"id": 5, "text": " sea", "logprob": -0.5, "top": top}]


def test_logprobs_without_details_are_refused() -> None:
    error = refusal({"inputs": "a", "parameters": {"logprobs": 0}})
    assert (error.param, "details" in error.message) == ("parameters.logprobs", True)


def test_huggingface_is_greedy_by_default() -> None:
    assert not read_request({"inputs": "a"}).items[0].sample_by_default
