"""HTTP connections: a limited number of them, and errors of HTTP itself in the formats of the protocols."""

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .exchange import error_response, log_request, request_id
from .limits import PATH
from .refusals import Refusal


class Connection(H11Protocol):
    """An HTTP/1.1 connection. If there are too many, the one that has sent nothing for the longest time is closed.

    A connection that waits for a response is never closed.
    """

    limit: int

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
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
        words = self._received[:PATH].split(b" ", 2)
        path = words[1].decode("latin-1") if len(words) == 3 else ""
        if self.cycle is not None and self.cycle.more_body:  # in the body of a request
            path = self.cycle.scope["path"]
        response = error_response(path, Refusal("the request is not valid HTTP"))
        identity = request_id(response.headers)
        log_request("request", identity, self.client[0] if self.client else "", "", 400, 0.0, path=path)
        headers = [*response.raw_headers, (b"x-request-id", identity.encode()), (b"connection", b"close")]
        # Nothing can be sent if a response has begun.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def limited(number: int) -> type[Connection]:
    """The class of connections of a server that has at most `number` of them."""
    return type("Connection", (Connection,), {"limit": number})
