"""A container that answers as ./serve does where max_new_tokens is a number, and with 400 where it isn't.

Run as Settings.serve, never imported. Slow enough that kills find requests in its hands; prints what it takes.
"""

from __future__ import annotations

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(f"took {len(body)} bytes", flush=True)
        time.sleep(0.05)
        asked = json.loads(body)
        if isinstance(asked["parameters"]["max_new_tokens"], int):
            self.answer(200, [{"generated_text": asked["inputs"]}])
        else:
            self.answer(400, {"error": "max_new_tokens is not a number"})

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    print("the container is here", flush=True)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    server.daemon_threads = True
    server.serve_forever(poll_interval=0.02)
