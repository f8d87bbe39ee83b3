"""Every dialect over a real socket."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer

from testing import ROOT
from testing.exactness import Reference
from testing.server import Server, eventually

JSON_LINES = {"content-type": "application/jsonlines"}
TEXT = {"content-type": "text/plain"}
CHAT = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}
COMPLETION = {"prompt": "The sea is", "max_tokens": 5}
TEXTS = {"inputs": ["The sea is", "The sky is"], "parameters": {"max_new_tokens": 5}}
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {"json": CHAT},
    "completion": {"json": COMPLETION},
    "hugging face": {"json": TEXTS},
    "batch": {"content": json.dumps(CHAT) + "\n" + json.dumps(TEXTS), "headers": JSON_LINES},
    "text": {"content": "The sea is", "headers": TEXT | {"X-Amzn-SageMaker-Custom-Attributes": "max_new_tokens=5"}},
    "an error": {"json": {"inputs": 1}},
}


def hugging_face(inputs: object, **parameters: object) -> dict[str, object]:
    return {"inputs": inputs, "parameters": {"ignore_eos": True, "max_new_tokens": 12} | parameters}


def texts(answer: Any) -> list[str]:
    return [entry["generated_text"] for entry in answer]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# Forms


def test_chat_gives_chat_completion(server: Server) -> None:
    answer = server.ask(CHAT)
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny")
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 5


def test_prompt_gives_text_completion(server: Server) -> None:
    answer = server.ask(COMPLETION | {"prompt": ["The sea is", "The sky is"], "n": 2})
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


def test_token_ids_are_accepted_as_prompt(server: Server) -> None:
    ids = server.ask(COMPLETION | {"prompt": [504, 3505, 314], "temperature": 0})
    assert ids["usage"]["prompt_tokens"] == 3


def test_input_list_is_answered_with_list(server: Server) -> None:
    first, second = server.ask(hugging_face(["The sea is", "The sky is"], details=True))
    assert first["generated_text"] != second["generated_text"]
    assert first["details"]["generated_tokens"] == 12


def test_messages_as_inputs_give_assistant_text(server: Server) -> None:
    (answer,) = server.ask(hugging_face(CHAT["messages"]))
    chat = server.ask(CHAT | {"max_tokens": 12, "temperature": 0, "ignore_eos": True})
    assert answer["generated_text"] == chat["choices"][0]["message"]["content"]


def test_text_gives_text(server: Server) -> None:
    attributes = {"X-Amzn-SageMaker-Custom-Attributes": "our-own-token; max_new_tokens=12;ignore_eos=true"}
    response = server.post(content="The sea is", headers=TEXT | attributes)
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert [response.text] == texts(server.ask(hugging_face("The sea is")))


def test_batch_answers_in_input_order_and_form(server: Server) -> None:
    long = hugging_face("The longest takes the longest", max_new_tokens=60)
    bedrock = {"recordId": "b", "modelInput": COMPLETION}
    openai = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
    first, second, third = server.ask_lines([long, bedrock, openai])
    assert texts(first) == texts(server.ask(long))
    assert (second["recordId"], second["modelOutput"]["object"]) == ("b", "text_completion")
    assert (third["custom_id"], third["response"]["status_code"]) == ("c", 200)


def test_bad_line_fails_alone_blanks_are_skipped(server: Server) -> None:
    good = json.dumps(hugging_face("The sea is")).encode()
    body = b"\xef\xbb\xbf" + good + b"\r\n\r\n{nonsense\n  \n" + b'{"inputs": "a", "typo": 1}\n\xff\n' + good
    response = server.post(content=body, headers=JSON_LINES)
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert [answer["error"]["code"] for answer in answers[1:4]] == ["invalid_json", "unknown_parameter", "invalid_json"]
    assert answers[0] == answers[4] == server.ask(hugging_face("The sea is"))


def test_ten_times_max_running_lines_are_answered(server: Server) -> None:
    lines: list[object] = [hugging_face(f"{number} is", max_new_tokens=1 + number % 3) for number in range(640)]
    answers = server.ask_lines(lines)
    assert len(answers) == 640
    assert answers[600:603] == [server.ask(line) for line in lines[600:603]]


def test_batch_without_lines_is_refused(server: Server) -> None:
    assert error_of(server.post(content=b"\n\n", headers=JSON_LINES), 400)["code"] == "empty_batch"


# HTTP


@pytest.mark.parametrize("name", REQUESTS)
def test_answer_has_length_and_no_chunks(server: Server, name: str) -> None:
    response = server.post(**REQUESTS[name])
    assert int(response.headers["content-length"]) == len(response.content) > 0
    assert "transfer-encoding" not in response.headers
    assert sum(len(key) + len(value) + 4 for key, value in response.headers.raw) < 4096


@pytest.mark.parametrize("name", REQUESTS)
def test_chunked_request_is_accepted(server: Server, name: str) -> None:
    request = httpx.Request("POST", server.url, **REQUESTS[name])
    body = request.read()
    headers = {name: value for name, value in request.headers.items() if name != "content-length"}
    in_chunks = server.post(content=iter([body[:7], body[7:9], body[9:]]), headers=headers)
    assert in_chunks.request.headers["transfer-encoding"] == "chunked"
    assert in_chunks.status_code == server.post(**REQUESTS[name]).status_code


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with server.connect() as connection:
        yield connection


def send_head(connection: socket.socket, length: int, *headers: str) -> None:
    lines = ["POST /invocations HTTP/1.1", "Host: localhost", f"Content-Length: {length}", *headers, "", ""]
    connection.sendall("\r\n".join(lines).encode())


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


def test_expect_100_client_is_told_to_continue(connection: socket.socket) -> None:
    body = json.dumps(COMPLETION).encode()
    send_head(connection, len(body), "Expect: 100-continue")
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    status, headers, _ = read_answer(connection)
    assert (status, "connection" in headers) == (200, False)


def test_expect_100_over_limit_closes_connection(connection: socket.socket) -> None:
    send_head(connection, 10**12, "Expect: 100-continue", "Content-Type: application/jsonlines")
    status, headers, body = read_answer(connection)
    # Anything that it sent next on this connection would be taken for the body.
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["error"]["code"] == "body_too_large"


def test_connection_serves_requests_in_turn(connection: socket.socket) -> None:
    for body in (b'{"inputs": 1}', json.dumps(COMPLETION).encode(), b"{nonsense", json.dumps(CHAT).encode()):
        send_head(connection, len(body))
        connection.sendall(body)
        assert read_answer(connection)[0] == (400 if len(body) < 20 else 200)


def test_document_over_limit_gives_readable_413(server: Server) -> None:
    error = error_of(server.post(json={"inputs": "a" * 5_000_000}), 413)
    assert "100000 bytes" in error["message"] and "application/jsonlines" in error["message"]


def test_batch_over_limit_gives_readable_413(server: Server) -> None:
    error = error_of(server.post(content=b'{"inputs": "a"}\n' * 2_500_000, headers=JSON_LINES), 413)
    assert "30000000 bytes" in error["message"]


def test_line_over_limit_fails_alone(server: Server) -> None:
    good = json.dumps(hugging_face("The sea is"))
    response = server.post(content=f'{{"inputs": "{"a" * 200_000}"}}\n{good}', headers=JSON_LINES)
    first, second = map(json.loads, response.text.splitlines())
    assert first["error"]["code"] == "line_too_long"
    assert second == server.ask(hugging_face("The sea is"))


def test_unknown_content_type_gives_415(server: Server) -> None:
    error = error_of(server.post(content=b"a,b", headers={"content-type": "text/csv"}), 415)
    assert "application/jsonlines" in error["message"]


def test_bad_field_gives_400_with_its_name(server: Server) -> None:
    error = error_of(server.post(json=hugging_face("a", temperature="hot")), 400)
    assert error["param"] == "parameters.temperature"


def test_bad_prompt_fails_before_any_work(server: Server) -> None:
    before = server.metric("longhaul_generation_tokens_total")
    error = error_of(server.post(json=hugging_face(["a", " b" * 9000])), 400)
    assert (error["param"], error["code"]) == ("inputs[1]", "context_length_exceeded")
    assert server.metric("longhaul_generation_tokens_total") == before


def test_prompt_that_never_fits_is_refused(server: Server) -> None:
    error = error_of(server.post(json=hugging_face("a", max_new_tokens=8192)), 400)
    assert error["param"] == "parameters.max_new_tokens" and "8192 in all" in error["message"]


def test_unknown_path_gives_404_in_our_form(server: Server) -> None:
    assert error_of(server.post("/generate", json={}), 404)["code"] == "not_found"


def test_wrong_method_gives_405_in_our_form(server: Server) -> None:
    response = httpx.get(f"{server.url}/invocations", trust_env=False)
    assert error_of(response, 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ping_takes_both_methods(server: Server, method: str) -> None:
    response = httpx.request(method, f"{server.url}/ping", trust_env=False)
    assert (response.status_code, response.json()) == (200, {"status": "ready", "reason": None})


# Sampling and stopping

SAMPLED = {"temperature": 1.0}


def test_n_choices_differ_and_seed_reproduces_them(server: Server) -> None:
    request = hugging_face("The sea is", num_return_sequences=4, **SAMPLED, seed=7, details=True)
    first = server.ask(request)
    assert len(set(texts(first))) == 4
    assert server.ask(request) == first


def test_choice_seed_reproduces_it_alone(server: Server) -> None:
    request = COMPLETION | SAMPLED | {"max_tokens": 12, "ignore_eos": True}
    for choice in server.ask(request | {"n": 3})["choices"]:
        assert server.ask(request | {"seed": choice["seed"]})["choices"][0]["text"] == choice["text"]


def test_seed_gives_same_text_among_31_others(server: Server) -> None:
    seeded = hugging_face("The sea is", **SAMPLED, seed=5)
    others: list[object] = [hugging_face(f"{number} is", **SAMPLED) for number in range(31)]
    together = server.ask_lines([*others[:16], seeded, *others[16:]])
    assert together[16] == server.ask(seeded)


def test_text_ends_exactly_before_stop_string(server: Server) -> None:
    (whole,) = texts(server.ask(hugging_face("The sea is", max_new_tokens=40)))
    middle = len(whole) // 2
    stop = next(whole[at : at + 3] for at in range(middle, len(whole)) if whole[at : at + 3].isascii())
    (answer,) = server.ask(hugging_face("The sea is", max_new_tokens=40, stop=["never said", stop], details=True))
    assert answer["generated_text"] == whole[: whole.index(stop)]
    assert answer["details"]["finish_reason"] == "stop"


def test_stop_string_waits_for_min_new_tokens(server: Server) -> None:
    def ask(tokens: int, **more: object) -> str:
        (answer,) = texts(server.ask(hugging_face("The sea is", max_new_tokens=tokens, ignore_eos=True, **more)))
        return answer.rstrip("\N{REPLACEMENT CHARACTER}")

    least, whole = ask(20), ask(60)
    stop = next(character for character in whole[len(least) :] if character in least)
    assert ask(60, min_new_tokens=20, stop=[stop]) == whole[: whole.index(stop, len(least))]


# The batch changes nothing

LENGTHS = [*range(1, 30), 40, 60, 90]


def prompts(words: Callable[[int], str]) -> list[str]:
    return [" ".join(words(number * 7 + place) for place in range(length)) for number, length in enumerate(LENGTHS)]


def test_32_prompts_together_equal_each_alone(server: Server) -> None:
    inputs = prompts(lambda number: f"word{number}")
    together = server.ask(hugging_face(inputs, max_new_tokens=24))
    assert texts(together) == [texts(server.ask(hugging_face(each, max_new_tokens=24)))[0] for each in inputs]


@pytest.fixture(scope="module", autouse=True)
def real_server(tmp_path_factory: pytest.TempPathFactory, model_dir: str) -> Iterator[Server]:
    """Start a server that loads its model while the tests above run on the other one."""
    log = tmp_path_factory.mktemp("real-server") / "log"
    with Server(model_dir, log, LONGHAUL_DTYPE="float32", LONGHAUL_THREADS=2) as server:
        yield server


NEW_TOKENS = 12
PENALTY = 1.3
"""On repetition: left to itself, so small a model soon repeats a token, which would show nothing."""


class PaddedReference(Reference):
    """Generates for eight prompts at a time, too, as a real model takes long for each alone."""

    def together(self, prompts: list[list[int]]) -> list[list[int]]:
        eights = [prompts[first : first + 8] for first in range(0, len(prompts), 8)]
        return [row for eight in eights for row in self._padded(eight)]

    def _padded(self, prompts: list[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        padding = [[0] * (width - len(prompt)) for prompt in prompts]
        output = self.model.generate(
            torch.tensor([[*pad, *prompt] for pad, prompt in zip(padding, prompts, strict=True)]),
            attention_mask=torch.tensor([[*pad, *[1] * (width - len(pad))] for pad in padding]),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            **self._options,
        )
        rows: list[list[int]] = output[:, width:].tolist()
        return rows


def token_ids(entry: Any) -> list[int]:
    return [token["id"] for token in entry["details"]["tokens"]]


def test_32_prompts_equal_generate_and_single_requests(
    real_server: Server, model_dir: str, assert_exact: Callable[..., None]
) -> None:
    real_server.wait_until_ready()
    story = (ROOT / "LICENSE").read_text().split()
    inputs = prompts(lambda number: story[number % len(story)])
    to_its_limit: dict[str, object] = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "ignore_eos": False}
    with_ids = to_its_limit | {"repetition_penalty": PENALTY, "details": True, "logprobs": 0}
    asked: Future[httpx.Response] = real_server.post_soon(json=hugging_face(inputs, **with_ids))
    together = eventually(asked.done) and asked.result().json()
    tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
    ids: list[list[int]] = tokenizer(inputs)["input_ids"]
    reference = PaddedReference(model_dir, suppress_tokens=[tokenizer.eos_token_id], repetition_penalty=PENALTY)
    assert_exact(reference, ids, [token_ids(entry) for entry in together], reference.together(ids))
    assert texts(together) == [tokenizer.decode(token_ids(entry), skip_special_tokens=True) for entry in together]
    for each in (0, 13, 31):
        alone = [token_ids(entry) for entry in real_server.ask(hugging_face(inputs[each], **with_ids))]
        assert_exact(reference, [ids[each]], alone, [token_ids(together[each])])
        assert_exact(reference, [ids[each]], alone, reference.generate([ids[each]], new_tokens=NEW_TOKENS))
