"""The `serve` of a small image for tests of real containers; it tells and does what it is asked. Never imported.

GET: /environment, /facts (process id, terminals, /dev/shm, the model directory), /fetch?URL (the answer to a request
from inside; $VARIABLES in the URL are expanded), /say?N (N numbered lines, 200 a second), /die?CODE.
POST /invocations has the path of such a request as its body. IGNORE_SIGTERM=1 is for its environment.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

MODEL = Path("/opt/ml/model")
_NUMBERS = count()


def facts() -> dict[str, Any]:
    shm = os.statvfs("/dev/shm")
    return {
        "pid": os.getpid(),
        "has_terminal": any(os.isatty(number) for number in range(3)),
        "shm_bytes": shm.f_blocks * shm.f_frsize,
        "model": {path.name: path.read_text() for path in MODEL.iterdir()},
        "is_model_writable": not os.statvfs(MODEL).f_flag & os.ST_RDONLY,
    }


def fetch(url: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:
            return {"status": answer.status, "text": answer.read().decode()}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "text": error.read().decode()}
    except OSError as error:
        return {"status": 0, "text": str(error)}


def say(lines: int) -> None:
    for _ in range(lines):
        print(f"line {next(_NUMBERS)}", flush=True)
        time.sleep(0.005)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(self.path)

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def answer(self, target: str) -> None:
        path, _, parameter = target.partition("?")
        content: Any = None
        if path == "/environment":
            content = dict(os.environ)
        elif path == "/facts":
            content = facts()
        elif path == "/fetch":
            content = fetch(os.path.expandvars(parameter))
        elif path == "/say":
            threading.Thread(target=say, args=(int(parameter),)).start()
        elif path == "/die":
            os._exit(int(parameter))
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    server = ThreadingHTTPServer(("0.0.0.0", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    server.daemon_threads = True
    # A handler in any case: the kernel drops signals that process 1 has none for.
    is_deaf = "IGNORE_SIGTERM" in os.environ
    signal.signal(signal.SIGTERM, lambda *_: None if is_deaf else threading.Thread(target=server.shutdown).start())
    print("here", flush=True)
    server.serve_forever(poll_interval=0.02)
    print("bye", flush=True)


if __name__ == "__main__":
    main()
