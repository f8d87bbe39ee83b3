"""Requests that say the same in another way: what they ask for is served, and nothing of it is lost in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container.core import Chat, Completion, Result
from container.dialects.chat import read_chat
from container.dialects.completions import read_completion
from container.dialects.huggingface import read_request
from container.errors import InvalidRequest
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import Prepared, Preparer
from container.tokenization.tokenizer import Tokenizer
from testing import tiny_tokenizers
from testing.container.documents import read_document, rendered

CANARY = "kept-secret"
TEMPLATE = """{{ messages | tojson }}{{ tools | tojson }}{{ documents | tojson }}{{ enable_thinking }}
{%- if messages[0].tool_calls %} {% endif %}"""
"""A chat template that shows all that it is given, and has a variable of its own."""
USER = {"role": "user", "content": "the sea"}
TOOL = {"type": "function", "function": {"name": "sea.tide"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "sea.tide", "arguments": "{}"}}
LENGTH = 20_000
READERS = {"messages": read_chat, "prompt": read_completion, "inputs": read_request}


def preparer(template: str = TEMPLATE) -> Preparer:
    backend = tiny_tokenizers.byte_fallback(chat_template=template)
    return Preparer(
        tokenizer=Tokenizer(backend, len(backend)),
        defaults=ModelDefaults(eos_token_ids=(backend.eos_token_id,), vocab_size=len(backend)),
        max_sequence_tokens=LENGTH,
        default_max_new_tokens=9,
    )


PREPARER = preparer()


def prepared(document: dict[str, Any], using: Preparer = PREPARER) -> list[Prepared]:
    (read,) = [READERS[name] for name in READERS if name in document]
    return [using.prepare(item, 1) for item in read(json.loads(json.dumps(document))).items]


def chat(*messages: dict[str, Any], **given: Any) -> dict[str, Any]:
    return {"messages": list(messages) or [USER]} | given


def completion(**given: Any) -> dict[str, Any]:
    return {"prompt": "the sea"} | given


def text(document: dict[str, Any], template: str = TEMPLATE) -> str:
    return prepared(document, preparer(template))[0].prompt_text


def refusal(document: dict[str, Any], template: str = TEMPLATE) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        prepared(document, preparer(template))
    assert CANARY not in caught.value.message
    return caught.value


def answered(content: Any = None, **given: Any) -> dict[str, Any]:
    return chat(USER, {"role": "assistant", "content": content} | given, USER)


def called(**function: Any) -> dict[str, Any]:
    return answered(tool_calls=[CALL | {"function": {"name": "sea.tide"} | function}])


SAME = {
    "null under an unknown name": (chat(guided_decoding=None), chat()),
    "null in a message": (chat(USER | {"refusal": None, "tool_calls": None, "mood": None}), chat()),
    "null in a response format": (chat(response_format={"type": "text", "json_schema": None}), chat()),
    "null in a bias": (chat(logit_bias={"5": 1, "7": None}), chat(logit_bias={"5": 1})),
    "whole float as limit": (chat(max_tokens=64.0, n=2.0, seed=7.0), chat(max_tokens=64, n=2, seed=7)),
    "whole float as token id": (completion(prompt=[5.0, 7.0]), completion(prompt=[5, 7])),
    "whole float as stop token": (completion(stop_token_ids=[5.0]), completion(stop_token_ids=[5])),
    "seed below zero": (chat(seed=-2), chat(seed=2**64 - 2)),
    "seed of minus one": (chat(seed=-1), chat()),
    "limit of minus one": (completion(max_tokens=-1), completion()),
    "top_k of minus one": (
        {"inputs": "the", "parameters": {"do_sample": True, "top_k": -1}},
        {"inputs": "the", "parameters": {"do_sample": True, "top_k": 0}},
    ),
    "empty stop string": (chat(stop=""), chat()),
    "empty string among stops": (chat(stop=["", "x"]), chat(stop=["x"])),
    "stream options without stream": (chat(stream=False, stream_options={"include_usage": True}), chat()),
    "scheduling and caching": (chat(priority=1, cache_salt="a", prompt_cache_options={"mode": "explicit"}), chat()),
    "predicted output": (chat(prediction={"type": "content", "content": "low"}), chat()),
    "defaults of a vLLM client": (chat(use_beam_search=False, length_penalty=1.0, include_reasoning=True), chat()),
    "options of the hub": (
        {"inputs": "the", "options": {"wait_for_model": True}, "parameters": {"use_cache": True, "pad_token_id": 0}},
        {"inputs": "the"},
    ),
    "cache control in a part": (
        chat(USER | {"content": [{"type": "text", "text": "the sea", "cache_control": {"type": "ephemeral"}}]}),
        chat(),
    ),
    "part without type": (chat(USER | {"content": [{"text": "the sea"}]}), chat()),
    "string as part": (chat(USER | {"content": ["the sea"]}), chat()),
    "part of the responses API": (chat(USER | {"content": [{"type": "input_text", "text": "the sea"}]}), chat()),
    "refusal as part": (answered([{"type": "refusal", "refusal": "no"}]), answered("no")),
    "refusal as field": (answered(None, refusal="no"), answered("no")),
    "functions": (chat(functions=[TOOL["function"]], function_call="auto"), chat(tools=[TOOL])),
    "function call": (
        answered(function_call=CALL["function"]),
        answered(tool_calls=[{"function": CALL["function"]}]),
    ),
    "function's result": (
        chat(USER, {"role": "function", "name": "sea.tide", "content": "low"}),
        chat(USER, {"role": "tool", "name": "sea.tide", "content": "low"}),
    ),
    "tool without type": (chat(tools=[{"function": TOOL["function"]}]), chat(tools=[TOOL])),
    "tool result in parts": (
        chat(USER, {"role": "tool", "content": [{"type": "text", "text": "low"}], "tool_call_id": "c1"}),
        chat(USER, {"role": "tool", "content": "low", "tool_call_id": "c1"}),
    ),
    "tool result of null": (
        chat(USER, {"role": "tool", "content": None, "tool_call_id": "c1"}),
        chat(USER, {"role": "tool", "content": "", "tool_call_id": "c1"}),
    ),
    "empty arguments": (called(arguments=""), called(arguments={})),
    "empty list as arguments": (called(arguments=[]), called(arguments={})),
    "null as arguments": (called(arguments="null"), called(arguments={})),
    "template variable at top level": (
        chat(enable_thinking=False),
        chat(chat_template_kwargs={"enable_thinking": False}),
    ),
    "no reasoning effort": (chat(reasoning_effort="none"), chat(chat_template_kwargs={"enable_thinking": False})),
    "reasoning effort": (chat(reasoning_effort="low"), chat(chat_template_kwargs={"enable_thinking": True})),
}


@pytest.mark.parametrize(("sent", "meant"), SAME.values(), ids=SAME.keys())
def test_request_is_taken_as_meant(sent: dict[str, Any], meant: dict[str, Any]) -> None:
    assert prepared(sent) == prepared(meant)


SHOWN = {
    "reasoning content": (answered("low", reasoning_content="a tide"), '"reasoning_content": "a tide"'),
    "reasoning under its older name": (answered("low", reasoning="a tide"), '"reasoning_content": "a tide"'),
    "role of its own": (chat(USER, {"role": "ipython", "content": "low"}), '"role": "ipython"'),
    "role without content": (chat(USER, {"role": "documents", "pages": ["low"]}), '"pages": ["low"]'),
    "name": (chat(USER | {"name": "Ana"}), '"name": "Ana"'),
    "broken arguments": (called(arguments='{"when": "no'), '"arguments": "{\\"when\\": \\"no"'),
    "arguments in single quotes": (
        called(arguments="{'format': 'celsius'}"),
        "\"arguments\": \"{'format': 'celsius'}\"",
    ),
    "fields of a tool call": (answered(tool_calls=[CALL | {"index": 0}]), '"index": 0'),
    "fields of a tool": (chat(tools=[TOOL | {"cache_control": {"type": "ephemeral"}}]), '"cache_control"'),
    "hundreds of tools": (chat(tools=[TOOL] * 300), '"sea.tide"'),
    "documents": (chat(documents=[{"title": "Tides", "text": "low"}]), '[{"title": "Tides", "text": "low"}]'),
}


@pytest.mark.parametrize(("sent", "shown"), SHOWN.values(), ids=SHOWN.keys())
def test_field_reaches_template(sent: dict[str, Any], shown: str) -> None:
    assert shown in text(sent)


SILENT = "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}"
"""A chat template that passes over every role but one, and reads nothing else."""
LOST = {
    "audio of an answer": (answered("low", audio={"id": CANARY}), TEMPLATE, "messages[1].audio"),
    "images beside the content": (chat(USER | {"images": [CANARY]}), TEMPLATE, "messages[0].images"),
    "image as part": (
        chat(USER | {"content": [{"type": "image_url", "image_url": {"url": CANARY}}]}),
        TEMPLATE,
        "messages[0].content[0].type",
    ),
    "refusal beside a content": (answered(CANARY, refusal=CANARY), TEMPLATE, "messages[1].refusal"),
    "prefix before the end": (answered(CANARY, prefix=True), TEMPLATE, "messages[1].prefix"),
    "role that the template passes over": (
        chat(USER, {"role": "ipython", "content": CANARY}),
        SILENT,
        "messages[1].role",
    ),
    "documents without a place": (chat(documents=[{"text": CANARY}]), SILENT, "documents"),
    "document that is no object": (chat(documents=[CANARY]), TEMPLATE, "documents[0]"),
    "functions without a place": (chat(functions=[TOOL["function"]]), SILENT, "functions"),
    "reasoning effort without a place": (chat(reasoning_effort=CANARY), SILENT, "reasoning_effort"),
    "verbosity without a place": (chat(verbosity="low"), SILENT, "verbosity"),
    "variable without a place": (chat(enable_thinking=True), SILENT, "enable_thinking"),
    "variable with two values": (
        chat(enable_thinking=True, chat_template_kwargs={"enable_thinking": False}),
        TEMPLATE,
        "enable_thinking",
    ),
    "template's own first token": (chat(bos_token=CANARY), "{{ bos_token }}{{ messages }}", "bos_token"),
    "mistyped field": (chat(max_token=5), TEMPLATE, "max_token"),
    "object under an unknown name": (chat(mood={"deep": CANARY}), "{{ mood }}{{ messages }}", "mood"),
    "arguments that the template can't take": (
        called(arguments=CANARY),
        "{% for call in messages[1].tool_calls %}{{ call.function.arguments.items() | list }}{% endfor %}",
        "messages[1].tool_calls[0].function.arguments",
    ),
    "older call without a place": (
        answered(function_call={"name": "tide", "arguments": CANARY}),
        SILENT,
        "messages[1].function_call",
    ),
    "older call's arguments that it can't take": (
        answered(function_call={"name": "tide", "arguments": CANARY}),
        "{% for call in messages[1].tool_calls %}{{ call.function.arguments.items() | list }}{% endfor %}",
        "messages[1].function_call.arguments",
    ),
    "token ids of every token": (completion(return_token_ids=True), TEMPLATE, "return_token_ids"),
    "schema for the answer": (chat(structured_outputs={"json": {}}), TEMPLATE, "structured_outputs"),
    "reasoning left out": (chat(include_reasoning=False), TEMPLATE, "include_reasoning"),
    "number in quotes": (chat(max_tokens="64"), TEMPLATE, "max_tokens"),
    "no tokens at all": (completion(max_tokens=0), TEMPLATE, "max_tokens"),
    "half a token": (completion(max_tokens=1.5), TEMPLATE, "max_tokens"),
    "bias out of range": (chat(logit_bias={"5": 101}), TEMPLATE, "logit_bias"),
}


@pytest.mark.parametrize(("sent", "template", "param"), LOST.values(), ids=LOST.keys())
def test_what_would_be_lost_is_named(sent: dict[str, Any], template: str, param: str) -> None:
    assert refusal(sent, template).param == param


@pytest.mark.parametrize("name", ["prefix", "partial"])
def test_prefix_of_answer_is_continued(name: str) -> None:
    template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}<|user|>{% endfor %}"
    assert text(chat(USER, {"role": "assistant", "content": "The", name: True}), template).endswith("[assistant] The")


def test_template_that_knows_developer_gets_it() -> None:
    developer = chat({"role": "developer", "content": "the"}, USER)
    assert '"role": "system"' in text(developer)
    assert '"role": "developer"' in text(developer, TEMPLATE + "{% if messages[0].role == 'developer' %}{% endif %}")


def test_function_in_a_tool_call_is_no_role() -> None:
    template = "{{ messages | tojson }}{% if messages[0].function == 'function' %}{% endif %}"
    assert '"role": "tool"' in text(chat(USER, {"role": "function", "name": "tide", "content": "low"}), template)


def test_reasoning_effort_reaches_its_own_variable() -> None:
    assert text(chat(reasoning_effort="low"), "{{ messages }}effort {{ reasoning_effort }}").endswith("effort low")


def test_given_switch_wins_over_effort() -> None:
    given = chat(reasoning_effort="high", chat_template_kwargs={"enable_thinking": False})
    assert text(given).endswith("False")


def test_mistyped_field_is_told_known_ones() -> None:
    for given in ({"temprature": 1}, {"temprature": 1, "max_token": 5}, {"temprature": {}}):
        error = refusal(chat(**given))
        assert (error.param, error.code) == ("temprature", "unknown_parameter")
        assert "; known are " in error.message and "temperature" in error.message


# Prompts that are too long


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": "the abc", "parameters": {"truncate": 2}},
        {"prompt": "the abc", "truncate_prompt_tokens": 2},
        {"prompt": PREPARER.prepare(read_completion({"prompt": "the abc"}).items[0], 1).prompt_ids.tolist()}
        | {"truncate_prompt_tokens": 2.0},
    ],
    ids=["TGI", "vLLM", "token ids"],
)
def test_last_tokens_of_prompt_are_kept(document: dict[str, Any]) -> None:
    (whole,) = prepared({"prompt": "the abc"})
    (cut,) = prepared(document)
    assert cut.prompt_ids == whole.prompt_ids[-2:] and len(whole.prompt_ids) > 2
    assert cut.prompt_text and whole.prompt_text.endswith(cut.prompt_text)


def test_prompt_is_cut_to_models_length() -> None:
    (item,) = prepared(completion(prompt="a" * 1_000_000, truncate_prompt_tokens=-1, max_tokens=100))
    assert len(item.prompt_ids) == LENGTH - 100
    with pytest.raises(InvalidRequest, match="characters"):
        prepared(completion(prompt="a" * 1_000_000, truncate_prompt_tokens=LENGTH))


def test_short_prompt_is_kept_whole() -> None:
    assert prepared(completion(truncate_prompt_tokens=100)) == prepared(completion())


# Texts that the deadline cut

CUT = Result(
    prompt_text="the",
    prompt_tokens=1,
    completions=(Completion(text="sea", token_ids=(1,), finish_reason="deadline", seed=None),),
)


@pytest.mark.parametrize(
    "document",
    [chat(), completion(), {"inputs": "the", "parameters": {}}],
    ids=["chat", "completion", "Hugging Face"],
)
def test_cut_text_is_told_as_asked(document: dict[str, Any]) -> None:
    def told(served: Any, **asked: Any) -> Any:
        options = {"parameters": asked} if "inputs" in document else asked
        call = read_document("application/json", json.dumps(document | options).encode())
        answer = json.loads(call.render([CUT], "served", served))
        end = answer[0]["details"] if isinstance(answer, list) else answer["choices"][0]
        return end["finish_reason"], end.get("deadline")

    assert told("deadline") == ("deadline", None)
    assert told("length") == ("length", True)
    assert told("deadline", deadline_finish_reason="length") == ("length", True)
    assert told("length", deadline_finish_reason="deadline") == ("deadline", None)


def test_whole_text_has_no_deadline() -> None:
    whole = Result(
        prompt_text="the",
        prompt_tokens=1,
        completions=(Completion(text="sea", token_ids=(1,), finish_reason="length", seed=None),),
    )
    (choice,) = rendered(read_chat(chat(deadline_finish_reason="length")), whole)["choices"]
    assert choice["finish_reason"] == "length" and "deadline" not in choice


def test_answer_has_requests_id() -> None:
    assert rendered(read_chat(chat(request_id="mine-1")), CUT)["id"] == "chatcmpl-mine-1"
    assert rendered(read_completion(completion(request_id="mine-1")), CUT)["id"] == "cmpl-mine-1"


def test_top_p_of_zero_is_taken() -> None:
    (item,) = prepared(chat(top_p=0, min_p=1, temperature=5))
    assert (item.samplings[0].top_p, item.samplings[0].min_p, item.samplings[0].temperature) == (0, 1, 5)


def test_chats_fields_are_kept_as_sent() -> None:
    prompt = read_chat(answered("low", reasoning_content="a tide", weight=1.0)).items[0].prompt
    assert isinstance(prompt, Chat)
    assert prompt.messages[1] == {"role": "assistant", "content": "low", "reasoning_content": "a tide", "weight": 1.0}
