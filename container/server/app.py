"""The HTTP surface: SageMaker's two paths, OpenAI's for local use, and the metrics."""

from __future__ import annotations

import time
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from container import __version__
from container.errors import Forbidden, MethodNotAllowed, NotFound
from container.server import openapi
from container.server.exchange import Endpoint, Exchanges
from container.server.paths import GENERATING, HEALTH, ServedPaths, not_served
from container.server.responses import error_response_for, json_response
from container.server.state import WORKING, ServerState

_READING = ["GET", "HEAD"]


def create_app(state: ServerState, exchanges: Exchanges) -> FastAPI:
    routes = [Route(path, Endpoint(state, exchanges, route), methods=["POST"]) for path, route in GENERATING.items()]
    app = FastAPI(title="Longhaul", version=__version__, docs_url=None, redoc_url=None, routes=list(routes))
    app.add_middleware(ServedPaths)
    app.add_exception_handler(HTTPException, partial(_answer_without_route, state))
    served_model = openapi.ServedModel(state.settings.name, "model", int(time.time()), "longhaul")

    async def health() -> Response:
        """200 when the server can take work, and while it recovers from an engine's crash."""
        return json_response(openapi.Health(state.status, state.reason), _health_status(state))

    for path in HEALTH:
        app.add_api_route(path, health, methods=[*_READING, "POST"] if path == "/ping" else _READING)

    @app.api_route("/metrics", methods=_READING)
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(state.metrics.render(), media_type="text/plain; version=0.0.4")

    @app.api_route("/v1/models", methods=_READING)
    async def models() -> Response:
        """The one model."""
        return json_response(openapi.Models("list", [served_model]))

    @app.api_route("/v1/models/{name:path}", methods=_READING)
    async def model(request: Request, name: str) -> Response:
        """The one model, if that is its name."""
        if name == served_model.id:
            return json_response(served_model)
        message = "there is one model here; GET /v1/models has its name, and requests to generate may name any"
        return error_response_for(request, NotFound(message, param="model", code="model_not_found"))

    app.openapi = openapi.document  # type: ignore[method-assign]  # FastAPI's own way to replace it
    return app


def _health_status(state: ServerState) -> int:
    return 200 if state.status in WORKING else 503


async def _answer_without_route(state: ServerState, request: Request, error: Exception) -> Response:
    """Answer where the router has no route for the path, or where that does not take the method."""
    path = request.scope["path"]
    if not isinstance(error, HTTPException) or error.status_code != 405:
        return error_response_for(request, NotFound(not_served(path)))
    methods = ", ".join(sorted({"OPTIONS", *(error.headers or {})["Allow"].split(", ")}))
    if request.method != "OPTIONS":
        response = error_response_for(request, MethodNotAllowed(f"this path takes {methods} only"))
    elif "access-control-request-method" in request.headers:
        message = "web pages of other origins may not call this server; a proxy in front of it could let them"
        response = error_response_for(request, Forbidden(message))
    else:  # some load balancers ask for health in this way
        is_healthy = path not in HEALTH or _health_status(state) == 200
        response = Response(status_code=204 if is_healthy else 503)
    response.headers["allow"] = methods
    return response
