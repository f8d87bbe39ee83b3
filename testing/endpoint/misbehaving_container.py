"""A container that is well or ill as its environment and the files in its control directory say.

Run as Settings.serve, never imported. At the start, from the environment: EXIT_AT_START=code, HEALTHY_AFTER_S=x,
IGNORE_SIGTERM=1, CHILD=1 (a child that ignores SIGTERM), SAY=text. At any time, files in CONTROL: `sick` (503), `hang`
(no answer to /ping), `healthy` is waited for if WAIT_FOR_HEALTHY=1; `sick-PORT` and so on ail one instance alone.
GET /environment and /model say what it was given.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
CONTROL = Path(os.environ.get("CONTROL", os.devnull))
STARTED_AT = time.monotonic()


def told(what: str) -> bool:
    return (CONTROL / what).exists() or (CONTROL / f"{what}-{PORT}").exists()


def is_well() -> bool:
    if time.monotonic() < STARTED_AT + float(os.environ.get("HEALTHY_AFTER_S", "0")):
        return False
    return not told("sick") and (told("healthy") or "WAIT_FOR_HEALTHY" not in os.environ)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/environment":
            self.answer(200, dict(os.environ))
        elif self.path == "/model":
            directory = Path(os.environ["SM_MODEL_DIR"])
            self.answer(200, sorted(str(path.relative_to(directory)) for path in directory.rglob("*")))
        else:
            while told("hang"):
                time.sleep(0.05)
            self.answer(200 if is_well() else 503, None)

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    print(f"here {os.getpid()} on {PORT}", os.environ.get("SAY", ""), flush=True)
    if "EXIT_AT_START" in os.environ:
        sys.exit(int(os.environ["EXIT_AT_START"]))
    if "CHILD" in os.environ:
        program = "import signal, time; signal.signal(15, signal.SIG_IGN); print('child', flush=True); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", program])
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    server.daemon_threads = True
    if "IGNORE_SIGTERM" in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)
    print("bye", flush=True)


if __name__ == "__main__":
    main()
