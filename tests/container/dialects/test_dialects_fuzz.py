"""Any document or line becomes a call that goes through to its answer, or an error of the caller's that quotes no text.

Documents are made of the fields that the dialects know, with values right, nearly right and anything: a tree of random
JSON alone would hardly get past the first look.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from container.core import Call, Completion, Item, Result, TokenLogprob
from container.dialects import huggingface
from container.dialects.batch import AnthropicRequest, BedrockRequest, OpenAIRequest, is_blank, read_line
from container.dialects.chat import ChatRequest
from container.dialects.completions import CompletionRequest
from container.dialects.wire import Wire
from container.errors import RequestError
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import resolve
from container.tokenization.tokenizer import Tokenizer
from testing import tiny_tokenizers
from testing.container.documents import read_document
from testing.fuzzing import fuzz_settings

CANARY = "kept-secret"
TOKEN = TokenLogprob(id=5, text=CANARY, utf8=None, logprob=-1.0)
FEW = fuzz_settings(300)
BACKEND = tiny_tokenizers.byte_fallback(chat_template=tiny_tokenizers.TEMPLATE)
TOKENIZER = Tokenizer(BACKEND, len(BACKEND))
DEFAULTS = ModelDefaults(eos_token_ids=(BACKEND.eos_token_id,), vocab_size=len(BACKEND))
MAX_TOKENS = 500


def known(*models: type[Wire]) -> list[str]:
    return sorted({name for model in models for name in (*model.model_fields, *model.neutral, *model.ignored)})


TEXT = st.sampled_from([CANARY, f"{CANARY} \ud83d", f"<|im_end|>{CANARY}\x00", f"{{{{ {CANARY} }}}}"])
SCALAR = (
    TEXT
    | st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.sampled_from([2**31, 2**63, 2**64, 10**400, -1, 0.5, 1.0, 1e308, float("nan"), float("-inf"), ""])
)
NAME = st.sampled_from(["type", "function", "role", "content", "text", "name", "0", "7", "296", "", "a b", "\ud800"])
ANYTHING = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3), max_leaves=8
)


def record(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw some of the fields, each with its own values or, now and then, anything."""
    values = {name: value | value | value | ANYTHING for name, value in fields.items()}
    return st.fixed_dictionaries({}, optional=values)


FUNCTION = record(
    name=TEXT,
    arguments=TEXT | st.just("{}") | st.just({"a": CANARY}) | st.just('{"a": "' + CANARY),
    parameters=st.just({"type": "object"}),
    strict=st.booleans(),
)
TOOL = record(type=st.just("function"), function=FUNCTION, id=TEXT)
PART = record(type=st.just("text"), text=TEXT)
MESSAGE = record(
    role=st.sampled_from(["system", "user", "assistant", "tool", "developer"]),
    content=TEXT | st.lists(PART, max_size=2),
    tool_calls=st.lists(TOOL, max_size=2),
    tool_call_id=TEXT,
)
GOOD_MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": TEXT})
MESSAGES = st.lists(GOOD_MESSAGE, min_size=1, max_size=2) | st.lists(MESSAGE | GOOD_MESSAGE, max_size=3)
PROMPT = TEXT | st.lists(TEXT, max_size=3) | st.lists(st.integers(-1, 300), max_size=3)

SPECIFIC: dict[str, st.SearchStrategy[Any]] = {
    "logit_bias": st.dictionaries(NAME, st.integers(-101, 101), max_size=3),
    "tools": st.lists(TOOL, max_size=2),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["mood", "tools", "a b"]), SCALAR, max_size=2),
    "stop": st.lists(TEXT, max_size=2),
    "stop_token_ids": st.lists(st.integers(-1, 300), max_size=2),
    "n": st.integers(0, 4),
    "num_return_sequences": st.integers(0, 4),
}


def some(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a few of the fields: with many, hardly a document would have no fault."""
    pair = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), SPECIFIC.get(name, SCALAR) | ANYTHING))
    return st.lists(pair, max_size=3).map(dict)


def joined(prompt: st.SearchStrategy[dict[str, Any]], rest: st.SearchStrategy[dict[str, Any]]) -> Any:
    return st.tuples(rest, prompt).map(lambda both: both[0] | both[1])


HUGGING_FACE = joined(
    st.fixed_dictionaries(
        {"inputs": TEXT | MESSAGES | st.lists(TEXT | MESSAGES, max_size=3)},
        optional={"parameters": some([*known(huggingface.Options), "temprature"]) | ANYTHING},
    ),
    some(known(huggingface.Request)),
)
CHAT = joined(st.fixed_dictionaries({"messages": MESSAGES}), some([*known(ChatRequest), "temprature"]))
COMPLETION = joined(st.fixed_dictionaries({"prompt": PROMPT}), some(known(CompletionRequest)))
DOCUMENT = HUGGING_FACE | CHAT | COMPLETION | ANYTHING
LINE = (
    DOCUMENT
    | joined(st.fixed_dictionaries({"modelInput": DOCUMENT}), some(known(BedrockRequest)))
    | joined(st.fixed_dictionaries({"params": CHAT}), some(known(AnthropicRequest)))
    | st.fixed_dictionaries(
        {"body": CHAT | COMPLETION, "url": st.sampled_from(["/v1/chat/completions", "/v1/completions"])},
        optional={"custom_id": TEXT, "method": st.just("POST") | SCALAR},
    )
    | some(known(OpenAIRequest))
)
BODY = st.builds(
    lambda document, cut, tail: json.dumps(document).encode()[: cut or None] + tail,
    DOCUMENT | LINE,
    st.sampled_from([0, 0, 0, 0, 0, 0, 0, -1, 7]),
    st.sampled_from([b"", b"", b"", b"", b"\r\n", b"\xff", b"{}"]),
)


def is_callers_error(error: RequestError) -> bool:
    return 400 <= error.status < 500 and CANARY.encode() not in msgspec.json.encode(error.body())


def result(item: Item) -> Result:
    scored = None if item.parameters.logprobs is None else (TOKEN,)
    completion = Completion(text=CANARY, token_ids=(5,), finish_reason="stop", seed=None, logprobs=scored)
    return Result(prompt_text=CANARY, prompt_tokens=1, completions=(completion,) * item.parameters.n)


def passes(call: Call) -> bool:
    """Whether every item fits the engine or is the caller's error, and the answer can be written."""
    for item in call.items:
        try:
            encoded = TOKENIZER.encode(item.prompt, param=item.param, max_tokens=MAX_TOKENS)
            samplings = resolve(
                item,
                DEFAULTS,
                prompt_tokens=len(encoded.ids),
                limit_tokens=MAX_TOKENS,
                default_max_new_tokens=9,
                random_seed=1,
            )
        except RequestError as error:
            if not is_callers_error(error):
                return False
        else:
            msgspec.msgpack.encode(samplings)
    return bool(call.render([result(item) for item in call.items], "served"))


@FEW
@given(body=BODY)
def test_any_document_passes_or_is_callers_error(body: bytes) -> None:
    try:
        call = read_document("application/json", body, None)
    except RequestError as error:
        assert is_callers_error(error)
    else:
        assert passes(call)


@FEW
@given(body=BODY, number=st.integers(1, 10**9))
def test_any_line_passes_or_is_callers_error(body: bytes, number: int) -> None:
    assume(not is_blank(body))
    line = read_line(body, number)
    assert (line.call is None) != (line.error is None)
    if line.error is not None:
        assert is_callers_error(line.error)
        answer = line.failure(line.error)
    else:
        assert line.call is not None and passes(line.call)
        answer = line.success([result(item) for item in line.call.items], "served")
    assert isinstance(json.loads(answer), dict | list) and answer.count(b"\n") == 1


@FEW
@given(body=st.binary(max_size=40), content_type=st.sampled_from([None, "application/json", "text/plain"]))
def test_any_bytes_pass_or_are_callers_error(body: bytes, content_type: str | None) -> None:
    try:
        call = read_document(content_type, body, None)
    except RequestError as error:
        assert is_callers_error(error)
    else:
        assert call.items


KEYS = sorted(known(huggingface.Options))
PAIR = st.tuples(st.sampled_from([*KEYS, "tenant"]), st.sampled_from(["1", "0.5", "true", "", "null", CANARY, "[1"]))


@FEW
@given(pairs=st.lists(PAIR, max_size=3), gap=st.sampled_from([";", "; ", ";;"]))
def test_any_attributes_pass_or_are_callers_error(pairs: list[tuple[str, str]], gap: str) -> None:
    attributes = gap.join(f"{key}={value}" for key, value in pairs)
    try:
        call = read_document("text/plain", CANARY.encode(), attributes)
    except RequestError as error:
        assert is_callers_error(error)
    else:
        assert passes(call)


@pytest.mark.parametrize("strategy", [HUGGING_FACE, CHAT, COMPLETION], ids=["hugging face", "chat", "completion"])
def test_documents_are_partly_right_and_wrong(strategy: Any) -> None:
    taken: list[bool] = []

    @FEW
    @given(strategy)
    def ask(document: Any) -> None:
        try:
            read_document("application/json", json.dumps(document).encode(), None)
        except RequestError:
            taken.append(False)
        else:
            taken.append(True)

    ask()
    assert 0.1 < sum(taken) / len(taken) < 0.9
