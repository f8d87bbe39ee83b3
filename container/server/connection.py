"""A connection: HTTP/1.1 as uvicorn speaks it, with bounds on what a client may send and how long we wait for it.

It knows nothing of what is asked. What never becomes a request it answers with an error of our form, and it cuts off a
client that stands still.
"""

from __future__ import annotations

import logging
import socket
import time
from asyncio import TimerHandle, Transport
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from container.errors import ClientTimeout, HeadTooLarge, InvalidRequest, RequestError, URLTooLong
from container.server.outgoing import Outgoing
from container.server.responses import OUTCOMES, error_response
from container.server.stall import Phase, Stall
from container.server.state import ServerState

logger = logging.getLogger(__name__)

MAX_URL_BYTES = 8 << 10
MAX_HEAD_BYTES = 64 << 10
"""Size of URL and headers together; trailers count, too."""
MAX_PIPELINED = 32
"""Requests that wait on one connection, sent before the answers of those before them."""
SEND_AHEAD_BYTES = 128 << 10
"""Bytes in the kernel that are not on their way yet: with more, a slow reader's progress would not show for
megabytes."""
LINGER_S = 5.0
LINGER_BYTES = 64 << 20
"""Bytes and time that a refused client has to finish sending: with less it would see a reset in place of its answer."""


class Connection(HttpToolsProtocol):
    """Owns its clock, and what it has counted of the request that is coming in."""

    def __init__(self, state: ServerState, **options: Any) -> None:
        """`options` are uvicorn's."""
        super().__init__(**options)
        self._state = state
        self._phase: Phase = "new"
        self._is_upgrading = False
        self._is_refused = self._is_closing = False
        self._cycle_at_work: RequestResponseCycle | None = None
        self._url_bytes = self._head_bytes = 0
        self._gap_bytes = 0
        """Bytes received since the parser last got anywhere: it keeps an unfinished line, however long."""
        self._dropped_bytes = 0
        self._clock: TimerHandle | None = None
        self._stall = Stall(min(state.settings.client_timeout_s / 8, 1.0), state.client_timeout_s)
        self._idle_s = 0.0
        self.outgoing: Outgoing = None  # type: ignore[assignment]  # made with the connection, as uvicorn's own parts are
        self._taken_at_end: int | None = None
        """Bytes that the client had when it said that it sends no more, in the middle of an answer."""

    @property
    def may_have_left(self) -> bool:
        """Whether the client has ended its sending, and nothing shows that it still reads."""
        return self._taken_at_end is not None and self.outgoing.taken_bytes <= self._taken_at_end

    @property
    def _is_answering(self) -> bool:
        return self._cycle_at_work is not None and not self._cycle_at_work.response_complete

    # The socket

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, SEND_AHEAD_BYTES)
        self.outgoing = Outgoing(transport, self.loop)
        self._clock = self.loop.call_later(self._stall.interval_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._clock is not None:
            self._clock.cancel()
        if self._phase == "head" and not self._is_refused and not self._is_answering:
            self._log("a client went away before its request was whole", 499, "abandoned")
        if exc is None:  # else a reset: the client has left something unread
            self.outgoing.look()
        self.outgoing.lose()
        if self._cycle_at_work is not None:
            # uvicorn tells only the request that came last; of several sent at once it may be an earlier one's turn.
            _disconnect(self._cycle_at_work)
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Replaces uvicorn's, which loses what comes with an upgrade and answers malformed requests in text."""
        self._stall.has_received = True
        self.outgoing.look()  # a client that sends its next request has mostly taken the answer to the last one
        if self._is_refused or (self._is_closing and self._phase != "body"):
            self._drop(len(data), LINGER_BYTES)
            return
        if self._phase == "whole":
            # Line ends before a request mean nothing (RFC 9112, 2.2); uvicorn would forget an idle connection for them.
            data = data.lstrip(b"\r\n")
            if not data:
                return
        self._unset_keepalive_if_required()
        self._gap_bytes += len(data)
        try:
            self._feed(data)
            if self._gap_bytes > MAX_HEAD_BYTES and self._phase in ("head", "body"):
                raise _too_large()
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, RequestError):
                self._refuse(error.__context__)
            else:
                # The parser's reasons are constants; a callback's error is Python's and could quote what was sent.
                reason = "" if isinstance(error, httptools.HttpParserCallbackError) else f": {error}"
                self._refuse(InvalidRequest(f"this is not HTTP/1.1{reason}", code="malformed_request"))
        except RequestError as error:
            self._refuse(error)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes it, uvicorn's own returns none
        """Tell whether the connection stays, as a client may end only its own half and still read its answers.

        One that has gone looks the same at first. But its system answers what is sent to it with a reset.
        """
        self.outgoing.look()
        if self.transport.is_closing() or self._is_refused or self._phase in ("head", "body"):
            return False
        if not self._is_answering:
            self.outgoing.close_when_taken()
            return self.outgoing.untaken_bytes > 0
        assert self._cycle_at_work is not None
        self.cycle.keep_alive = False  # the last request, behind which the connection is closed
        if self._cycle_at_work.response_started:
            self._taken_at_end = self.outgoing.taken_bytes
        else:
            self.outgoing.send_ahead()
        self.outgoing.watch()
        return True

    def resume_writing(self) -> None:
        self._stall.has_sent = True
        super().resume_writing()

    # The parser

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = data[upgrade.args[0] :]
            # The parser takes the rest for another protocol's. We speak none, so the request goes on in this one (RFC
            # 9110, 7.8): its head is read again without the offer. Java's client offers h2c with its first request.
            first = self.scope["method"], self.url.decode("latin-1"), self.parser.get_http_version()
            lines = ["{} {} HTTP/{}".format(*first).encode("latin-1")]
            lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            data = b"\r\n".join([*lines, b"", rest])
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"] |= {"connection": self, "arrived": time.monotonic()}
        self._phase = "head"
        self._is_upgrading = False
        self._url_bytes = self._head_bytes = self._gap_bytes = self._dropped_bytes = 0
        self._stall.waited_s = 0.0

    def on_url(self, url: bytes) -> None:
        self._url_bytes += len(url)
        if self._url_bytes > MAX_URL_BYTES:
            raise URLTooLong(f"the URL is longer than {MAX_URL_BYTES} bytes")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._url_bytes + self._head_bytes > MAX_HEAD_BYTES:
            raise _too_large()
        if self._phase == "head":  # else a trailer, which uvicorn would put into the headers of a request at work
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            method = self.parser.get_method()
            if method == b"CONNECT":
                raise InvalidRequest("this server is not a proxy", code="malformed_request")
            self.scope["method"] = method.decode("ascii")
            self._is_upgrading = True
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            reason = f"more than {MAX_PIPELINED} requests wait on this connection"
            raise InvalidRequest(reason, code="too_many_requests")
        super().on_headers_complete()
        self.cycle.transport = cast(Transport, _Outlet(self))
        self._phase = "body"
        self._gap_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._gap_bytes = 0
        super().on_body(body)
        if not self._is_answering:
            self._drop(len(body), self._state.settings.max_body_bytes)

    def on_message_complete(self) -> None:
        if not self._is_upgrading:
            self._phase = "whole"
            super().on_message_complete()
            if self.cycle.response_complete and not self._is_closing:  # it was answered early: from now on it is idle
                self._unset_keepalive_if_required()
                wait = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
                self.timeout_keep_alive_task = wait
        if self._is_closing:
            self.outgoing.close_when_taken()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_closing:
            self._unset_keepalive_if_required()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._cycle_at_work = cycle
        super()._start_asgi_task(cycle, app)

    # Refusals and time

    def _refuse(self, error: RequestError) -> None:
        """Give the last answer on this connection and end its work: the framing can't be trusted any more."""
        self._is_refused = True
        self._log(error.message, error.status, OUTCOMES[error.status // 100])
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self.flow.resume_reading()
        may_answer = self._phase in ("new", "head")
        if self._is_answering:
            assert self._cycle_at_work is not None
            may_answer = not self._cycle_at_work.response_started
            _disconnect(self._cycle_at_work)
        if not may_answer:
            self.transport.close()
            return
        response = error_response(error)
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        body = b"" if self.parser.get_method() == b"HEAD" else bytes(response.body)
        self.outgoing.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        # As in `close`, but the request's end can't be made out.
        self.transport.write_eof()
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self.loop.call_later(LINGER_S, self.transport.abort)

    def close(self) -> None:
        """Close once the request is whole and the answer taken. Until then say that no more comes and go on reading.

        A socket closed with bytes unread resets the connection, and the client may lose the answer it has not read.
        """
        self.pipeline.clear()
        if self.transport.is_closing():
            return
        self._is_closing = True
        self.transport.write_eof()
        if self._phase != "body":
            self.outgoing.close_when_taken()

    def _drop(self, size: int, max_bytes: int) -> None:
        """Count what comes after the answer. There is a limit to that, too."""
        self._dropped_bytes += size
        if self._dropped_bytes > max_bytes:
            self.transport.abort()

    def _look(self) -> None:
        """Cut off the client if it has kept us waiting for too long."""
        self._clock = self.loop.call_later(self._stall.interval_s, self._look)
        self._idle_s = self._idle_s + self._stall.interval_s if self._phase == "new" else 0.0
        if self._idle_s >= self.timeout_keep_alive:  # a pool's that was opened ahead; uvicorn counts only used ones
            self.transport.close()
        timeout_s = self._state.client_timeout_s
        untaken_bytes = self.outgoing.untaken_bytes
        missing = self._stall.look(
            self._phase, is_answering=self._is_answering, unsent_bytes=untaken_bytes, timeout_s=timeout_s
        )
        limit = f"{timeout_s:g} s (LONGHAUL_CLIENT_TIMEOUT_S)"
        if missing == "head":
            self._refuse(ClientTimeout(f"the request's head did not come within {limit}"))
        elif missing is not None:
            self.outgoing.lose()
            what = "took nothing of its answer" if missing == "answer" else "sent no more of its body"
            self._log(f"a client {what} for {limit}", 499, "abandoned")
            self.transport.abort()

    def _log(self, message: str, status: int, outcome: str) -> None:
        """Count and log what no exchange reports, because it never became one or has ended."""
        self._state.metrics.requests.labels("unread", outcome).inc()
        logger.info(message, extra={"action": "connection_end", "status": status, "outcome": outcome})


class _Outlet:
    """Transport of a request's cycle, which closes the connection so that the client does not lose the answer."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.outgoing.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.close


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Tell a request's cycle that its answer is not read any more."""
    cycle.disconnected = True
    cycle.waiting_for_100_continue = False
    cycle.message_event.set()


def _too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the head, or what frames the body, is larger than {MAX_HEAD_BYTES} bytes")
