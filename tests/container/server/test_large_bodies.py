"""Documents and lines that are too large for the server process: readers answer them as small ones are answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from testing.server import Server, eventually

JSON_LINES = {"content-type": "application/jsonlines"}
LARGE = {"metadata": {"of no effect": "a" * (5 << 20)}}
"""Makes an OpenAI document a large one."""
COMPLETION: dict[str, Any] = {
    "prompt": ["The sea is", "The sky is", "An é 日 😀"],
    "max_tokens": 12,
    "n": 2,
    "seed": 7,
    "logprobs": 2,
    "stop": ["zzz"],
}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 12, "seed": 7}


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Server]:
    """Start a server with its default limits."""
    with Server(tiny_model_dir, tmp_path_factory.mktemp("roomy") / "log") as server:
        yield server.wait_until_ready()


def readers(server: Server) -> list[psutil.Process]:
    return [child for child in psutil.Process(server.process.pid).children() if is_reader(child)]


def is_reader(process: psutil.Process) -> bool:
    try:
        command = process.cmdline()
    except psutil.NoSuchProcess:  # also one that has ended and is still listed
        return False
    return "container.reader.process" in command or command[:1] == ["longhaul-reader"]


def without_names(answer: Any) -> Any:
    """Return an answer without what is new in each, and without the digits of logprobs that a batch may change."""
    match answer:
        case dict():
            return {name: without_names(value) for name, value in answer.items() if name not in ("id", "created")}
        case list():
            return [without_names(value) for value in answer]
        case float():
            return pytest.approx(answer, abs=1e-3)
    return answer


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/invocations", COMPLETION),
        ("/invocations", CHAT),
        ("/v1/completions", COMPLETION | {"echo": True, "logprobs": None}),
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 3}),
    ],
)
def test_large_document_answers_like_small_one(roomy: Server, path: str, document: dict[str, Any]) -> None:
    small, large = roomy.ask(document, path), roomy.ask(document | LARGE, path)
    assert without_names(large) == without_names(small)


def test_large_answer_has_length_and_no_chunks(roomy: Server) -> None:
    response = roomy.post(json=CHAT | LARGE)
    assert int(response.headers["content-length"]) == len(response.content) > 0
    assert response.headers["content-type"] == "application/json"
    assert "transfer-encoding" not in response.headers


@pytest.mark.parametrize(
    ("document", "status", "param"),
    [
        (COMPLETION | {"prompt": ["fine", " b" * 9000]}, 400, "prompt[1]"),
        (COMPLETION | {"temperature": "hot"}, 400, "temperature"),
        (COMPLETION | {"messages": []}, 400, "prompt"),
    ],
)
def test_large_document_names_its_bad_field(roomy: Server, document: dict[str, Any], status: int, param: str) -> None:
    response = roomy.post(json=document | LARGE)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_large_invalid_json_and_prompt_are_refused(roomy: Server) -> None:
    response = roomy.post(content=b"{" + b"a" * (5 << 20), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    response = roomy.post(content=b"a" * (5 << 20), headers={"content-type": "text/plain"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_memory_bomb_document_gives_413_alone(roomy: Server) -> None:
    neighbour = roomy.post_soon(json=COMPLETION)
    body = b'{"prompt": [' + b"{}," * (16 << 20) + b"{}]}"
    response = roomy.post(content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "document_too_complex")
    assert without_names(neighbour.result().json()) == without_names(roomy.ask(COMPLETION))
    assert readers(roomy) == []


def test_reader_killed_during_generation_gives_413(roomy: Server) -> None:
    asked = roomy.post_soon(json=COMPLETION | LARGE | {"max_tokens": 8000, "ignore_eos": True})
    eventually(lambda: roomy.metric("longhaul_sequences_running") > 0)
    (reader,) = readers(roomy)
    reader.kill()
    assert asked.result().status_code == 413
    assert roomy.metric("longhaul_sequences_running") == 0
    assert roomy.ping()[0] == 200


def test_process_1_leaves_reader_status_to_owner(start: Callable[..., Server]) -> None:
    command = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    server = start(command=command).wait_until_ready()
    asked = server.post_soon(json=COMPLETION | LARGE | {"max_tokens": 8000, "ignore_eos": True})
    eventually(lambda: server.metric("longhaul_sequences_running") > 0)
    process = psutil.Process(server.process.pid).children()[0]
    next(child for child in process.children() if is_reader(child)).kill()
    assert asked.result().status_code == 413


def test_disconnect_ends_the_reader(roomy: Server) -> None:
    with pytest.raises(httpx.ReadTimeout):
        roomy.post(json={"prompt": "a", "max_tokens": 8000, "ignore_eos": True} | LARGE, timeout=0.5)
    eventually(lambda: not readers(roomy))
    eventually(lambda: roomy.metric("longhaul_sequences_running") == 0)


def openai_line(custom_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def test_large_line_keeps_place_and_form(roomy: Server) -> None:
    first, large, last = roomy.ask_lines(
        [openai_line("a", COMPLETION), openai_line("b", COMPLETION | LARGE), openai_line("c", COMPLETION)]
    )
    assert [line["custom_id"] for line in (first, large, last)] == ["a", "b", "c"]
    texts = [[choice["text"] for choice in line["response"]["body"]["choices"]] for line in (first, large, last)]
    assert texts[0] == texts[1] == texts[2]


def test_bad_large_line_fails_alone_and_named(roomy: Server) -> None:
    bad, good = roomy.ask_lines([openai_line("a", COMPLETION | LARGE | {"typo": 1}), openai_line("b", COMPLETION)])
    assert (bad["custom_id"], bad["error"]["code"]) == ("a", "unknown_parameter")
    assert good["response"]["status_code"] == 200


def test_line_of_killed_reader_fails_alone(roomy: Server) -> None:
    endless = COMPLETION | LARGE | {"max_tokens": 8000, "ignore_eos": True}
    lines = [openai_line("a", endless), openai_line("b", COMPLETION)]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    asked = roomy.post_soon(content=body, headers=JSON_LINES)
    eventually(lambda: roomy.metric("longhaul_sequences_running") > 0)
    readers(roomy)[0].kill()
    bad, good = map(json.loads, asked.result().text.splitlines())
    assert (bad["custom_id"], bad["error"]["code"]) == ("a", "document_too_complex")
    assert (good["custom_id"], good["error"]) == ("b", None)


def test_many_blank_lines_delay_nothing_else(roomy: Server) -> None:
    """Reading them all in one go would hold a worker for many seconds, and two such files would hold up everything."""
    files = [roomy.post_soon(content=b"\n" * (2 << 20), headers=JSON_LINES) for _ in range(2)]
    eventually(lambda: roomy.metric("longhaul_requests_running") == 2)
    assert roomy.ask(CHAT)
    assert not any(file.done() for file in files)
    assert [file.result().json()["error"]["code"] for file in files] == ["empty_batch"] * 2


def test_memory_bomb_line_fails_alone_and_named(roomy: Server) -> None:
    bad = json.dumps(openai_line("a", {"prompt": []})).encode().replace(b"[]", b"[" + b"{}," * (16 << 20) + b"{}]")
    good = [json.dumps(openai_line(custom_id, COMPLETION)).encode() for custom_id in ("a", "b")]
    response = roomy.post(content=b"\n".join([bad, *good]), headers=JSON_LINES)
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["a", "a", "b"]
    codes = [answer["error"] and answer["error"]["code"] for answer in answers]
    assert codes == ["document_too_complex", "duplicate_custom_id", None]


@pytest.mark.parametrize("sizes", [({}, {}), (LARGE, {}), ({}, LARGE), (LARGE, LARGE)], ids=["ss", "ls", "sl", "ll"])
def test_second_large_line_of_name_fails_alone(roomy: Server, sizes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    first, second = (openai_line("the same", COMPLETION | size) for size in sizes)
    answers = roomy.ask_lines([first, second, openai_line("another", COMPLETION)])
    assert [answer["response"]["status_code"] for answer in answers] == [200, 400, 200]
    assert (answers[1]["custom_id"], answers[1]["error"]["code"]) == ("the same", "duplicate_custom_id")


def test_large_documents_and_lines_leave_no_spool(roomy: Server) -> None:
    roomy.ask(CHAT | LARGE)
    roomy.ask_lines([openai_line("a", COMPLETION | LARGE), openai_line("a", COMPLETION)])

    def open_spools() -> list[Path]:
        files = [file for file in Path(f"/proc/{roomy.process.pid}/fd").iterdir() if file.is_symlink()]
        return [file for file in files if "longhaul-" in str(file.readlink())]

    eventually(lambda: not open_spools())
