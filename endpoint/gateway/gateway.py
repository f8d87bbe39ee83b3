"""The one port: refuses web pages, gives SageMaker's requests to our handlers and passes all others to the backend.

Services are told apart as AWS's own front does, by the name that a request is signed for. Signatures aren't checked.
What neither we nor the embedded backend have is answered with AWS's own form of "not implemented".
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from endpoint.backend.backend import Backend
from endpoint.gateway.error_answers import PlainAnswer, error_answer, not_implemented, s3_lacks
from endpoint.gateway.proxy import Proxy, send_answer
from endpoint.gateway.request import Answer, BodyTooLarge, ClientGone, bucket_of, service_of
from endpoint.gateway.request import Request as Request
from endpoint.origin_guard import OriginGuard
from endpoint.settings import Settings

HEALTH_PATH = "/_longhaul/health"

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Answer]]


def make_app(settings: Settings, backend: Backend, routes: Mapping[str, Handler]) -> ASGIApp:
    """`routes` has a handler for "sagemaker" and one for "sagemaker-runtime", and for whatever else is ours."""
    return Gateway(settings, backend, routes)


def make_server(app: ASGIApp) -> uvicorn.Server:
    """To be given a bound socket: `serve(sockets=[sock])`."""
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        for sock in sockets or []:
            # asyncio sets this only where the socket was made with a protocol's number. Head and body of an answer are
            # two packets; without it the second waits 40 ms for the client to acknowledge the first.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().startup(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the platform's: there is more to end than this."""
        yield


class Gateway:
    """The ASGI app."""

    def __init__(self, settings: Settings, backend: Backend, routes: Mapping[str, Handler]) -> None:
        self._settings = settings
        self._backend = backend
        self._routes = routes
        self._guard = OriginGuard(settings.host)
        self._proxy = Proxy()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(Request(scope, receive), scope, receive, send)
        # A WebSocket is refused by not being accepted.

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._proxy.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        objection = self._guard.rejection_reason(request.headers)
        if objection is not None:
            await send_answer(send, error_answer(request, 403, "AccessDenied", objection))
            return
        service = service_of(request.path, request.headers, request.query)
        bucket = bucket_of(request.headers["host"]) if service in ("s3", "") else None
        if request.path.startswith("/_") and bucket is None:
            await send_answer(send, _own(request))
            return
        handler = self._routes.get(service)
        if handler is not None:
            answer = await _handle(handler, request)
            if answer is not None:
                await send_answer(send, answer)
            return
        path, host = scope["raw_path"].decode("latin-1"), request.headers["host"]
        if self._backend.services is not None:
            if service and service not in self._backend.services:
                await send_answer(send, not_implemented(request, service))
                return
            if service in ("s3", "") and (lacks := s3_lacks(request, bucket)):
                await send_answer(send, not_implemented(request, lacks))
                return
            if bucket is not None:
                # By path: MiniStack takes some keys at a virtual host for its own routes, its reset among them.
                path, host = f"/{bucket}{path}", f"localhost:{self._settings.port}"
        query = f"?{request.query}" if request.query else ""
        await self._proxy.pass_on(request, f"{self._backend.url}{path}{query}", host, receive, send)


async def _handle(handler: Handler, request: Request) -> Answer | None:
    """None where nobody waits for it any more."""
    try:
        return await handler(request)
    except ClientGone:
        return None
    except BodyTooLarge as error:
        return error_answer(request, 413, "RequestEntityTooLargeException", str(error))
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return error_answer(request, 500, "InternalFailure", "An internal error occurred.")


def _own(request: Request) -> Answer:
    """No bucket has such a name. The backend's own routes (MiniStack's reset, say) are nobody's business."""
    if request.path == HEALTH_PATH:
        return PlainAnswer(200, {"content-type": "application/json"}, b'{"status": "ok"}')
    return error_answer(request, 404, "NotFound", f"There is nothing at {request.path}")
