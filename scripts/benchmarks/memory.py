"""Effect of large bodies on the server process: its memory and its `/ping`, with a model so small that text is the
work.

lines       200 MB of JSON lines, short items
gzip        as many lines, compressed
bomb        1.5 GB of zeros, compressed 1:1000: refused at the limit of a body
prompts     one JSON document of 64 MiB, 10,000 prompts
text        one JSON document of 64 MiB, a single prompt that is too long
nonsense    one JSON document of 64 MiB, made to take gigabytes when it is decoded
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from testing import ROOT
from testing.tiny_models import save_tiny_model

from .serving import Served, Watch

MAX_GROWTH_MB = 150.0
MAX_PING_P99_MS = 100.0
_MIB = 1 << 20
_PIECE = 1 << 20
_GZIP = 31  # deflate's largest window, within gzip's head and checksum


def lines(size: int, name: str = "item") -> Iterator[bytes]:
    """Generate items of about 1,000 characters, each with an answer of one token."""
    words = _words()
    number = written = 0
    while written < size:
        prompt = " ".join(words[(number * 7 + index) % len(words)] for index in range(150))
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
        request = {"custom_id": f"{name}-{number}", "method": "POST", "url": "/v1/completions", "body": body}
        line = json.dumps(request).encode() + b"\n"
        yield line
        number, written = number + 1, written + len(line)


def prompts(size: int) -> Iterator[bytes]:
    words = _words()
    count = 10_000
    yield b'{"max_tokens": 1, "temperature": 0, "prompt": ['
    for number in range(count):
        text = "\\u00e9 \\ud83d\\ude00 "  # an emoji makes Python store every character of a text in four bytes
        while len(text) < size // count - 20:
            text += words[(number + len(text)) % len(words)] + " "
        yield (b", " if number else b"") + b'"%s"' % text.encode()
    yield b"]}"


def other_lines(size: int) -> Iterator[bytes]:
    return lines(size, "another")  # the same lines would be the same job, which would only repeat its texts


def bomb(size: int) -> Iterator[bytes]:
    yield from (bytes(_PIECE) for _ in range(size // _PIECE))


def text(size: int) -> Iterator[bytes]:
    yield b'{"prompt": "'
    yield from (b"the sea " * (size // 8 - 8) for _ in range(1))
    yield b'"}'


def nonsense(size: int) -> Iterator[bytes]:
    yield b'{"prompt": ['
    yield b"{}," * (size // 3 - 10)
    yield b"{}]}"


def compressed(body: Iterator[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(wbits=_GZIP)
    for piece in body:
        yield compressor.compress(piece)
    yield compressor.flush()


def _words() -> list[str]:
    documents = (ROOT / "examples/documents.jsonl").read_text()
    return [word for word in documents.split() if word.isascii() and '"' not in word and "\\" not in word]


BODIES: dict[str, tuple[Callable[[int], Iterator[bytes]], int, str]] = {
    "lines": (lines, 200_000_000, "application/jsonlines"),
    "gzip": (other_lines, 200_000_000, "application/jsonlines"),
    "bomb": (bomb, 1_500_000_000, "application/jsonlines"),
    "prompts": (prompts, 64 * _MIB - 1000, "application/json"),
    "text": (text, 64 * _MIB - 1000, "application/json"),
    "nonsense": (nonsense, 64 * _MIB - 1000, "application/json"),
}
COMPRESSED = ("gzip", "bomb")


def measure(served: Served, name: str, scale: float) -> tuple[Watch, dict[str, Any]]:
    make, size, content_type = BODIES[name]
    with tempfile.TemporaryFile() as body:
        pieces = make(int(size * scale))
        for piece in compressed(pieces) if name in COMPRESSED else pieces:
            body.write(piece)
        length = body.tell()
        body.seek(0)
        connection = served.connect()
        with served.watched() as watch:
            started = time.perf_counter()
            headers = {"content-type": content_type, "content-length": str(length)}
            if name in COMPRESSED:
                headers["content-encoding"] = "gzip"
            connection.request("POST", "/invocations", body, headers)
            response = connection.getresponse()
            received = newlines = 0
            while piece := response.read(_PIECE):
                received, newlines = received + len(piece), newlines + piece.count(b"\n")
            took = time.perf_counter() - started
        connection.close()
    return watch, {
        "body_mb": round(length / 1e6, 1),
        "status": response.status,
        "answer_mb": round(received / 1e6, 1),
        "answer_lines": newlines,
        "seconds": round(took, 1),
        "growth_mb": round(watch.growth_mb, 1),
        "ping_p99_ms": round(watch.ping_p99_ms, 1),
        "ping_max_ms": round(watch.ping_max_ms, 1),
        "pings": len(watch.pings_s),
        "bad_pings": watch.bad_pings,
    }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=list(BODIES), default=list(BODIES))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the sizes of the bodies")


def run(options: argparse.Namespace) -> dict[str, Any]:
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        save_tiny_model(Path(directory), options.model)
        print("| body | MB | status | answer MB | s | server grows MB | ping p99 ms | ping max ms | pings |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        served = Served(Path(directory), LONGHAUL_MAX_BATCH_TOKENS=2048, LONGHAUL_KV_CACHE_TOKENS=65536)
        try:
            measure(served, "lines", 0.005)  # things loaded at first use must not count as growth
            for name in options.only:
                results[name] = result = measure(served, name, options.scale)[1]
                print(
                    f"| {name} | {result['body_mb']} | {result['status']} | {result['answer_mb']} | {result['seconds']}"
                    f" | {result['growth_mb']} | {result['ping_p99_ms']} | {result['ping_max_ms']}"
                    f" | {result['pings']} |",
                    flush=True,
                )
        finally:
            served.close()
    print(f"promised: the server grows by less than {MAX_GROWTH_MB:.0f} MB, ping p99 under {MAX_PING_P99_MS:.0f} ms")
    return results
