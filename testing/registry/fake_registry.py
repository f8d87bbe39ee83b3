"""A registry that shows the manifests of a folder, one file per tag: all that scripts/push reads from one."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from testing.loopback import Answer, Loopback


class FakeRegistry(Loopback):
    def __init__(self, folder: Path) -> None:
        super().__init__(self._answer)
        self.folder = folder
        self.media_type = "application/vnd.docker.distribution.manifest.v2+json"
        self.refusal: tuple[int, str] | None = None
        self.requests: list[tuple[str, str | None]] = []
        """Path and `Authorization` of each request."""

    def _answer(self, request: BaseHTTPRequestHandler) -> Answer:
        self.requests.append((request.path, request.headers["Authorization"]))
        file = self.folder / request.path.rpartition("/")[2]
        if self.refusal:
            status, message = self.refusal
            return status, "application/json", json.dumps({"errors": [{"code": "X", "message": message}]}).encode()
        if file.exists():
            return 200, self.media_type, file.read_bytes()
        return 404, "application/json", b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'
