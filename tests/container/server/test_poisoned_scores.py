"""A model whose scores are not numbers for some prompts: these are errors, and nothing else changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from testing.container.poisoned_models import poison_rows, save_poisoned
from testing.server import Server

JSON_LINES = {"content-type": "application/jsonlines"}
POISONED, HEALTHY = "The volcano is", "The sea is"
MESSAGE = "the model's scores are not numbers (NaN or infinite) at output token 1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    """Start a server whose model can't read one word."""
    directory = tmp_path_factory.mktemp("poisoned")
    tokenizer = Tokenizer.from_file(str(tiny_model_dir / "tokenizer.json"))
    word = set(tokenizer.encode(POISONED).ids) - set(tokenizer.encode(HEALTHY).ids)
    save_poisoned(tiny_model_dir, directory, poison_rows("model.embed_tokens.weight", sorted(word)))
    log = directory / "log"
    with Server(directory, log, LONGHAUL_DTYPE="bfloat16") as server:
        yield server.wait_until_ready()


def completion(prompt: str, **options: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 4, "temperature": 0} | options


REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {"json": {"messages": [{"role": "user", "content": POISONED}], "max_tokens": 4}},
    "choices with logprobs": {"json": completion(POISONED, n=3, temperature=1, logprobs=2)},
    "one of a list": {"json": {"inputs": [HEALTHY, POISONED], "parameters": {"max_new_tokens": 4, "details": True}}},
    "text": {"content": POISONED, "headers": {"content-type": "text/plain"}},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_prompt_with_scores_no_numbers_is_error(server: Server, request_: dict[str, Any]) -> None:
    response = server.post(**request_)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (500, "sequence_failed")
    assert error["message"].startswith(MESSAGE) and "LONGHAUL_DTYPE=float32" in error["message"]
    assert server.ping()[0] == 200


def test_line_with_scores_no_numbers_fails_alone(server: Server) -> None:
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": completion(HEALTHY)},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": completion(POISONED)},
        {"recordId": "c", "modelInput": completion(POISONED)},
        completion(HEALTHY),
    ]
    first, second, third, fourth = server.ask_lines([*lines])
    alone = server.ask(completion(HEALTHY))["choices"]
    assert first["response"]["body"]["choices"] == fourth["choices"] == alone
    assert second["response"]["status_code"] == 500
    assert second["error"]["code"] == "sequence_failed" and second["error"]["message"].startswith(MESSAGE)
    assert third["error"]["errorCode"] == 500


def failures(server: Server) -> float:
    start = 'longhaul_sequences_total{finish_reason="error"'
    return sum(float(line.split()[-1]) for line in server.metrics().splitlines() if line.startswith(start))


def test_job_after_a_fault_is_generated_again(server: Server) -> None:
    """Its journal repeats what is whole, and never a fault as a text."""
    body = "".join(f"{json.dumps(completion(prompt))}\n" for prompt in (HEALTHY, POISONED))
    headers = JSON_LINES | {"X-Amzn-SageMaker-Custom-Attributes": "job=poisoned"}
    answers, failed = [], []
    for _ in range(2):
        before = failures(server)
        response = server.post(content=body, headers=headers)
        answers.append([json.loads(line) for line in response.text.splitlines()])
        failed.append(failures(server) - before)
    assert response.headers["x-longhaul-resumed-tokens"] == "4"
    assert failed == [1, 1]
    assert [answer[1]["error"]["code"] for answer in answers] == ["sequence_failed"] * 2
    assert answers[0][0]["choices"] == answers[1][0]["choices"]


def test_fault_is_told_in_the_log_once(server: Server) -> None:
    server.post(json=completion(POISONED))
    server.post(json=completion(POISONED))
    told = [line["message"] for line in server.log_lines() if "a sequence is given up" in line.get("message", "")]
    assert len(told) == 1 and MESSAGE in told[0]
    assert "volcano" not in server.log()
