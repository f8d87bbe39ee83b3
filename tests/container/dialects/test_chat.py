"""Chats from the wire to token ids: messages, tools and other inputs of the model's template."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from container.core import Chat, Template, Text
from container.dialects.chat import read_chat
from container.dialects.huggingface import read_request
from container.dialects.template_inputs import RESERVED
from container.errors import InvalidRequest
from container.tokenization.tokenizer import Tokenizer
from testing import tiny_tokenizers
from testing.tiny_tokenizers import TEMPLATE

CANARY = "kept-secret"
USER = {"role": "user", "content": "How is the sea? 🙂"}
ASSISTANT = {"role": "assistant", "content": "The sea is "}
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = {"place": "für", "days": [1, 2]}
CALL = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": ARGUMENTS}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "low", "tool_call_id": "c1"}

REFERENCE = tiny_tokenizers.byte_fallback(chat_template=TEMPLATE)
BOS = REFERENCE.bos_token_id


def tokenizer(template: str = TEMPLATE) -> Tokenizer:
    return Tokenizer(tiny_tokenizers.byte_fallback(chat_template=template), 10_000)


def read(*messages: dict[str, Any], **given: Any) -> Chat:
    prompt = read_chat({"messages": list(messages) or [USER], **given}).items[0].prompt
    assert isinstance(prompt, Chat)
    return prompt


def ids(chat: Chat | Text, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(chat, param="messages", max_tokens=10_000).ids


def text(chat: Chat, template: str = TEMPLATE) -> str:
    return tokenizer(template).encode(chat, param="messages", max_tokens=10_000).text


def refusal(*messages: Any, **given: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read(*messages, **given)
    assert CANARY not in caught.value.message
    return caught.value


def template_refusal(chat: Chat, template: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        text(chat, template)
    assert CANARY not in caught.value.message
    return caught.value


# As the reference


@pytest.mark.parametrize(
    ("messages", "asked", "reference"),
    [
        ([USER], {}, {"add_generation_prompt": True}),
        ([{"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER], {}, {"add_generation_prompt": True}),
        ([{"role": "user", "content": "<s></s> <|user|>"}], {}, {"add_generation_prompt": True}),
        ([USER], {"add_generation_prompt": False}, {}),
        ([USER, ASSISTANT], {"continue_final_message": True}, {"continue_final_message": True}),
        ([USER], {"tools": [TOOL]}, {"tools": [TOOL], "add_generation_prompt": True}),
        ([USER, CALLING, RESULT], {}, {"add_generation_prompt": True}),
        ([USER], {"chat_template_kwargs": {"mood": "calm"}}, {"mood": "calm", "add_generation_prompt": True}),
    ],
)
def test_chat_ids_match_reference(
    messages: list[dict[str, Any]], asked: dict[str, Any], reference: dict[str, Any]
) -> None:
    expected = REFERENCE.apply_chat_template(messages, sanitize_control_tokens=True, **reference)["input_ids"]
    assert ids(read(*messages, **asked), tokenizer()) == expected


def test_real_chat_ids_match_reference(model_dir: str) -> None:
    messages = [USER, ASSISTANT]
    chat = read(*messages, continue_final_message=True)
    reference: Any = AutoTokenizer.from_pretrained(model_dir)
    expected = reference.apply_chat_template(messages, continue_final_message=True)["input_ids"]
    assert ids(chat, Tokenizer.load(model_dir, trust_remote_code=False)) == expected


def test_first_token_comes_once() -> None:
    assert ids(Text(text="the sea"), tokenizer()).count(BOS) == 1
    assert ids(read(), tokenizer()).count(BOS) == 1
    assert ids(read(), tokenizer(TEMPLATE.removeprefix("{{ bos_token }}"))).count(BOS) == 0


# How it ends


def test_last_message_is_continued_on_request() -> None:
    assert text(read(USER, ASSISTANT, continue_final_message=True)).endswith("<|user|>assistant: The sea is ")
    assert text(read(USER, ASSISTANT)).endswith("The sea is </s>\n<|user|>assistant: ")


def test_chat_may_end_with_its_messages() -> None:
    assert text(read(USER, add_generation_prompt=False)).endswith("🙂</s>\n")


@pytest.mark.parametrize("document", [{"messages": [USER]}, {"inputs": [USER]}])
def test_continuing_and_beginning_exclude_each_other(document: dict[str, Any]) -> None:
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(InvalidRequest, match="exclude each other"):
        read_chat(document | both) if "messages" in document else read_request(document | {"parameters": both})


def test_continuing_alone_is_enough() -> None:
    assert read(USER, ASSISTANT, continue_final_message=True).template == Template(ending="continue")
    assert read(USER, ASSISTANT, continue_final_message=True, add_generation_prompt=False).template.ending == "continue"


def test_changed_last_message_cannot_be_continued() -> None:
    chat = read({"role": "assistant", "content": CANARY}, continue_final_message=True)
    error = template_refusal(chat, "{{ messages[0].content | upper }}")
    assert "can't be continued" in error.message


# Tools


def test_tools_reach_template_unchanged_in_order() -> None:
    chat = read(tools=[TOOL])
    assert chat.template.tools == (TOOL,)
    assert text(chat).startswith('<s>{"type": "function", "function": {"name": "tide", "parameters"')


def test_tool_choice_none_gives_no_tools() -> None:
    assert read(tools=[TOOL], tool_choice="none").template.tools == ()
    assert read(tools=[TOOL], tool_choice="auto").template.tools == (TOOL,)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "tide"}}])
def test_no_tool_can_be_forced(choice: object) -> None:
    error = refusal(tools=[TOOL], tool_choice=choice)
    assert (error.param, error.code) == ("tool_choice", "unsupported_parameter")


def test_parallel_tool_calls_cannot_be_disabled() -> None:
    assert refusal(tools=[TOOL], parallel_tool_calls=False).param == "parallel_tool_calls"
    assert read(parallel_tool_calls=False).template == Template()


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        (CANARY, "tools"),
        ([TOOL] * 1025, "tools"),
        ([CANARY], "tools[0]"),
        ([TOOL, {"type": CANARY}], "tools[1].type"),
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": {"name": ""}}], "tools[0].function.name"),
        ([{"type": "function", "function": {"name": "a", "parameters": CANARY}}], "tools[0].function.parameters"),
    ],
)
def test_bad_tool_is_named_by_path(tools: object, param: str) -> None:
    assert refusal(tools=tools).param == param


def test_template_without_tools_gets_none() -> None:
    template = "{{ messages[0].content }}"
    error = template_refusal(read(tools=[TOOL]), template)
    assert (error.param, error.code) == ("tools", "unsupported_parameter")
    assert text(read(tools=[TOOL], tool_choice="none"), template) == USER["content"]


def test_tools_choose_template_for_tools() -> None:
    backend = tiny_tokenizers.byte_fallback()
    backend.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools | length }}"}
    tokenizer = Tokenizer(backend, 10_000)
    assert tokenizer.encode(read(tools=[TOOL]), param="messages", max_tokens=100).text == "1"
    assert tokenizer.encode(read(), param="messages", max_tokens=100).text == USER["content"]


def test_huggingface_tools_are_named_by_path() -> None:
    (item,) = read_request({"inputs": [USER], "parameters": {"tools": [TOOL]}}).items
    assert isinstance(item.prompt, Chat)
    assert template_refusal(item.prompt, "{{ messages[0].content }}").param == "parameters.tools"


def test_call_arguments_become_objects() -> None:
    as_string = {"id": "c1", "function": {"name": "tide", "arguments": '{"place": "für", "days": [1, 2]}'}}
    for call in (CALL, as_string):
        assert read(USER, {"role": "assistant", "content": None, "tool_calls": [call]}).messages[1] == CALLING
    nothing = {"function": {"name": "tide", "arguments": ""}}
    (message,) = read({"role": "assistant", "tool_calls": [nothing]}).messages
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "tide", "arguments": {}}}]


def call_with(**function: object) -> dict[str, object]:
    return {"role": "assistant", "tool_calls": [{"function": function}]}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (USER | {"tool_calls": [CALL]}, ""),
        ({"role": "assistant", "tool_calls": CANARY}, ""),
        ({"role": "assistant", "tool_calls": [CANARY]}, "[0]"),
        ({"role": "assistant", "tool_calls": [{"id": 1}]}, "[0].id"),
        ({"role": "assistant", "tool_calls": [CALL | {"type": CANARY}]}, "[0].type"),
        (call_with(arguments="{}"), "[0].function.name"),
        (call_with(name="tide", arguments=[CANARY]), "[0].function.arguments"),
        (call_with(name="tide", arguments=3), "[0].function.arguments"),
    ],
)
def test_bad_tool_call_is_named_by_path(message: dict[str, Any], param: str) -> None:
    assert refusal(message).param == f"messages[0].tool_calls{param}"


def test_template_without_tool_calls_gets_none() -> None:
    error = template_refusal(read(USER, CALLING, RESULT), "{{ messages[0].content }}")
    assert (error.param, error.code) == ("messages[1].tool_calls", "unsupported_parameter")


# Variables of the template


def test_a_template_gets_its_own_variables() -> None:
    assert "mood: calm\n" in text(read(chat_template_kwargs={"mood": "calm"}))
    given = {"a": 1, "b": 0.5, "c": True, "d": None, "e": ["x", 2]}
    assert read(chat_template_kwargs=given).template.variables == given


def test_huggingface_gives_template_the_same() -> None:
    given = {"chat_template_kwargs": {"mood": "calm"}, "tools": [TOOL], "continue_final_message": True}
    (item,) = read_request({"inputs": [USER, ASSISTANT], "parameters": given}).items
    assert item.prompt == read(USER, ASSISTANT, **given)


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages", "tools", "add_generation_prompt"])
def test_reserved_variable_is_refused(name: str) -> None:
    error = refusal(chat_template_kwargs={name: CANARY})
    assert (error.param, error.code) == (f"chat_template_kwargs.{name}", "unsupported_parameter")


def test_reserved_names_cover_the_renderers() -> None:
    functions = (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    assert names - {"kwargs"} | {"messages"} == RESERVED


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (CANARY, ""),
        ({"not a name": 1}, ""),
        ({"x" * 65: 1}, ""),
        ({f"v{number}": 1 for number in range(65)}, ""),
        ({"mood": {"deep": CANARY}}, ".mood"),
        ({"mood": [[CANARY]]}, ".mood"),
        ({"a_name_as_long_as_some_sentences_may_well_be": {}}, ""),
    ],
)
def test_a_bad_variable_is_named(given: object, param: str) -> None:
    assert refusal(chat_template_kwargs=given).param == f"chat_template_kwargs{param}"


def test_template_in_request_is_refused() -> None:
    error = refusal(chat_template="{{ messages }}")
    assert (error.param, error.code) == ("chat_template", "unsupported_parameter")
    with pytest.raises(InvalidRequest, match=r"parameters\.chat_template is not taken from a request"):
        read_request({"inputs": [USER], "parameters": {"chat_template": CANARY}})


@pytest.mark.parametrize("given", [{"tools": [TOOL]}, {"continue_final_message": True}])
@pytest.mark.parametrize("inputs", ["the sea", ["the sea"]])
def test_text_takes_no_template_options(inputs: object, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="inputs is a text"):
        read_request({"inputs": inputs, "parameters": given})
