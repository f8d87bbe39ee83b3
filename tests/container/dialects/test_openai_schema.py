"""Any document of OpenAI's published schema, as its own client's types have it, is served or refused by a field's name.

The tables say what becomes of each field, and the tests hold the code to them: nothing that would change the text or
the answer passes unheeded. A newer client with a field that they lack fails here.
"""

from __future__ import annotations

import collections.abc
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import chat, completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.chat.chat_completion_content_part_param import File
from openai.types.shared_params import FunctionDefinition
from typing_extensions import get_type_hints, is_typeddict

from container.core import Completion, Result
from container.dialects.chat import read_chat
from container.dialects.completions import read_completion
from container.errors import InvalidRequest
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import Preparer
from container.tokenization.tokenizer import Tokenizer
from testing import tiny_tokenizers
from testing.fuzzing import fuzz_settings

Treatment = Literal["honoured", "without effect", "refused"]
HONOURED: Treatment = "honoured"
"""Reaches the prompt, the sampling or the answer; where it can't, it is refused by its name."""
WITHOUT_EFFECT: Treatment = "without effect"
"""Taken with any value, as it asks for nothing that the text or the answer would show."""
REFUSED: Treatment = "refused"
"""Refused by its name, but for the values that ask for nothing."""

CHAT: dict[str, Treatment] = {
    "audio": REFUSED,
    "frequency_penalty": HONOURED,
    "function_call": HONOURED,
    "functions": HONOURED,
    "logit_bias": HONOURED,
    "logprobs": HONOURED,
    "max_completion_tokens": HONOURED,
    "max_tokens": HONOURED,
    "messages": HONOURED,
    "metadata": WITHOUT_EFFECT,
    "modalities": REFUSED,
    "model": HONOURED,
    "moderation": REFUSED,
    "n": HONOURED,
    "parallel_tool_calls": REFUSED,
    "prediction": WITHOUT_EFFECT,
    "presence_penalty": HONOURED,
    "prompt_cache_key": WITHOUT_EFFECT,
    "prompt_cache_options": WITHOUT_EFFECT,
    "prompt_cache_retention": WITHOUT_EFFECT,
    "reasoning_effort": HONOURED,
    "response_format": REFUSED,
    "safety_identifier": WITHOUT_EFFECT,
    "seed": HONOURED,
    "service_tier": WITHOUT_EFFECT,
    "stop": HONOURED,
    "store": WITHOUT_EFFECT,
    "stream": REFUSED,
    "stream_options": WITHOUT_EFFECT,
    "temperature": HONOURED,
    "tool_choice": HONOURED,
    "tools": HONOURED,
    "top_logprobs": HONOURED,
    "top_p": HONOURED,
    "user": WITHOUT_EFFECT,
    "verbosity": HONOURED,
    "web_search_options": REFUSED,
}
COMPLETION: dict[str, Treatment] = {
    "best_of": REFUSED,
    "echo": HONOURED,
    "frequency_penalty": HONOURED,
    "logit_bias": HONOURED,
    "logprobs": HONOURED,
    "max_tokens": HONOURED,
    "model": HONOURED,
    "n": HONOURED,
    "presence_penalty": HONOURED,
    "prompt": HONOURED,
    "seed": HONOURED,
    "stop": HONOURED,
    "stream": REFUSED,
    "stream_options": WITHOUT_EFFECT,
    "suffix": REFUSED,
    "temperature": HONOURED,
    "top_p": HONOURED,
    "user": WITHOUT_EFFECT,
}
SPOKEN: dict[str, Treatment] = {"role": HONOURED, "content": HONOURED, "name": HONOURED}
WITHIN: dict[type, dict[str, Treatment]] = {
    chat.ChatCompletionDeveloperMessageParam: SPOKEN,
    chat.ChatCompletionSystemMessageParam: SPOKEN,
    chat.ChatCompletionUserMessageParam: SPOKEN,
    chat.ChatCompletionFunctionMessageParam: SPOKEN,
    chat.ChatCompletionToolMessageParam: {"role": HONOURED, "content": HONOURED, "tool_call_id": HONOURED},
    chat.ChatCompletionAssistantMessageParam: SPOKEN
    | {"audio": REFUSED, "function_call": HONOURED, "refusal": HONOURED, "tool_calls": HONOURED},
    chat.ChatCompletionContentPartTextParam: {
        "type": HONOURED,
        "text": HONOURED,
        "prompt_cache_breakpoint": WITHOUT_EFFECT,
    },
    chat.ChatCompletionContentPartRefusalParam: {"type": HONOURED, "refusal": HONOURED},
    chat.ChatCompletionFunctionToolParam: {"type": HONOURED, "function": HONOURED},
    FunctionDefinition: dict.fromkeys(("name", "description", "parameters", "strict"), HONOURED),
    chat.ChatCompletionMessageFunctionToolCallParam: {"id": HONOURED, "type": HONOURED, "function": HONOURED},
}
"""Fields within messages and tools. Of a tool, being honoured is to reach the template."""
REFUSED_WITHIN: list[type] = [
    chat.ChatCompletionContentPartImageParam,
    chat.ChatCompletionContentPartInputAudioParam,
    File,
]
"""Parts of messages that are refused whole, by their type."""

TEMPLATE = """{{ messages | tojson }} {{ tools | tojson }} {{ reasoning_effort }} {{ verbosity }}
{%- if messages[0].tool_calls or messages[0].role in ('developer', 'function') %} {% endif %}"""
"""A chat template that shows everything it is given."""
BACKEND = tiny_tokenizers.byte_fallback(chat_template=TEMPLATE)
PREPARER = Preparer(
    tokenizer=Tokenizer(BACKEND, len(BACKEND)),
    defaults=ModelDefaults(eos_token_ids=(BACKEND.eos_token_id,), vocab_size=len(BACKEND)),
    max_sequence_tokens=20_000,
    default_max_new_tokens=9,
)
READERS = {"chat": read_chat, "completion": read_completion}
TYPES = {
    "chat": chat_create_params.CompletionCreateParamsNonStreaming,
    "completion": completion_create_params.CompletionCreateParamsNonStreaming,
}
TABLES = {"chat": CHAT, "completion": COMPLETION}
LEAST: dict[str, dict[str, Any]] = {
    "chat": {"model": "any", "messages": [{"role": "user", "content": "the sea"}]},
    "completion": {"model": "any", "prompt": "the sea"},
}
FEW = fuzz_settings(150)

# Documents

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
RIGHT: dict[str, st.SearchStrategy[Any]] = {
    "logit_bias": st.dictionaries(st.integers(0, 290).map(str), st.integers(-100, 100), max_size=2),
    "n": st.integers(1, 2),
    "best_of": st.integers(1, 2),
    "max_tokens": st.integers(1, 9),
    "max_completion_tokens": st.integers(1, 9),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "logprobs": st.booleans() | st.integers(0, 5),
    "top_logprobs": st.integers(0, 20),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "prompt": st.sampled_from(["the sea", ["a", "the"], [5, 7], [[5], [7, 8]]]),
}
"""Values in the range that the reference's text, but no type, gives."""


@cache
def values(kind: Any) -> st.SearchStrategy[Any]:
    """Return JSON values of a type of the client."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        fields = dict(fields_of(kind))
        needed = {
            name for name, hint in get_type_hints(kind, include_extras=True).items() if get_origin(hint) is Required
        }
        return st.fixed_dictionaries(
            {name: value for name, value in fields.items() if name in needed},
            optional={name: value for name, value in fields.items() if name not in needed},
        )
    if origin in (Required, NotRequired):
        return values(arguments[0])
    if origin in (Union, UnionType):
        return st.one_of(*map(values, arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is dict or origin is collections.abc.Mapping:
        return st.dictionaries(st.text(max_size=3), values(arguments[1]), max_size=2)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable | collections.abc.Container):
        return st.lists(values(arguments[0]), max_size=2)
    simple = {
        str: st.sampled_from(["", "the", "a ]", "{}", '{"a": 1}', "ü\u2028"]),
        int: st.integers(-1, 3),
        float: st.floats(-1, 3),
        bool: st.booleans(),
        NoneType: st.none(),
        object: JSON,
        Any: JSON,
    }
    return simple[kind]


def fields_of(kind: Any) -> Iterator[tuple[str, st.SearchStrategy[Any]]]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain = values(hint)
        right = RIGHT.get(name) if kind in TYPES.values() else None
        yield name, plain if right is None else right | right | plain


@st.composite
def documents(draw: st.DrawFn, dialect: str) -> dict[str, Any]:
    """Draw a document of the schema with a few of its fields."""
    fields = dict(fields_of(TYPES[dialect]))
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    return LEAST[dialect] | {name: draw(fields[name]) for name in names}


@st.composite
def nearly(draw: st.DrawFn, dialect: str) -> dict[str, Any]:
    """Draw a document of the schema that has been changed in one place."""
    document = json.loads(json.dumps(draw(documents(dialect))))
    place, path = document, draw(st.lists(st.integers(0, 7), max_size=4))
    for step in path:
        inner = [value for value in (place.values() if isinstance(place, dict) else place) if value and is_tree(value)]
        if not inner:
            break
        place = inner[step % len(inner)]
    if isinstance(place, list):
        place.append(draw(JSON))
    else:
        place[draw(st.sampled_from([*place, "tempratur", "content", "type"]))] = draw(JSON)
    return document


def is_tree(value: object) -> bool:
    return isinstance(value, dict | list)


# What becomes of them


def outcome(dialect: str, document: Mapping[str, Any]) -> Any:
    """Return the name of the refused field; or what the engine gets, with the answer."""
    try:
        call = READERS[dialect](json.loads(json.dumps(document)))
        prepared = [PREPARER.prepare(item, 1) for item in call.items]
    except InvalidRequest as error:
        assert error.param is not None, error.message
        return error.param
    one = Completion(text="low", token_ids=(5,), finish_reason="stop", seed=None, logprobs=())
    results = [
        Result(prompt_text=item.prompt_text, prompt_tokens=1, completions=(one,) * len(item.samplings))
        for item in prepared
    ]
    answer = json.loads(call.render(results, "served"))
    del answer["id"], answer["created"]
    return prepared, answer


def first_name(param: str) -> str:
    return re.split(r"[.\[]", param)[0]


@pytest.mark.parametrize("dialect", TYPES)
def test_documents_of_schema_are_served_or_refused(dialect: str) -> None:
    served: list[bool] = []

    @FEW
    @given(documents(dialect))
    def ask(document: dict[str, Any]) -> None:
        got = outcome(dialect, document)
        served.append(not isinstance(got, str))
        assert served[-1] or first_name(got) in document

    ask()
    assert sum(served) > 0.2 * len(served)


@pytest.mark.parametrize("dialect", TYPES)
def test_nearly_right_documents_are_served_or_refused(dialect: str) -> None:
    @FEW
    @given(nearly(dialect))
    def ask(document: dict[str, Any]) -> None:
        got = outcome(dialect, document)
        assert not isinstance(got, str) or first_name(got) in document

    ask()


# The tables

NOTHING: dict[str, list[Any]] = {
    "n": [1],
    "best_of": [1],
    "logprobs": [False],
    "top_logprobs": [0],
    "echo": [False],
    "stop": ["", [], [""], ["", ""]],
    "seed": [-1],
    "tools": [[]],
    "functions": [[]],
    "tool_choice": ["none", "auto"],
    "function_call": ["none", "auto"],
    "tool_calls": [[]],
    "response_format": [{"type": "text"}],
    "modalities": [["text"]],
    "parallel_tool_calls": [True],
    "stream": [False],
    "suffix": [""],
    "temperature": [1],
    "top_p": [1],
    "presence_penalty": [0],
    "frequency_penalty": [0],
    "logit_bias": [{}],
    "max_tokens": [9, -1],
    "max_completion_tokens": [9, -1],
    "reasoning_effort": [""],
    "verbosity": [""],
    "refusal": [""],
}
"""Values that ask for what a request without the field asks for."""


def asks_nothing(name: str, value: Any) -> bool:
    return value is None or any(
        value == nothing and isinstance(value, bool) == isinstance(nothing, bool) for nothing in NOTHING.get(name, ())
    )


def check(dialect: str, before: dict[str, Any], after: dict[str, Any], treatment: Treatment, path: str) -> None:
    """Compare a document with the same one that has one more field."""
    without, within = outcome(dialect, before), outcome(dialect, after)
    if treatment == WITHOUT_EFFECT:
        assert within == without
    elif treatment == REFUSED:
        assert isinstance(within, str) and within.startswith(path)
    else:
        assert within != without
        assert not isinstance(within, str) or within.startswith(path)


@pytest.mark.parametrize(("dialect", "name"), [(dialect, name) for dialect in TABLES for name in TABLES[dialect]])
def test_field_of_schema_is_treated_as_listed(dialect: str, name: str) -> None:
    least = LEAST[dialect]
    if name == "parallel_tool_calls":  # without tools there is nothing to call at once
        least = least | {"tools": [{"type": "function", "function": {"name": "tide"}}]}

    @fuzz_settings(25)
    @given(dict(fields_of(TYPES[dialect]))[name])
    def ask(value: Any) -> None:
        if not asks_nothing(name, value) and value != least.get(name):
            check(dialect, least, least | {name: value}, TABLES[dialect][name], name)

    ask()


@pytest.mark.parametrize("dialect", TABLES)
def test_client_has_no_unlisted_field(dialect: str) -> None:
    assert set(get_type_hints(TYPES[dialect])) == set(TABLES[dialect])


@pytest.mark.parametrize("kind", WITHIN, ids=lambda kind: kind.__name__)
def test_client_has_no_unlisted_field_within(kind: type) -> None:
    assert set(get_type_hints(kind)) == set(WITHIN[kind])


def test_client_has_no_unlisted_message_or_part() -> None:
    assert set(get_args(chat.ChatCompletionMessageParam)) <= set(WITHIN)
    parts = set(get_args(chat.ChatCompletionContentPartParam)) | {chat.ChatCompletionContentPartRefusalParam}
    assert parts <= set(WITHIN) | set(REFUSED_WITHIN)


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [fields]}


SAID = {"content": "a b c"}
CALLED = {"name": "tide", "arguments": "{}"}
PLACES: dict[type, tuple[dict[str, Any], str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    chat.ChatCompletionContentPartTextParam: (
        {"type": "text", "text": "a b c"},
        "messages[0].content[0].",
        lambda part: message(role="user", content=[part]),
    ),
    chat.ChatCompletionContentPartRefusalParam: (
        {"type": "refusal", "refusal": "a b c"},
        "messages[0].content[0].",
        lambda part: message(role="assistant", content=[part]),
    ),
    chat.ChatCompletionFunctionToolParam: (
        {"type": "function", "function": {"name": "tide"}},
        "tools[0].",
        lambda tool: {"tools": [tool]},
    ),
    FunctionDefinition: (
        {"name": "tide"},
        "tools[0].function.",
        lambda function: {"tools": [{"type": "function", "function": function}]},
    ),
    chat.ChatCompletionMessageFunctionToolCallParam: (
        {"id": "c1", "type": "function", "function": CALLED},
        "messages[0].tool_calls[0].",
        lambda call: message(role="assistant", tool_calls=[call]),
    ),
}
"""For each type the least of it, and where it goes in a document. The others are messages."""


def place(kind: type) -> tuple[dict[str, Any], str, Callable[[dict[str, Any]], dict[str, Any]]]:
    if kind in PLACES:
        return PLACES[kind]
    (role,) = get_args(get_type_hints(kind)["role"])
    return {"role": role} | SAID, "messages[0].", lambda fields: message(**fields)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, table in WITHIN.items() for name in table if name not in ("role", "type")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_field_within_is_treated_as_listed(kind: type, name: str) -> None:
    least, path, put = place(kind)

    @fuzz_settings(25)
    @given(dict(fields_of(kind))[name])
    def ask(value: Any) -> None:
        if not asks_nothing(name, value) and value != least.get(name):
            before, after = LEAST["chat"] | put(least), LEAST["chat"] | put(least | {name: value})
            check("chat", before, after, WITHIN[kind][name], path + name)

    ask()


@pytest.mark.parametrize("kind", REFUSED_WITHIN, ids=lambda kind: kind.__name__)
def test_part_without_text_is_refused(kind: type) -> None:
    @fuzz_settings(10)
    @given(values(kind))
    def ask(part: Any) -> None:
        assert outcome("chat", LEAST["chat"] | message(role="user", content=[part])) == "messages[0].content[0].type"

    ask()
