"""The description of the HTTP surface: schemathesis compares it with a real server, and the README's examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation.case import Case
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from container.core import Completion, Result
from container.dialects.document import JSON_LINES
from container.server import openapi
from container.server.app import create_app
from container.server.exchange import Exchanges
from container.server.state import ServerState
from container.settings import Settings
from testing.container.documents import read_document, rendered
from testing.fuzzing import fuzz_settings
from testing.server import Server
from tests.test_docs import LINES, REQUESTS


def only_json(value: Any) -> Any:
    """Remove the media types of which no body is wrong: any text is a prompt, and a bad line fails alone."""
    if isinstance(value, dict):
        json_alone = {"application/json": value["application/json"]} if "application/json" in value else value
        return {name: only_json(inner) for name, inner in json_alone.items()}
    return value


DOCUMENT = openapi.document()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config())
JSON_SCHEMA = schemathesis.openapi.from_dict(only_json(DOCUMENT), config=schemathesis.Config())
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
WITH_BODIES = [operation for operation in OPERATIONS if "requestBody" in DOCUMENT["paths"][operation[0]][operation[1]]]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@schemathesis.serializer(*JSON_LINES)
def write_line(context: schemathesis.SerializationContext, value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


@schemathesis.deserializer("application/jsonlines")
def read_line(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return json.loads(response.content)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    """Start a server whose longest answers are short."""
    log = tmp_path_factory.mktemp("described") / "log"
    limits = {"LONGHAUL_MAX_MODEL_LEN": 64, "LONGHAUL_MAX_NEW_TOKENS": 4}
    with Server(tiny_model_dir, log, **limits) as server:
        yield server.wait_until_ready()


def tamed(value: Any) -> Any:
    """Fit a request to what no schema knows: the model's context and vocabulary, and which fields go together."""
    if isinstance(value, dict):
        changed = {  # elsewhere, as in a tool's own schema, these names may have any value
            name: 1 + (limit or 0) % 4
            for name, limit in value.items()
            if name in ("max_tokens", "max_new_tokens") and isinstance(limit, int | None)
        }
        changed |= {name: 0 for name in ("min_tokens", "min_new_tokens") if name in value}
        changed |= {"logprobs": True} if "top_logprobs" in value else {}
        left_out = ("best_of", "max_completion_tokens", "continue_final_message", "tools", "logit_bias")
        left_out += ("documents", "functions", "prefix", "partial", "refusal", "reasoning_effort", "verbosity")
        return {name: tamed(inner) for name, inner in value.items() if name not in left_out} | changed
    if isinstance(value, list):
        return [item % 1000 if type(item) is int else tamed(item) for item in value]
    return value


def ask(server: Server, case: Case, *checks: Any) -> int:
    response = case.call(base_url=server.url, timeout=60)
    case.validate_response(response, checks=[*CHECKS, *checks])
    return response.status_code


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_described_requests_get_described_answers(described: Server, path: str, method: str) -> None:
    statuses: Counter[int] = Counter()

    @fuzz_settings(50 if (path, method) in WITH_BODIES else 2, suppress_health_check=list(HealthCheck))
    @given(case=SCHEMA[path][method].as_strategy(), tame=st.booleans())
    def right(case: Case, tame: bool) -> None:
        case.body = tamed(case.body) if tame else case.body
        if "name" in case.path_parameters:
            case.path_parameters["name"] = described.get("/v1/models").json()["data"][0]["id"]
        statuses[ask(described, case)] += 1

    right()
    assert statuses[200] > 0.2 * statuses.total(), "a description that is seldom right shows little"


@pytest.mark.parametrize(("path", "method"), WITH_BODIES)
def test_undescribed_requests_are_refused(described: Server, path: str, method: str) -> None:
    strategy = JSON_SCHEMA[path][method].as_strategy(schemathesis.GenerationMode.NEGATIVE)

    @fuzz_settings(80, suppress_health_check=list(HealthCheck))
    @given(case=strategy)
    def wrong(case: Case) -> None:
        ask(described, case, negative_data_rejection)

    wrong()


@pytest.mark.parametrize("body", REQUESTS)
def test_readme_requests_match_description(body: str) -> None:
    assert validator("HuggingFaceRequest", "ChatRequest", "CompletionRequest").is_valid(json.loads(body))


@pytest.mark.parametrize("line", [line for text in LINES for line in text.splitlines()])
def test_readme_lines_match_description(line: str) -> None:
    assert validator("BatchLine").is_valid(json.loads(line))


CHAT = {
    "messages": [{"role": "user", "content": "Hello!"}],
    "max_tokens": 2,
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
}
COMPLETION = {"prompt": ["The sea", "The sky"], "max_tokens": 2, "logprobs": 2}
DETAILED = {"inputs": "The sea", "parameters": {"max_new_tokens": 2, "details": True, "logprobs": 2}}


@pytest.mark.parametrize(
    ("document", "answer"), [(CHAT, "ChatCompletion"), (COMPLETION, "TextCompletion"), (DETAILED, "GeneratedList")]
)
def test_fullest_answers_match_description(described: Server, document: object, answer: str) -> None:
    assert validator(answer).is_valid(described.ask(document))


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": COMPLETION}, "OpenAILine"),
        ({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": CHAT}, "OpenAILine"),
        ({"recordId": "a", "modelInput": DETAILED}, "BedrockResult"),
        ({"modelInput": {}}, "BedrockFailure"),
        (CHAT, "ChatCompletion"),
        ({"nonsense": 1}, "ErrorBody"),
    ],
)
def test_line_answers_match_description(described: Server, line: object, answer: str) -> None:
    (answered,) = described.ask_lines([line])
    assert validator(answer).is_valid(answered) and validator("BatchAnswerLine").is_valid(answered)


def validator(*names: str) -> Any:
    """Return a validator of values that are one of the components."""
    choices = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    return jsonschema_rs.validator_for({"anyOf": choices, "components": DOCUMENT["components"]})


def test_every_route_is_described() -> None:
    routes = {
        (route.path_format, method.lower())
        for route in create_app(ServerState(Settings()), Exchanges()).routes
        if isinstance(route, Route) and route.path != "/openapi.json"
        for method in route.methods or ()
    }
    assert routes == set(OPERATIONS)


def test_server_serves_its_description(described: Server) -> None:
    assert json.loads(described.get("/openapi.json").content) == DOCUMENT


def test_wrong_method_is_told_allowed_ones(described: Server) -> None:
    response = described.get("/invocations")
    assert (response.status_code, response.headers["allow"]) == (405, "OPTIONS, POST")
    assert response.json()["error"]["code"] == "method_not_allowed"


def test_cut_answers_match_description() -> None:
    completion = Completion(text="The", token_ids=(1,), finish_reason="deadline", seed=None)
    results = [Result(prompt_text="a", prompt_tokens=1, completions=(completion,))]
    for document, answer in [({"inputs": "a"}, "GeneratedList"), ({"prompt": "a"}, "TextCompletion")]:
        call = read_document("application/json", json.dumps(document).encode())
        assert validator(answer).is_valid(rendered(call, *results))
