"""HTTP connections: a limited number of them, and errors of HTTP itself in the formats of the protocols."""

import asyncio
import sys
import time
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import limits
from .exchange import error_response, log_request, request_id
from .refusals import Refusal

TLS = b"\x16\x03"  # a handshake of any version
HTTP2 = "HTTP/2 is not supported on this port; clients of gRPC need the port of `vgg serve --grpc-port`"
LONG_LINE = f"the request line is longer than {limits.HEADER_BYTES >> 10} KiB"
LARGE_HEADERS = f"the headers are more than {limits.HEADERS} or larger than {limits.HEADER_BYTES >> 10} KiB"
OURS = (HTTP2, LONG_LINE, LARGE_HEADERS)


class Http(h11.Connection):
    """HTTP/1.1 whose requests have headers of a limited number and size, however they arrive."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            if event.method == b"PRI":
                raise h11.RemoteProtocolError(HTTP2, 505)
            if len(event.target) > limits.HEADER_BYTES:
                raise h11.RemoteProtocolError(LONG_LINE, 414)
            size = sum(len(name) + len(value) for name, value in event.headers)
            if len(event.headers) > limits.HEADERS or size > limits.HEADER_BYTES:
                raise h11.RemoteProtocolError(LARGE_HEADERS, 431)
        return event


class Connection(H11Protocol):
    """An HTTP/1.1 connection. If there are too many, the one that has sent nothing for the longest time is closed.

    A connection that waits for a response is never closed.
    """

    limit: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Http(h11.SERVER, limits.HEADER_BYTES)
        self._active = time.monotonic()  # when the client last sent something
        self._received = b""  # the last bytes

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limit:
            others = [one for one in self.connections if isinstance(one, Connection) and not one.waits and one is not self]
            closed = min(others, key=lambda one: one._active, default=self)
            closed.connections.discard(closed)
            closed.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._active = time.monotonic()
        self._received = data
        super().data_received(data)

    @property
    def waits(self) -> bool:
        """Whether a response is due: the request has arrived as a whole."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    @property
    def is_new(self) -> bool:
        """Whether no request has arrived so far."""
        return self.cycle is None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        status, message = self._reason()
        words = self._received[: limits.PATH].split(b" ", 2)
        path = words[1].decode("latin-1") if len(words) == 3 else ""
        if self.cycle is not None and self.cycle.more_body:  # in the body of a request
            path = self.cycle.scope["path"]
        refusal = Refusal(message)
        refusal.status = status
        response = error_response(path, refusal)
        identity = request_id(response.headers)
        client = self.client[0] if self.client else ""
        log_request("request", identity, client, "", status, 0.0, path=path, error=message)
        headers = [*response.raw_headers, (b"x-request-id", identity.encode()), (b"connection", b"close")]
        # Nothing can be sent if a response has begun.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _reason(self) -> tuple[int, str]:
        """The status and the message for what the client has sent."""
        error = sys.exception()
        if self._received.startswith(TLS):
            return 400, "the client speaks TLS on a port without it; use http:// instead of https://"
        if not isinstance(error, h11.RemoteProtocolError) or error.error_status_hint == 400:
            return 400, "the request is not valid HTTP"
        if str(error) in OURS:
            return error.error_status_hint, str(error)
        # h11 gives up on a head that has not ended, wherever it is.
        return (431, LARGE_HEADERS) if b"\n" in self.conn.trailing_data[0] else (414, LONG_LINE)


def limited(number: int) -> type[Connection]:
    """The class of connections of a server that has at most `number` of them."""
    return type("Connection", (Connection,), {"limit": number})
