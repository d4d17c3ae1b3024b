"""HTTP connections: a limited number of them, and errors of HTTP itself in the formats of the protocols."""

import asyncio
import socket
import ssl
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import limits
from .exchange import error_response, log_request, request_id
from .refusals import Refusal

HANDSHAKE = 10.0  # seconds in which a client must finish the TLS handshake
GOODBYE = 2.0  # seconds in which a client must confirm the end of a connection with TLS
RECORD = b"\x16"  # first byte of a handshake
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
    """An HTTP/1.1 connection."""

    limit: int

    def __init__(self, *arguments: Any, refused: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Http(h11.SERVER, limits.HEADER_BYTES)
        self.active = time.monotonic()  # when the client last sent something
        self._received = b""  # the last bytes
        self._refused = refused  # it must use TLS and does not

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        make_room(self.connections, self.limit, self)

    def data_received(self, data: bytes) -> None:
        self.active = time.monotonic()
        self._received = data
        if self._refused:
            self._refuse(400, "this port requires TLS; use https://")
        else:
            super().data_received(data)

    def drop(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

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
        self._refuse(*self._reason())

    def _refuse(self, status: int, message: str) -> None:
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


class Opening(asyncio.Protocol):
    """A connection until its TLS handshake is complete. Its first byte shows whether the client uses TLS at all.

    Args:
        context: the server's certificate.
        connections: of the server; this one is among them until it is open.
        limit: maximum number of connections.
        opened: makes the protocol of the open connection, from whether it is secure.
    """

    def __init__(
        self, context: ssl.SSLContext, connections: set[Any], limit: int, opened: Callable[[bool], asyncio.Protocol]
    ) -> None:
        self._context, self._connections, self._limit, self._opened = context, connections, limit, opened
        self._early: list[bytes] = []  # what the client sent right after its handshake
        self._lost = False
        self.active = time.monotonic()
        self.waits, self.is_new = False, True  # as of a connection without a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.pause_reading()
        self.transport = transport
        self._connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._open())
        make_room(self._connections, self._limit, self)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True

    def drop(self) -> None:
        """Close the connection at once."""
        self._task.cancel()
        self.transport.abort()  # a task that has not begun does not

    shutdown = drop

    async def _open(self) -> None:
        transport = self.transport
        try:
            async with asyncio.timeout(HANDSHAKE):
                secure = await _first_byte(transport) == RECORD
                if secure:
                    transport = await asyncio.get_running_loop().start_tls(  # type: ignore[assignment]
                        transport, self, self._context, server_side=True, ssl_shutdown_timeout=GOODBYE
                    )
        except (OSError, asyncio.CancelledError):  # also TimeoutError and SSLError
            self._lost = True
        finally:
            self._connections.discard(self)
        if self._lost or transport.is_closing():
            self.transport.abort()
            return
        connection = self._opened(secure)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        transport.resume_reading()
        for data in self._early:
            connection.data_received(data)


async def _first_byte(transport: asyncio.Transport) -> bytes:
    """The first byte that a client sends, which remains to be read; nothing if it closes the connection."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    with transport.get_extra_info("socket").dup() as copy:  # the event loop does not watch a transport's own descriptor twice
        copy.setblocking(False)
        loop.add_reader(copy, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(copy)
        first: bytes = copy.recv(1, socket.MSG_PEEK)
        return first


def make_room(connections: set[Any], limit: int, new: Any) -> None:
    """If there are too many connections, close the one that has sent nothing for the longest time and waits for no response."""
    if len(connections) > limit:
        others = [one for one in connections if isinstance(one, Connection | Opening) and not one.waits and one is not new]
        closed = min(others, key=lambda one: one.active, default=new)
        connections.discard(closed)
        closed.drop()


def limited(number: int, context: ssl.SSLContext | None = None) -> Callable[..., asyncio.Protocol]:
    """What makes the connections of a server that has at most `number` of them, with TLS if there is a certificate."""
    connection = type("Connection", (Connection,), {"limit": number})
    if context is None:
        return connection

    def opening(**options: Any) -> Opening:
        connections = options["server_state"].connections
        return Opening(context, connections, number, lambda secure: connection(**options, refused=not secure))

    return opening
