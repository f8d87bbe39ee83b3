"""A hub with one repository, the files of a folder, on a loopback port: what huggingface_hub asks of a real one."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/name"


class FakeHub:
    """Serves as long as a `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        """Names of the files whose content was asked for, once for each time."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self)

            do_GET = do_HEAD

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request: for the repository, its tree, or one of its files."""
        path = unquote(urlsplit(request.path).path)
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith(f"{api}/tree/"):
            body = json.dumps(self._tree()).encode()
        elif path.startswith(api):
            names = [{"rfilename": entry["path"]} for entry in self._tree()]
            body = json.dumps({"_id": "1", "id": REPOSITORY, "sha": COMMIT, "siblings": names}).encode()
        else:
            name = path.removeprefix(resolve).partition("/")[2]
            file = self.folder / name
            if not (path.startswith(resolve) and file.is_file()):
                request.send_response(404)
                request.send_header("X-Error-Code", "EntryNotFound" if path.startswith(resolve) else "RepoNotFound")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            body = file.read_bytes()
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            if request.command == "GET":
                self.fetched.append(name)
        request.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def _tree(self) -> list[dict[str, object]]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]
