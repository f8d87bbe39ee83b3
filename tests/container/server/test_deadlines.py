"""Work that takes longer than its caller waits, over real sockets: the answer comes in time, valid and marked."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from testing.server import Server, endless, eventually, lasting

JSON_LINES = {"content-type": "application/jsonlines"}
LARGE = {"metadata": {"of no effect": "a" * (2 << 20)}}
"""Makes an OpenAI document a large one."""
ENDLESS: dict[str, Any] = {"max_tokens": 8000, "ignore_eos": True, "temperature": 0}
CHAT = ENDLESS | {"messages": [{"role": "user", "content": "Hello!"}]}
COMPLETION = ENDLESS | {"prompt": ["The sea is", "The sky is"], "n": 2, "logprobs": 1}
TIMEOUT_S = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    with Server(tiny_model_dir, tmp_path_factory.mktemp("deadlines") / "log") as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    """Start a server whose default timeout is two seconds, and which answers no unfinished texts."""
    settings = {"LONGHAUL_INVOCATION_TIMEOUT_S": 2, "LONGHAUL_ON_DEADLINE": "error"}
    with Server(tiny_model_dir, tmp_path_factory.mktemp("strict") / "log", **settings) as server:
        yield server.wait_until_ready()


def attributes(timeout_s: object, more: str = "") -> dict[str, str]:
    return {"X-Amzn-SageMaker-Custom-Attributes": f"timeout={timeout_s};{more}"}


def ask(server: Server, document: object, path: str = "/invocations", timeout_s: object = TIMEOUT_S) -> httpx.Response:
    """Send a request and check that its answer came in time."""
    began = time.monotonic()
    response = server.post(path, json=document, headers=attributes(timeout_s))
    assert time.monotonic() - began < float(str(timeout_s))
    assert response.headers["x-longhaul-deadline"] == f"timeout={timeout_s};source=attribute"
    return response


def ask_lines(server: Server, lines: list[Any], timeout_s: float = TIMEOUT_S) -> tuple[list[Any], httpx.Response]:
    body = "".join(json.dumps(line) + "\n" for line in lines)
    began = time.monotonic()
    response = server.post(content=body, headers=JSON_LINES | attributes(timeout_s))
    assert time.monotonic() - began < timeout_s
    assert response.status_code == 200, response.text
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert len(answers) == len(lines)
    return answers, response


def cut(response: httpx.Response) -> Any:
    """Return an answer's JSON, after checking that it is marked as unfinished."""
    assert response.status_code == 200, response.text
    assert response.headers["x-longhaul-finish-reason"] == "deadline"
    assert int(response.headers["content-length"]) == len(response.content)
    return response.json()


def refused(response: httpx.Response, status: int = 504) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, "deadline_exceeded")
    return error


def is_idle(server: Server) -> bool:
    return server.metric("longhaul_sequences_running") == server.metric("longhaul_sequences_waiting") == 0


def end_line(server: Server, response: httpx.Response) -> dict[str, Any]:
    """Return the log line of an invocation's end."""
    name = response.headers["x-longhaul-invocation-id"]

    def found() -> list[dict[str, Any]]:
        lines = (line for line in server.log_lines() if line.get("action") == "invocation_end")
        return [line for line in lines if line["invocation_id"] == name]

    return eventually(found)[0]


# Documents


def test_cut_text_is_partial_and_generation_stops(server: Server) -> None:
    response = ask(server, endless("The sea is") | {"parameters": endless("")["parameters"] | {"details": True}})  # type: ignore[operator]
    (entry,) = cut(response)
    eventually(lambda: is_idle(server))
    details = entry["details"]
    assert details["finish_reason"] == "deadline" and 0 < details["generated_tokens"] < 8000
    (whole,) = server.ask(lasting("The sea is", details["generated_tokens"]))
    assert whole == {"generated_text": entry["generated_text"]}


def test_log_names_deadline_and_its_effect(server: Server) -> None:
    (entry,) = cut(response := ask(server, endless("The sea is"), timeout_s=2))
    line = end_line(server, response)
    assert (line["timeout_s"], line["timeout_source"]) == (2, "attribute")
    assert (line["deadline"], line["unfinished"]) == ("cut", 1)
    assert line["completion_tokens"] == entry["details"]["generated_tokens"]


def test_answer_in_time_shows_only_its_deadline(server: Server) -> None:
    response = server.post(json=lasting("The sea is", 3))
    assert response.headers["x-longhaul-deadline"] == "timeout=900;source=setting"
    assert "x-longhaul-finish-reason" not in response.headers and response.json()[0].keys() == {"generated_text"}
    assert end_line(server, response)["deadline"] == "met"


def test_cut_hugging_face_text_has_details(server: Server) -> None:
    """All inputs of a list share their parameters, so that a stop string has to end one of them early."""
    (sea,) = server.ask(lasting("The sea is", 8))
    document = endless("")
    document["inputs"] = ["The sea is", "The sky is"]
    document["parameters"] = {"max_new_tokens": 8000, "ignore_eos": True, "stop": [sea["generated_text"][4:]]}
    first, second = cut(ask(server, document))
    assert first == {"generated_text": sea["generated_text"][:4]}
    assert second["details"]["finish_reason"] == "deadline"


@pytest.mark.parametrize("more", [{}, LARGE], ids=["small", "large"])
def test_cut_chat_says_so_in_choice(server: Server, more: dict[str, Any]) -> None:
    answer = cut(ask(server, CHAT | more, "/v1/chat/completions", timeout_s=TIMEOUT_S + 8 * bool(more)))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "deadline" and choice["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("more", [{}, LARGE], ids=["small", "large"])
def test_cut_completion_marks_and_counts_each_choice(server: Server, more: dict[str, Any]) -> None:
    answer = cut(ask(server, COMPLETION | more, timeout_s=TIMEOUT_S + 8 * bool(more)))
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["deadline"] * 4
    tokens = [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]]
    assert answer["usage"]["completion_tokens"] == sum(tokens) > 0


@pytest.mark.parametrize("more", [{}, LARGE], ids=["small", "large"])
def test_unstarted_prompts_give_empty_choices(server: Server, more: dict[str, Any]) -> None:
    prompts = [f"{number} is" for number in range(700)]
    document = ENDLESS | {"prompt": prompts, "logprobs": 0} | more
    answer = cut(ask(server, document, timeout_s=TIMEOUT_S + 8 * bool(more)))
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(700))
    assert {choice["finish_reason"] for choice in choices} == {"deadline"}
    assert choices[0]["text"] and choices[-1]["text"] == "" and choices[-1]["logprobs"]["tokens"] == []
    assert answer["usage"]["completion_tokens"] == sum(len(choice["logprobs"]["tokens"]) for choice in choices)


def test_cut_text_says_so_in_headers(server: Server) -> None:
    headers = {"content-type": "text/plain"} | attributes(2, "max_new_tokens=8000;ignore_eos=true")
    response = server.post(content="The sea is", headers=headers)
    assert response.status_code == 200 and response.text
    assert response.headers["x-longhaul-finish-reason"] == "deadline"
    assert response.headers["content-type"] == "text/plain; charset=utf-8; finish_reason=deadline"


@pytest.fixture
def standstill(server: Server) -> Iterator[Server]:
    """Stop the server's engine while the context lasts."""
    server.kill_engine(signal.SIGSTOP)
    yield server
    server.kill_engine(signal.SIGCONT)
    eventually(lambda: is_idle(server))


@pytest.mark.parametrize("more", [{}, LARGE], ids=["small", "large"])
def test_document_without_token_gives_504_with_deadline(standstill: Server, more: dict[str, Any]) -> None:
    error = refused(ask(standstill, COMPLETION | {"prompt": ["The fire is"]} | more))
    assert error["message"] == "the deadline (4 s by timeout=) came before the first token"
    assert error["type"] == "server_error"


def test_batch_without_token_is_answered(standstill: Server) -> None:
    answers, _ = ask_lines(standstill, [CHAT, CHAT | LARGE, {"recordId": "b", "modelInput": CHAT}] * 2)
    assert [partial_of(answer) for answer in answers] == [False] * 6
    assert answers[2]["modelInput"] == CHAT


@pytest.mark.parametrize("timeout", ["0", "3601", "soon"])
def test_malformed_timeout_is_refused_by_name(server: Server, timeout: str) -> None:
    for headers in (attributes(timeout), attributes(timeout) | JSON_LINES):
        response = server.post(content=b'{"inputs": "a"}', headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "X-Amzn-SageMaker-Custom-Attributes: timeout")


@pytest.mark.parametrize("content_type", ["application/json", "application/jsonlines"])
def test_unfinished_body_at_deadline_gives_408(server: Server, content_type: str) -> None:
    head = (
        f"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\n"
        "Content-Length: 100\r\nX-Amzn-SageMaker-Custom-Attributes: timeout=1\r\n\r\n{"
    )
    with server.connect() as sock:
        sock.sendall(head.encode())
        answer = received(sock)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"deadline_exceeded"' in answer


def received(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


# Batches


def test_cut_batch_answers_every_line_in_order(server: Server) -> None:
    openai = {"method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    lines: list[Any] = []
    for number in range(400):
        lines.append(openai | {"custom_id": f"o{number}"})
        lines.append({"recordId": f"b{number}", "modelInput": endless(f"{number} is")})
        lines.append(endless(f"{number} was"))
    answers, response = ask_lines(server, lines)
    assert [answer["custom_id"] for answer in answers[::3]] == [f"o{number}" for number in range(400)]
    assert [answer["recordId"] for answer in answers[1::3]] == [f"b{number}" for number in range(400)]
    assert [answer["modelInput"] for answer in answers[1::3]] == [line["modelInput"] for line in lines[1::3]]
    assert [partial_of(answer) for answer in answers[:3]] == [True] * 3
    assert [partial_of(answer) for answer in answers[-3:]] == [False] * 3
    began = sum(map(partial_of, answers))
    assert response.headers["x-longhaul-finish-reason"] == "deadline"
    line = end_line(server, response)
    assert (line["items"], line["failed_items"]) == (1200, 1200 - began)
    eventually(lambda: is_idle(server))


def partial_of(answer: Any) -> bool:
    """Return True for a line's text, which must be marked, and False for an error, which must be the deadline's."""
    match answer:
        case [{"details": details}]:
            assert details["finish_reason"] == "deadline" and details["generated_tokens"] > 0
            return True
        case {"modelOutput": output}:
            return partial_of(output)
        case {"response": {"status_code": 200, "body": {"choices": [choice], "usage": usage}}, "error": None}:
            assert choice["finish_reason"] == "deadline" and usage["completion_tokens"] > 0
            return True
        case {"response": {"status_code": status, "body": body}, "error": error}:
            assert (status, body["error"]["code"], error["code"]) == (504, "deadline_exceeded", "deadline_exceeded")
        case {"recordId": _, "error": error}:
            assert error["errorCode"] == 504
        case _:
            assert answer["error"]["code"] == "deadline_exceeded"
    return False


def test_hundred_thousand_lines_are_answered_in_time(server: Server) -> None:
    """Malformed lines are still answered with their own errors, so far as those show at a glance."""
    line = json.dumps(endless("The sea is")).encode() + b"\n"
    body = line * 50_000 + b"{nonsense\n\n" + line * 49_999
    began = time.monotonic()
    response = server.post(content=body, headers=JSON_LINES | attributes(30))
    assert time.monotonic() - began < 30
    answers = response.content.splitlines()
    assert len(answers) == 100_000
    assert json.loads(answers[50_000])["error"]["code"] == "invalid_json"
    texts = [answer for answer in answers if b"generated_text" in answer]
    assert texts and all(b'"finish_reason":"deadline"' in text for text in texts)
    assert sum(b'"deadline_exceeded"' in answer for answer in answers) == 100_000 - 1 - len(texts)


def test_unstarted_large_lines_are_answered_by_name(server: Server) -> None:
    """The deadline may also come before lines that are being read: a reader's process takes its time to start."""
    openai = {"method": "POST", "url": "/v1/chat/completions", "body": CHAT | LARGE}
    lines: list[Any] = [openai | {"custom_id": f"o{number}"} for number in range(12)]
    lines += [{"recordId": f"b{number}", "modelInput": CHAT | LARGE} for number in range(4)] + [CHAT | LARGE]
    answers, _ = ask_lines(server, lines, timeout_s=12)
    names = [answer.get("custom_id") or answer.get("recordId") for answer in answers]
    assert names == [f"o{number}" for number in range(12)] + [f"b{number}" for number in range(4)] + [None]
    assert not any(map(partial_of, answers[-2:]))
    eventually(lambda: is_idle(server))


# Settings


def test_timeout_setting_is_the_default(strict: Server) -> None:
    response = strict.post(json=endless("The sea is"))
    assert refused(response)["message"].startswith("the deadline (2 s by LONGHAUL_INVOCATION_TIMEOUT_S)")
    assert response.headers["x-longhaul-deadline"] == "timeout=2;source=setting"
    assert end_line(strict, response)["timeout_source"] == "setting"
    eventually(lambda: is_idle(strict))


def test_request_timeout_overrides_setting(strict: Server) -> None:
    response = strict.post(json=lasting("The sea is", 3), headers=attributes(60))
    assert (response.status_code, response.headers["x-longhaul-deadline"]) == (200, "timeout=60;source=attribute")


@pytest.mark.parametrize("more", [{}, LARGE], ids=["small", "large"])
def test_unfinished_document_fails_if_setting_says_error(strict: Server, more: dict[str, Any]) -> None:
    refused(strict.post(json=COMPLETION | more))


def test_unfinished_lines_fail_finished_ones_stay(strict: Server) -> None:
    lines = [lasting("The sea is", 2), endless("The sea is"), lasting("The sky is", 2)]
    first, second, third = strict.ask_lines(lines)  # type: ignore[arg-type]
    assert first[0].keys() == third[0].keys() == {"generated_text"}
    assert second["error"]["code"] == "deadline_exceeded"


# Clients that know only OpenAI's own reasons


def test_setting_lets_cut_texts_end_with_length(tmp_path: Path, tiny_model_dir: Path) -> None:
    settings = {"LONGHAUL_DEADLINE_FINISH_REASON": "length"}
    with Server(tiny_model_dir, tmp_path / "log", **settings) as server:
        server.wait_until_ready()
        lines = [CHAT, CHAT | {"deadline_finish_reason": "deadline"}]
        ends, response = ask_lines(server, lines)
    assert response.headers["x-longhaul-finish-reason"] == "deadline"
    (told,), (asked,) = (answer["choices"] for answer in ends)
    assert (told["finish_reason"], told["deadline"]) == ("length", True)
    assert asked["finish_reason"] == "deadline" and "deadline" not in asked
