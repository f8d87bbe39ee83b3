"""Paths as clients write them: which one is meant, and what is said of one that is not served."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from container.dialects import document
from container.server.body import waits_for_100

GENERATING: dict[str, document.Route] = {
    "/invocations": "invocations",
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
}
"""Paths that generate. SageMaker's takes every dialect, told by the body's content type and shape."""
HEALTH = ("/ping", "/health", "/v1", "/")
"""Paths that tell the server's health: SageMaker's, that of servers like this one, and those that a probe asks for if
nobody has named one."""

_OPENAI = ("chat", "completions", "models")
_CHAT = "POST /v1/chat/completions takes messages in OpenAI's form"
_FILES = "OpenAI's batches and files are not served; POST /invocations takes a batch's file itself, as JSON lines"
_TEXT = "this server generates text and nothing else: POST /invocations and POST /v1/chat/completions do"
_UNSERVED = {
    "responses": f"OpenAI's Responses API is not served; {_CHAT}",
    "conversations": f"OpenAI's Conversations API is not served; {_CHAT}",
    "assistants": f"OpenAI's Assistants API is not served; {_CHAT}",
    "threads": f"OpenAI's Assistants API is not served; {_CHAT}",
    "realtime": f"OpenAI's Realtime API is not served; {_CHAT}",
    "messages": f"Anthropic's Messages API is not served; {_CHAT}, and POST /invocations a message batch's lines",
    "complete": f"Anthropic's Text Completions API is not served; {_CHAT}",
    "api": f"Ollama's API is not served; {_CHAT}",
    "generate": "this path of other servers is not served; POST /invocations takes inputs with parameters",
    "generate_stream": "streams are not served; POST /invocations takes inputs with parameters",
    **dict.fromkeys(("batches", "files", "uploads"), _FILES),
    **dict.fromkeys(("embeddings", "embed", "audio", "images", "videos", "moderations", "rerank", "score"), _TEXT),
}
"""Messages for what clients of other services ask, by the first part of the path behind `/v1`."""


def served_path(path: str) -> str:
    """Return the path without empty parts, and with one `/v1` where OpenAI's base URL lacks it or has it twice."""
    parts = [part for part in path.split("/") if part]
    while parts[:2] == ["v1", "v1"]:
        del parts[0]
    if parts and parts[0] in _OPENAI:
        parts.insert(0, "v1")
    return "/" + "/".join(parts)


def not_served(path: str) -> str:
    """Return what a client is told that asks for a path which there is not."""
    first = path.removeprefix("/v1").lstrip("/").partition("/")[0]
    return _UNSERVED.get(first, "there is no such path; generation is POST /invocations, and health is GET /ping")


class ServedPaths:
    """The ASGI application around the routes, which gives them the path that the client means."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = served_path(scope["path"])
            # An exchange says itself what becomes of its connection.
            is_exchange = scope["path"] in GENERATING and scope["method"] == "POST"
            if not is_exchange and waits_for_100(Request(scope)):
                send = _closing(send)
        await self._app(scope, receive, send)


def _closing(send: Send) -> Send:
    """Return a `send` whose answer ends the connection: what came on it next would be taken for the body."""

    async def send_closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return send_closing
