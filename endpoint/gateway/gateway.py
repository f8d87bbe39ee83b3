"""The one port: refuses web pages, gives the requests of our services to their handlers and forwards all others.

Services are told apart as AWS's own front does, by the name that a request is signed for. Signatures aren't checked.
What neither we nor the embedded backend have is answered with AWS's own form of "not implemented".
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from ipaddress import IPv4Network

import uvicorn
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from endpoint.backend.backend import Backend
from endpoint.gateway.error_responses import error_response, gap_in_s3, not_implemented
from endpoint.gateway.monitoring import ALARM_OPERATIONS, PUT
from endpoint.gateway.one_account import sign_header_for, sign_query_for
from endpoint.gateway.proxy import BackendUnavailable, Proxy
from endpoint.gateway.request import BodyTooLarge, ClientGone, Forward, Request
from endpoint.origin_guard import OriginGuard
from endpoint.settings import Settings

HEALTH_PATH = "/_longhaul/health"
_ACCEPTING = frozenset({"sagemaker", "sagemaker-runtime", "application-autoscaling"})
"""Services whose requests begin something that an ending endpoint could not finish."""
_CLOUDWATCH_ACTIONS = ALARM_OPERATIONS | {PUT}

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response | Forward]]
"""Function that answers a request or leaves it to the backend. Raises ClientGone, BodyTooLarge."""


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that is to be given a bound socket: `serve(sockets=[sock])`."""
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
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the command: there is more to end than this server."""
        yield


class Gateway:
    """The ASGI app. `routes` has the handler of each service of ours, by the name that requests are signed for."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        routes: Mapping[str, Handler],
        networks: Mapping[str, IPv4Network] | None = None,
    ) -> None:
        """`networks` has who may send requests to the addresses besides `settings.host`."""
        self._settings = settings
        self._backend = backend
        self._routes = routes
        self._networks = networks or {}
        self._guard = OriginGuard(settings.host, networks=networks)
        self._proxy = Proxy()
        self._is_ending = False

    def accept_nothing_new(self) -> None:
        """Refuse what is asked of us from now on. The backend stays reachable: containers write their last to it."""
        self._is_ending = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._proxy.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            request = Request(scope, receive)
            try:
                response = await self._respond(request)
                if isinstance(response, Forward):
                    await self._forward(request, scope["raw_path"].decode("latin-1"), response, send)
                    return
            except ClientGone:
                return
            except BackendUnavailable:
                response = error_response(request, 503, "ServiceUnavailable", "Service is unable to handle request.")
            await response(scope, receive, send)
        # A WebSocket is refused by not being accepted.

    async def _forward(self, request: Request, path: str, forward: Forward, send: Send) -> None:
        """Have the backend answer a request. Raises BackendUnavailable, ClientGone."""
        host = request.headers["host"]
        if self._backend.services is not None and request.bucket is not None:
            # By path: MiniStack takes some keys at a virtual host for its own routes, its reset among them.
            path, host = f"/{request.bucket}{path}", f"localhost:{self._settings.port}"
        elif request.address in self._networks:  # an address that the backend doesn't know for its own
            host = f"localhost:{self._settings.port}"
        account, service = self._settings.account, request.service
        query = f"?{sign_query_for(account, service, request.query)}" if request.query else ""
        headers = request.headers | {"host": host}
        if authorization := headers.get("authorization"):
            headers["authorization"] = sign_header_for(account, service, authorization)
        url = f"{self._backend.url}{path}{query}"
        await self._proxy.forward(request, url, headers, send, forward.on_taken)

    async def _respond(self, request: Request) -> Response | Forward:
        """Answer a request that is refused or for us, or leave it to the backend. Raises ClientGone."""
        if reason := self._guard.rejection_reason(request.headers, request.address, request.peer):
            return error_response(request, 403, "AccessDenied", reason)
        if request.path.startswith("/_") and request.bucket is None:  # no bucket has such a name
            if request.path == HEALTH_PATH:
                return Response(b'{"status": "ok"}', headers={"content-type": "application/json"})
            # The backend's own routes (MiniStack's reset, say) are for no client.
            return error_response(request, 404, "NotFound", f"There is nothing at {request.path}")
        try:
            if handle := await self._handler(request):
                if self._is_ending and request.service in _ACCEPTING:
                    return error_response(request, 503, "ServiceUnavailable", "The local endpoint is ending.")
                return await handle(request)
        except ClientGone:
            raise
        except BodyTooLarge as error:
            return error_response(request, 413, "RequestEntityTooLargeException", str(error))
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return error_response(request, 500, "InternalFailure", "An internal error occurred.")
        if self._backend.services is not None:
            if request.service and request.service not in self._backend.services:
                return not_implemented(request, request.service)
            if request.service in ("s3", "") and (gap := gap_in_s3(request)):
                return not_implemented(request, gap)
        return Forward()

    async def _handler(self, request: Request) -> Handler | None:
        """Return the handler of a request's service. Raises ClientGone, BodyTooLarge."""
        if request.service == "" and not _CLOUDWATCH_ACTIONS.isdisjoint(await request.actions()):
            return self._routes.get("monitoring")
        return self._routes.get(request.service)
