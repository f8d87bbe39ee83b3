"""Jobs through a real server: no token is generated twice if servers die, clients leave or requests come again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from testing.server import Server, eventually

Start = Callable[..., Server]

LENGTHS = (8, 70, 40, 90)
INTERVAL_S = 0.1
COMMON: dict[str, Any] = {"ignore_eos": True, "temperature": 0}
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 7},
    {"n": 2, "logprobs": 2},
    {"temperature": 1.2, "seed": 2**53 - 1, "top_p": 0.9, "n": 2},
    {"stop": ["ea", "the"], "logprobs": 0},
    {"frequency_penalty": 0.3, "presence_penalty": 0.2},
]
LINES = [
    COMMON | kind | {"prompt": f"{number} {word} is", "max_tokens": length}
    for number, (length, word) in enumerate(zip(LENGTHS, ["The sea", "A house"] * 2, strict=True))
    for kind in KINDS
]
BODY = "".join(json.dumps(line) + "\n" for line in LINES)
BLANK_LINES = count(1)
UNSEEDED = COMMON | {"temperature": 1.0, "prompt": "The sea is", "max_tokens": 100, "n": 2}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    """Start a server for the tests that end none, and leave it no open request."""
    log = tmp_path_factory.mktemp("shared") / "log"
    with Server(tiny_model_dir, log, LONGHAUL_CHECKPOINT_INTERVAL_S=INTERVAL_S) as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def undisturbed(shared: Server) -> Any:
    response = send(shared)
    assert response.status_code == 200
    return told(response)


@pytest.fixture
def body() -> str:
    """Return BODY with blank lines after it, which make it another job than that of any other test."""
    return BODY + "\n" * next(BLANK_LINES)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def begin(start: Start, checkpoints: Path) -> Iterator[Callable[..., Server]]:
    """Return a function that starts servers with one journal."""

    def begin(**settings: Any) -> Server:
        given = {"LONGHAUL_CHECKPOINT_URI": checkpoints, "LONGHAUL_CHECKPOINT_INTERVAL_S": INTERVAL_S}
        return start(**(given | settings)).wait_until_ready()

    yield begin


def headers(name: str | None = None, timeout_s: float | None = None) -> dict[str, str]:
    parts = [f"job={name}"] * (name is not None) + [f"timeout={timeout_s}"] * (timeout_s is not None)
    return {"X-Amzn-SageMaker-Custom-Attributes": ";".join(parts)} if parts else {}


def send(server: Server, name: str | None = None, timeout_s: float | None = None, body: str = BODY) -> httpx.Response:
    return server.post(content=body, headers={"content-type": "application/jsonlines"} | headers(name, timeout_s))


def send_soon(server: Server, name: str | None = None, body: str = BODY) -> Future[httpx.Response]:
    return server.post_soon(content=body, headers={"content-type": "application/jsonlines"} | headers(name))


def told(response: httpx.Response) -> list[Any]:
    """Return an answer without what differs by chance: ids, times, and the last digits of log probabilities."""
    return [
        {"choices": [_told(choice) for choice in answer["choices"]], "usage": answer["usage"]}
        for answer in answers(response)
    ]


def _told(choice: dict[str, Any]) -> dict[str, Any]:
    scored = choice["logprobs"]
    if scored is not None:
        assert len(scored["tokens"]) == len(scored["token_logprobs"]) == len(scored["top_logprobs"])
    return choice | {"logprobs": scored and scored["tokens"]}


def answers(response: httpx.Response) -> list[Any]:
    return [json.loads(line) for line in response.text.splitlines()]


def total(answer: list[Any]) -> int:
    return sum(one["usage"]["completion_tokens"] for one in answer)


def generated(server: Server) -> int:
    return int(server.metric("longhaul_generation_tokens_total"))


def lines_of(server: Server, action: str) -> list[dict[str, Any]]:
    return [line for line in server.log_lines() if line.get("action") == action]


def wait_for_tokens(server: Server, tokens: int) -> int:
    return eventually(lambda: (n := generated(server)) >= tokens and n)


def saved(server: Server, tokens: int) -> int:
    """Wait until the journal has been written after so many tokens."""
    wait_for_tokens(server, tokens)
    before = server.metric("longhaul_journal_bytes_total")
    eventually(lambda: server.metric("longhaul_journal_bytes_total") > before)
    return generated(server)


# The container dies


@pytest.mark.parametrize("name", ["a-job", None])
def test_request_resumes_after_container_death(
    begin: Callable[..., Server], undisturbed: list[Any], name: str | None
) -> None:
    server = begin()
    answer = send_soon(server, name)
    before = saved(server, total(undisturbed) // 2)
    server.send(signal.SIGKILL)
    server.exit_status()
    with pytest.raises(httpx.TransportError):
        answer.result()
    successor = begin()
    response = send(successor, name)
    assert told(response) == undisturbed
    (resumed,) = lines_of(successor, "job_resumed")
    kept = int(response.headers["x-longhaul-resumed-tokens"])
    assert kept == resumed["tokens"] == total(undisturbed) - generated(successor)
    assert kept >= before // 2 and resumed["finished"] > 0 < resumed["unfinished"]
    assert response.headers.get("x-longhaul-job") == name


def test_finished_named_job_is_answered_from_journal(begin: Callable[..., Server], undisturbed: list[Any]) -> None:
    server = begin()
    body = BODY + json.dumps(UNSEEDED) + "\n"
    first = told(send(server, "a-job", body=body))
    tokens = generated(server)
    assert first[:-1] == undisturbed and tokens == total(first)
    assert told(send(server, "a-job", body=body)) == first
    assert generated(server) == tokens
    server.send(signal.SIGTERM)
    assert server.exit_status() == 0
    successor = begin()
    response = send(successor, "a-job", body=body)
    assert told(response) == first
    assert (generated(successor), int(response.headers["x-longhaul-resumed-tokens"])) == (0, tokens)


def test_unseeded_job_resumes_with_its_seeds(begin: Callable[..., Server]) -> None:
    body = json.dumps(UNSEEDED | {"max_tokens": 250}) + "\n"
    server = begin()
    send_soon(server, None, body)
    saved(server, 150)
    server.send(signal.SIGKILL)
    server.exit_status()
    successor = begin()
    (first,) = told(send(successor, None, body=body))
    assert generated(successor) < 400
    # The first answer has arrived, so that the next request is another one.
    (second,) = told(send(successor, None, body=body))
    assert {choice["seed"] for choice in first["choices"]}.isdisjoint(choice["seed"] for choice in second["choices"])
    # The seeds tell what was generated before and after the kill.
    seed = first["choices"][0]["seed"]
    (again,) = told(send(successor, None, body=json.dumps(json.loads(body) | {"seed": seed})))
    assert [choice["text"] for choice in again["choices"]] == [choice["text"] for choice in first["choices"]]


# The deadline, and clients that leave


def test_interrupted_retries_end_with_undisturbed_answer(shared: Server, undisturbed: list[Any], body: str) -> None:
    before, cuts = generated(shared), 0
    for _ in range(100):
        response = send(shared, timeout_s=1.2, body=body)
        assert response.status_code == 200
        if "x-longhaul-finish-reason" not in response.headers:
            break
        cuts += 1
    assert cuts, "a machine so fast that no deadline comes shows nothing"
    assert told(response) == undisturbed
    assert generated(shared) - before == total(undisturbed)


def test_disconnected_request_is_freed_and_journalled(shared: Server, undisturbed: list[Any], body: str) -> None:
    before = generated(shared)
    with shared.connect() as sock:
        head = f"Host: a\r\nContent-Type: application/jsonlines\r\nContent-Length: {len(body)}"
        sock.sendall(f"POST /invocations HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
        wait_for_tokens(shared, before + 200)
    eventually(lambda: shared.metric("longhaul_sequences_running") == 0)
    assert told(send(shared, body=body)) == undisturbed
    assert generated(shared) - before == total(undisturbed)


# Identical requests at the same time


@pytest.mark.parametrize("name", ["many", None])
def test_identical_requests_share_one_generation(
    shared: Server, undisturbed: list[Any], body: str, name: str | None
) -> None:
    before = generated(shared)
    requests = [send_soon(shared, name, body)]
    for share in (4, 3, 2):  # the last ones come when much is finished
        wait_for_tokens(shared, before + total(undisturbed) // share)
        requests.append(send_soon(shared, name, body))
    for request in requests:
        assert told(request.result()) == undisturbed
    assert generated(shared) - before == total(undisturbed)


def test_unseeded_requests_share_no_generation(shared: Server) -> None:
    before = generated(shared)
    requests = [shared.post_soon(json=UNSEEDED) for _ in range(3)]
    texts = {choice["text"] for request in requests for choice in request.result().json()["choices"]}
    assert len(texts) == 6 and generated(shared) - before == 6 * 100


def test_unseeded_requests_of_one_name_share_generation(shared: Server) -> None:
    before = generated(shared)
    requests = [shared.post_soon(json=UNSEEDED, headers=headers("unseeded")) for _ in range(3)]
    choices = [request.result().json()["choices"] for request in requests]
    assert choices[0] == choices[1] == choices[2] and generated(shared) - before == 2 * 100


def test_remaining_request_has_whole_answer(shared: Server, undisturbed: list[Any], body: str) -> None:
    before = generated(shared)
    other = send_soon(shared, "left", body)
    wait_for_tokens(shared, before + 200)
    assert send(shared, "left", timeout_s=1.5, body=body).headers["x-longhaul-finish-reason"] == "deadline"
    assert told(other.result()) == undisturbed
    assert generated(shared) - before == total(undisturbed)


# Conflicts


def test_other_request_with_known_name_conflicts(begin: Callable[..., Server]) -> None:
    def conflict(server: Server) -> None:
        response = server.post(json={"inputs": "another"}, headers=headers("a-job"))
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (409, "job_conflict", "job")
        assert error["message"] == (
            "a job of this name has another request; send the same request again, or choose another name"
        )

    server = begin()
    running = send_soon(server, "a-job")
    wait_for_tokens(server, 200)
    conflict(server)
    assert running.result().status_code == 200
    conflict(server)
    server.send(signal.SIGKILL)
    server.exit_status()
    conflict(begin())


@pytest.mark.parametrize("name", ["", "a job", "a/b", "é", "a" * 129])
def test_malformed_job_name_is_refused(server: Server, name: str) -> None:
    response = server.post(json={"inputs": "a"}, headers={k: v.encode() for k, v in headers(name).items()})  # type: ignore[misc]
    assert (response.status_code, response.json()["error"]["param"]) == (
        400,
        "X-Amzn-SageMaker-Custom-Attributes: job",
    )


# Shutdown


@pytest.mark.parametrize("state", ["at work", "standing still"])
def test_sigterm_journals_open_work(begin: Callable[..., Server], undisturbed: list[Any], state: str) -> None:
    body = BODY + "".join(json.dumps(line | {"max_tokens": 8000, "stop": []}) + "\n" for line in LINES[:12])
    server = begin(LONGHAUL_CHECKPOINT_INTERVAL_S=3600)
    named, unnamed = send_soon(server, "a-job", body), send_soon(server, None, body.replace(" is", " was"))
    wait_for_tokens(server, 500)
    if state == "standing still":
        server.kill_engine(signal.SIGSTOP)
    began = time.monotonic()
    server.send(signal.SIGTERM)
    eventually(lambda: server.ping()[0] == 503)
    if state == "at work":  # which goes on until it is told again, or its time is over
        server.send(signal.SIGTERM)
    for answer, name in ((named, "a-job"), (unnamed, None)):
        response = answer.result()
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "shutting_down")
        assert (error["job"], error["resumable"]) == (name, True)
        assert error["message"].endswith("the same request, sent again, goes on where it was")
    assert time.monotonic() - began < 25
    assert server.exit_status() == 0
    successor = begin()
    response = send(successor, "a-job", timeout_s=2, body=body)
    assert int(response.headers["x-longhaul-resumed-tokens"]) > 0
    assert send(successor, None, 2, body.replace(" is", " was")).headers["x-longhaul-resumed-tokens"]


def test_two_servers_never_mix_one_job(begin: Callable[..., Server], undisturbed: list[Any]) -> None:
    first, second = begin(), begin()
    one = send_soon(first, "a-job")
    saved(first, total(undisturbed) // 4)
    other = send_soon(second, "a-job")
    assert told(one.result()) == told(other.result()) == undisturbed
    assert len(lines_of(first, "job_lost")) == 1 and not lines_of(second, "job_lost")
    third = begin()
    assert told(send(third, "a-job")) == undisturbed
    assert generated(third) == 0


# The store fails


def test_failing_store_costs_no_request(
    begin: Callable[..., Server], checkpoints: Path, undisturbed: list[Any]
) -> None:
    server = begin()
    running = send_soon(server, "a-job")
    saved(server, total(undisturbed) // 8)
    moved = checkpoints.rename(checkpoints.with_suffix(".moved"))
    checkpoints.write_text("no directory")
    eventually(lambda: server.metric("longhaul_journal_broken") == 1)
    assert told(send(server, "other")) == undisturbed  # one that finds it broken
    assert told(running.result()) == undisturbed
    assert len(lines_of(server, "journal_broken")) == 1
    checkpoints.unlink()
    moved.rename(checkpoints)
    eventually(lambda: server.metric("longhaul_journal_broken") == 0)
    eventually(lambda: server.metric("longhaul_journal_unsaved_bytes") == 0)
    assert len(lines_of(server, "journal_healed")) == 1
    assert server.metric("longhaul_journal_errors_total") >= 1
    server.send(signal.SIGKILL)
    server.exit_status()
    successor = begin()
    assert told(send(successor, "a-job")) == told(send(successor, "other")) == undisturbed
    assert generated(successor) == 0
