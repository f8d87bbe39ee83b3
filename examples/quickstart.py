"""Starts `./serve` with the small model, asks it something in each dialect, and prints what comes back.

The client side is plain HTTP from the standard library, so that it also shows how the container is called.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ".models/SmolLM2-135M-Instruct"
DOCUMENTS = ROOT / "examples" / "documents.jsonl"

START_TIMEOUT_S = 300
REQUEST_TIMEOUT_S = 900
STOP_TIMEOUT_S = 30

TOKENS = "longhaul_generation_tokens_total"
SEQUENCES_RUNNING = "longhaul_sequences_running"
SEQUENCES_ENDED = "longhaul_sequences_total"

SHOWN_OF_EACH_TASK = 3


class Failed(Exception):
    """Something that should have worked did not; the message says what."""


class Unreachable(Failed):
    """The server does not listen, or hung up."""


# ---- HTTP ----------------------------------------------------------------------------------------------------------


class Client:
    def __init__(self, port: int) -> None:
        self.port = port
        self.connections: set[http.client.HTTPConnection] = set()

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
        self.connections.add(connection)
        try:
            connection.request(method, path, body, headers={k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            self.connections.discard(connection)
            connection.close()

    def hang_up(self) -> None:
        """Ends what other threads still wait for, so that the server has nothing left to finish."""
        for connection in list(self.connections):
            if connection.sock:
                connection.sock.shutdown(socket.SHUT_RDWR)

    def invoke(self, body: bytes, **headers: str) -> bytes:
        status, answer = self.call("POST", "/invocations", body, **headers)
        if status != 200:
            raise Failed(f"/invocations answered {status}: {answer.decode(errors='replace')[:500]}")
        return answer

    def invoke_json(self, document: dict[str, Any]) -> Any:
        return json.loads(self.invoke(json.dumps(document).encode(), Content_Type="application/json"))

    def ping(self) -> tuple[int, str]:
        """The status code, and the state in the server's own words."""
        try:
            status, body = self.call("GET", "/ping")
        except Unreachable:
            return 0, "not listening yet"
        state = json.loads(body) if body else {}
        return status, state.get("reason") or state.get("status") or str(status)

    def metrics(self) -> dict[str, float]:
        """Each metric summed over its labels."""
        totals: dict[str, float] = {}
        _, text = self.call("GET", "/metrics")
        for line in text.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.partition("{")[0]
                totals[name] = totals.get(name, 0.0) + float(value)
        return totals


# ---- the server ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(port: int) -> Iterator[Client]:
    """`./serve` on a loopback port. The end of its log is shown after a failure."""
    environment = os.environ | {"LONGHAUL_MODEL": MODEL, "LONGHAUL_HOST": "127.0.0.1", "LONGHAUL_PORT": str(port)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(["./serve"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        client = Client(port)
        try:
            wait_until_ready(client, process)
            yield client
        except Failed:
            stop(process)
            log.seek(0)
            print("\nThe end of the server's log:\n", *log.read().splitlines()[-20:], sep="\n", file=sys.stderr)
            raise
        finally:
            client.hang_up()
            stop(process)


def wait_until_ready(client: Client, process: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    line = StatusLine()
    while True:
        waited = time.monotonic() - started
        status, state = client.ping()
        if status == 200:
            line.end(f"./serve is ready on port {client.port} after {waited:.1f} s")
            return
        if process.poll() is not None:
            raise Failed(f"./serve ended with status {process.returncode}")
        if waited > START_TIMEOUT_S:
            raise Failed(f"./serve was not ready after {START_TIMEOUT_S} s: {state}")
        line.show(f"./serve on port {client.port}: {state} ({waited:.0f} s)")
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- the terminal --------------------------------------------------------------------------------------------------


class StatusLine:
    """One line that is rewritten on a terminal; elsewhere a line every five seconds."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.next_print = time.monotonic() + 5

    def show(self, text: str) -> None:
        if self.is_terminal:
            print(f"\r\x1b[2K{text}", end="", flush=True)
        elif time.monotonic() >= self.next_print:
            print(text, flush=True)
            self.next_print = time.monotonic() + 5

    def end(self, text: str) -> None:
        print(f"\r\x1b[2K{text}" if self.is_terminal else text, flush=True)


def heading(title: str) -> None:
    print(f"\n── {title} {'─' * (76 - len(title))}", flush=True)


def exchange(prompt: str, answer: str) -> None:
    print(textwrap.fill(" ".join(prompt.split()), 78, initial_indent="> ", subsequent_indent="> "))
    for paragraph in answer.strip().splitlines():
        print(textwrap.fill(paragraph, 78, initial_indent="    ", subsequent_indent="    "))
    if not answer.strip():
        raise Failed(f"nothing was generated for {prompt!r}")


# ---- the dialects --------------------------------------------------------------------------------------------------


def show_chat(client: Client) -> None:
    heading("OpenAI chat")
    question = "Give me three tips for a good night's sleep."
    messages = [{"role": "user", "content": question}]
    answer = client.invoke_json({"messages": messages, "max_tokens": 80, "temperature": 0})
    exchange(question, answer["choices"][0]["message"]["content"])


def show_list(client: Client) -> None:
    heading("Hugging Face: a list of prompts")
    prompts = ["The best thing about reading books is", "Every morning, the baker", "If I could fly, I would"]
    parameters = {"max_new_tokens": 40, "temperature": 0.7, "top_p": 0.9, "seed": 1}
    answers = client.invoke_json({"inputs": prompts, "parameters": parameters})
    for prompt, answer in zip(prompts, answers, strict=True):
        exchange(prompt, answer["generated_text"])


def show_text(client: Client) -> None:
    heading("Plain text")
    prompt = "The old lighthouse keeper looked out over the sea and saw"
    attributes = {"X_Amzn_SageMaker_Custom_Attributes": "max_new_tokens=60"}
    answer = client.invoke(prompt.encode(), Content_Type="text/plain", **attributes)
    exchange(prompt, answer.decode())


def show_batch(client: Client) -> None:
    items = [json.loads(line) for line in DOCUMENTS.read_text().splitlines()]
    heading(f"Batch: {DOCUMENTS.name}, {len(items)} old texts as OpenAI Batch lines")
    started = time.monotonic()
    results = run_batch(client, DOCUMENTS.read_bytes(), len(items))
    seconds = time.monotonic() - started

    if len(results) != len(items):
        raise Failed(f"{len(results)} results for {len(items)} lines")
    errors = [result for result in results if result["error"] or result["response"]["status_code"] != 200]
    if errors:
        raise Failed(f"{len(errors)} lines failed, the first with {json.dumps(errors[0])[:500]}")

    show_samples(items, results)
    usages = [result["response"]["body"]["usage"] for result in results]
    read = sum(usage["prompt_tokens"] for usage in usages)
    written = sum(usage["completion_tokens"] for usage in usages)
    print(
        f"\n{len(items)} texts in {seconds:.1f} s: {read} tokens read, {written} written, "
        f"{written / seconds:.0f} written per second"
    )
    show_accuracy(items, results)


def run_batch(client: Client, body: bytes, lines: int) -> list[dict[str, Any]]:
    """Sends the file in a thread and tells from /metrics how far the server is."""
    outcome: list[bytes | Exception] = []

    def send() -> None:
        try:
            outcome.append(client.invoke(body, Content_Type="application/jsonlines"))
        except Exception as error:
            outcome.append(error)

    before = client.metrics()
    started = time.monotonic()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    line = StatusLine()
    while sender.is_alive():
        now = client.metrics()
        done = now.get(SEQUENCES_ENDED, 0) - before.get(SEQUENCES_ENDED, 0)
        tokens = now.get(TOKENS, 0) - before.get(TOKENS, 0)
        bar = "█" * round(20 * done / lines)
        line.show(
            f"{bar:░<20} {done:.0f} of {lines} done, {now.get(SEQUENCES_RUNNING, 0):.0f} running, "
            f"{tokens:.0f} tokens, {time.monotonic() - started:.0f} s"
        )
        sender.join(0.3)

    answer = outcome[0]
    if isinstance(answer, Exception):
        raise Failed(str(answer)) from answer
    line.end(f"{'█' * 20} {lines} of {lines} done")
    return [json.loads(result) for result in answer.splitlines() if result.strip()]


def text_of(result: dict[str, Any]) -> str:
    text: str = result["response"]["body"]["choices"][0]["message"]["content"]
    return text


def show_samples(items: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    shown: dict[str, int] = {}
    for item, result in zip(items, results, strict=True):
        if item["custom_id"] != result["custom_id"]:
            raise Failed(f"the result of {item['custom_id']} came back as {result['custom_id']}")
        task = item["custom_id"].partition("-")[0]
        shown[task] = shown.get(task, 0) + 1
        if shown[task] <= SHOWN_OF_EACH_TASK:
            print(f"\n[{item['custom_id']}] {item['body']['metadata']['source']}")
            exchange(textwrap.shorten(item["body"]["messages"][-1]["content"], 300, placeholder=" …"), text_of(result))


def show_accuracy(items: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    labelled = [
        (item["body"]["metadata"]["label"], text_of(result).strip().lower())
        for item, result in zip(items, results, strict=True)
        if "label" in item["body"]["metadata"]
    ]
    right = sum(answer.startswith(label) for label, answer in labelled)
    print(f"Positive or negative: {right} of {len(labelled)} right ({right / len(labelled):.0%})")


# ---- all of it -----------------------------------------------------------------------------------------------------


def end_by_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    # As an exception, so that the server is stopped too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_by_signal)
    steps: list[Callable[[Client], None]] = [show_chat, show_list, show_text, show_batch]
    try:
        with server(free_port()) as client:
            for step in steps:
                step(client)
    except Failed as failure:
        print(f"\nquickstart failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nquickstart interrupted; the server is stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    print("\nThe server is stopped. To keep one running:")
    print(f"  LONGHAUL_MODEL={MODEL} ./serve")
    return 0


if __name__ == "__main__":
    sys.exit(main())
