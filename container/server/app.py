"""The HTTP surface: SageMaker's two paths, OpenAI's for local use, and the metrics."""

from __future__ import annotations

import time

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from container import __version__
from container.dialects import document
from container.errors import InvalidRequest
from container.server import openapi
from container.server.exchange import Endpoint, Exchanges
from container.server.responses import error_response
from container.server.state import WORKING, ServerState

GENERATING: dict[str, document.Route] = {
    "/invocations": "invocations",
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
}
"""Paths that generate. SageMaker's takes every dialect, told by the body's content type and shape."""


def create_app(state: ServerState, exchanges: Exchanges) -> FastAPI:
    routes = [Route(path, Endpoint(state, exchanges, route), methods=["POST"]) for path, route in GENERATING.items()]
    app = FastAPI(title="Longhaul", version=__version__, docs_url=None, redoc_url=None, routes=list(routes))
    started = int(time.time())

    @app.api_route("/ping", methods=["GET", "POST"])
    async def ping() -> Response:
        """200 when the server can take work, and while it recovers from an engine's crash."""
        body = msgspec.json.encode(openapi.Health(state.status, state.reason))
        return Response(body, status_code=200 if state.status in WORKING else 503, media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(state.metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Response:
        """The one model."""
        model = openapi.ServedModel(state.settings.name, "model", started, "longhaul")
        return Response(msgspec.json.encode(openapi.Models("list", [model])), media_type="application/json")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        """Give the router's own errors our form."""
        if error.status_code == 405:
            ours = InvalidRequest("this path does not take this method", code="method_not_allowed")
        else:
            ours = InvalidRequest("there is no such path; generation is POST /invocations", code="not_found")
        ours.status = error.status_code
        response = error_response(ours)
        response.headers.update(error.headers or {})  # a 405 owes its Allow
        return response

    app.openapi = openapi.document  # type: ignore[method-assign]  # FastAPI's own way to replace it
    return app
