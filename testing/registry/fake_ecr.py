"""An ECR that refuses what a test says, in the service's own words, as an emulator never does."""

from __future__ import annotations

import base64
import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from testing.loopback import Answer, Loopback

HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
PASSWORD = "a-secret-for-twelve-hours"
TOKEN = base64.b64encode(f"AWS:{PASSWORD}".encode()).decode()


class FakeEcr(Loopback):
    """A fake ECR. `refusals`: (code, message) by operation. `answers`: its other answers by operation; default:
    success."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        repository = {"repositoryUri": f"{HOST}/longhaul", "imageTagMutability": "IMMUTABLE"}
        login = {"authorizationToken": TOKEN, "proxyEndpoint": f"https://{HOST}"}
        self.refusals: dict[str, tuple[str, str]] = {}
        self.answers: dict[str, dict[str, Any]] = {
            "GetAuthorizationToken": {"authorizationData": [login]},
            "DescribeRepositories": {"repositories": [repository]},
            "CreateRepository": {"repository": repository},
            "GetLifecyclePolicy": {"lifecyclePolicyText": '{"rules": []}'},
        }

    def _answer(self, request: BaseHTTPRequestHandler) -> Answer:
        request.rfile.read(int(request.headers["Content-Length"]))
        operation = request.headers["X-Amz-Target"].rpartition(".")[2]
        if operation in self.refusals:
            code, message = self.refusals[operation]
            return 400, "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message}).encode()
        return 200, "application/x-amz-json-1.1", json.dumps(self.answers.get(operation, {})).encode()
