"""Lines of a batch as other services write them: each is read, and answered in its own form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from container.core import Chat, Completion, Result
from container.dialects.batch import Line, name_line, name_long_line, read_line
from container.errors import DeadlineExceeded, EngineFailure, RequestError
from testing.container.documents import rendered

CANARY = "kept-secret"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
PARAMS = {"model": "claude", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
ANTHROPIC = {"custom_id": "mine", "params": PARAMS}


def line(document: Any) -> Line:
    return read_line(json.dumps(document).encode(), 1)


def result(text: str = "Hello", **end: Any) -> Result:
    completion = Completion(**{"text": text, "token_ids": (1, 2), "finish_reason": "stop", "seed": None} | end)
    return Result(prompt_text="Hi", prompt_tokens=3, completions=(completion,))


def success(document: Any, **end: Any) -> Any:
    return json.loads(line(document).success([result(**end)], "served"))


def failure(document: Any, error: RequestError | None = None) -> Any:
    read = line(document)
    error = error or read.error
    assert error is not None
    return json.loads(read.failure(error))


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ({"method": "POST", "url": "/chat/completions", "body": CHAT}, "chat.completion"),
        (
            {"method": "POST", "url": "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21"},
            "chat.completion",
        ),
        ({"method": "POST", "url": "https://api.openai.com/v1/chat/completions"}, "chat.completion"),
        ({"body": CHAT}, "chat.completion"),
        ({"method": "POST", "url": "/v1/completions/", "body": {"prompt": "Hi"}}, "text_completion"),
        ({"body": {"prompt": "Hi"}}, "text_completion"),
        ({"body": CHAT, "recordId": None, "inputs": None, "params": None}, "chat.completion"),
    ],
    ids=["Azure", "Azure with deployment", "whole URL", "Mistral", "slash at the end", "prompt", "nulls of a table"],
)
def test_line_is_answered_in_openais_form(line: dict[str, Any], kind: str) -> None:
    answer = success({"custom_id": "mine", "body": CHAT} | line)
    assert answer["custom_id"] == "mine" and answer["error"] is None
    assert answer["response"]["status_code"] == 200 and answer["response"]["body"]["object"] == kind


def test_table_with_nulls_is_told_by_values() -> None:
    nulls = dict.fromkeys(("custom_id", "method", "url", "body", "params", "recordId", "modelInput"))
    document = nulls | {"inputs": "Hi"}
    text = json.dumps(document).encode()
    assert success(document) == [{"generated_text": "Hello"}]
    assert name_line(text, 1).form == name_long_line(text, 1).form == "bare"


@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/responses", f"/v1/{CANARY}", "/v1/chat/completions/x", 3])
def test_url_of_another_route_is_named(url: object) -> None:
    answer = failure({"custom_id": "mine", "url": url, "body": CHAT})
    assert answer["response"]["body"]["error"]["param"] == "url" and CANARY not in json.dumps(answer)


def test_anthropic_line_gets_anthropic_result() -> None:
    answer = success(ANTHROPIC)
    message = answer["result"].pop("message")
    assert answer == {"custom_id": "mine", "result": {"type": "succeeded"}}
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }


@pytest.mark.parametrize(
    ("end", "stop_reason", "stop_sequence"),
    [
        ({"finish_reason": "length"}, "max_tokens", None),
        ({"stop": "\n\n"}, "stop_sequence", "\n\n"),
        ({"finish_reason": "deadline"}, "deadline", None),
    ],
)
def test_anthropic_result_tells_how_it_ended(end: dict[str, Any], stop_reason: str, stop_sequence: str | None) -> None:
    message = success(ANTHROPIC, **end)["result"]["message"]
    assert (message["stop_reason"], message["stop_sequence"]) == (stop_reason, stop_sequence)


def test_anthropic_result_hides_deadline_if_set() -> None:
    written = line(ANTHROPIC).success([result(finish_reason="deadline")], "served", "length")
    message = json.loads(written)["result"]["message"]
    assert (message["stop_reason"], message["deadline"]) == ("max_tokens", True)


def test_anthropic_error_has_its_type_and_field() -> None:
    error = failure(ANTHROPIC | {"params": PARAMS | {"max_tokens": 0}})["result"]
    assert (error["type"], error["error"]["type"], error["error"]["error"]["type"]) == (
        "errored",
        "error",
        "invalid_request_error",
    )
    assert error["error"]["error"]["message"].startswith("max_tokens must be ")
    assert failure(ANTHROPIC, EngineFailure("dead"))["result"]["error"]["error"]["type"] == "api_error"


def test_anthropic_line_without_time_is_expired() -> None:
    answer = failure(ANTHROPIC, DeadlineExceeded("the deadline came"))
    assert answer == {"custom_id": "mine", "result": {"type": "expired"}}


def test_anthropic_params_become_a_chat() -> None:
    params = PARAMS | {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": "One"},
            {"role": "user", "content": [{"type": "text", "text": "Two"}]},
            {"role": "assistant", "content": "Three is ("},
        ],
        "stop_sequences": ["x"],
        "temperature": 0.5,
        "top_k": 3,
        "metadata": {"user_id": "a"},
    }
    read = line({"custom_id": "mine", "params": params})
    assert read.call is not None
    (item,) = read.call.items
    assert isinstance(item.prompt, Chat)
    assert [message["role"] for message in item.prompt.messages] == ["system", "user", "assistant"]
    assert item.prompt.messages[0]["content"] == "Be brief."
    assert item.prompt.messages[1]["content"].startswith("One") and "Two" in item.prompt.messages[1]["content"]
    assert item.prompt.template.ending == "continue"
    parameters = item.parameters
    assert (parameters.max_new_tokens, parameters.stop, parameters.temperature, parameters.top_k) == (8, ("x",), 0.5, 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tools": [{"name": CANARY}]}, "tools is not supported"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking is not supported"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": CANARY}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].type"),
        ({"messages": []}, "messages is empty"),
        ({"system": 3}, "system must be"),
        ({"stream": True}, "stream must be false"),
        ({"mood": CANARY}, "unknown field mood"),
    ],
)
def test_anthropic_field_that_would_be_lost_is_named(change: dict[str, Any], named: str) -> None:
    message = failure(ANTHROPIC | {"params": PARAMS | change})["result"]["error"]["error"]["message"]
    assert message.startswith(named) and CANARY not in message


@pytest.mark.parametrize(
    "document", [{"params": PARAMS}, {"custom_id": "", "params": PARAMS}, {"custom_id": "a", "params": 3}]
)
def test_bad_anthropic_line_is_answered_in_its_form(document: dict[str, Any]) -> None:
    assert failure(document)["result"]["type"] == "errored"


def test_anthropic_name_is_known_without_values() -> None:
    text = json.dumps(ANTHROPIC).encode()
    for named in (name_line(text, 1), name_long_line(text, 1)):
        assert (named.form, named.custom_id, named.unique_id) == ("anthropic", "mine", "mine")


def test_bedrock_line_for_anthropic_has_its_message() -> None:
    record = {"recordId": "1", "modelInput": {"anthropic_version": "bedrock-2023-05-31"} | PARAMS}
    answer = success(record)
    output = answer.pop("modelOutput")
    assert answer == record
    assert (output["content"], output["stop_reason"]) == ([{"type": "text", "text": "Hello"}], "end_turn")


def test_anthropic_message_is_whole_answer() -> None:
    read = line(ANTHROPIC)
    assert read.call is not None
    assert rendered(read.call, result())["content"] == [{"type": "text", "text": "Hello"}]
