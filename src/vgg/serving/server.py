"""The server process: sockets, models, logging, and a graceful shutdown."""

import asyncio
import ctypes
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ..errors import Error
from ..files import reason
from . import Settings, limits
from .application import Application
from .connections import limited
from .logs import logging_to
from .tls import Certificate

log = logging.getLogger("vgg.serving")

KEEP_ALIVE = 75  # seconds; longer than load balancers keep idle connections, so that they never reuse a closed one
BACKLOG = 2048
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h
SETTLE = 0.02  # seconds in which clients notice that the server accepts no more connections
LINGER = 1.0  # seconds in which new connections may send a request at the end of a shutdown


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests.

    Raises:
        Error: a model can't be loaded, or the server can't listen on the port.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # while the models load, no request is accepted
    _return_freed_memory()
    with logging_to(sys.stderr):
        asyncio.run(_serve(settings))


def _return_freed_memory() -> None:
    """Make glibc give freed blocks of 1 MiB or more back to the system. It would keep those of up to 32 MiB, in many arenas."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**20)
        mallopt(M_ARENA_MAX, 2)


async def _serve(settings: Settings) -> None:
    started = time.perf_counter()
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    with listen(settings.host, settings.port) as listener:
        application = Application(settings)
        server = _Server(_configuration(application, certificate), application)
        host, port = listener.getsockname()[:2]
        scheme = "https" if certificate else "http"
        facts = {"address": f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"}
        if settings.grpc_port is not None:
            from .grpc import start

            bound, server.stop_grpc = await start(application, settings.host, settings.grpc_port, certificate)
            facts["grpc"] = f"{host}:{bound}"
        if certificate:
            facts["certificate_expires"] = certificate.expires
        if certificate and sys.platform != "win32":  # which has no such signal
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, certificate.reload)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again after the shutdown
        loading = asyncio.create_task(server.load(facts, started))
        await server.serve(sockets=[listener])
        await loading
        await application.repository.close()


def _configuration(application: Application, certificate: Certificate | None) -> uvicorn.Config:
    settings = application.settings
    front: ASGIApp = application
    if settings.allow_origins:
        front = CORSMiddleware(
            application, settings.allow_origins, ("GET", "POST"), ("*",), expose_headers=("x-request-id", "retry-after")
        )
    # A connection needs two descriptors until its TLS handshake is complete.
    number = limits.connections(1 if settings.grpc_port is None else 2, descriptors=2 if certificate else 1)
    protocol: Any = limited(number, certificate.context if certificate else None)
    return uvicorn.Config(
        front, http=protocol, log_config=None, access_log=False, lifespan="off", ws="none",
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=1,
        backlog=limits.ACCEPTS,
    )  # fmt: skip


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Error if the address is not available."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        created = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Error(f"can't listen on {host} port {port}: {reason(error).lower()}") from None
    # asyncio disables Nagle's algorithm, which delays responses by 40 ms, only if the socket names its protocol.
    return socket.socket(created.family, created.type, socket.IPPROTO_TCP, fileno=created.detach())


class _Server(uvicorn.Server):
    """Uvicorn, but it listens until all accepted requests are finished: health checks still work during the shutdown, and new
    requests get a response instead of a refused connection."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application
        self.stop_grpc: Callable[[float], Awaitable[None]] | None = None

    async def load(self, facts: dict[str, Any], started: float) -> None:
        """Load the models, then accept requests. If a model can't be loaded, end the server and raise the Error."""
        try:
            await self._application.repository.load_all()
        except Exception:
            if not self.should_exit:  # after a signal, the outcome does not matter
                self.should_exit = True
                raise
        if self.should_exit:
            return
        self._application.admission.loaded = True
        names = [f"{model.name}:{model.version}" for model in self._application.repository]
        seconds = round(time.perf_counter() - started, 2)
        log.info(f"ready at {facts['address']}", extra={**facts, "models": names, "seconds": seconds})

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # uvicorn's is also the number of connections that it accepts at once

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        admission, settings = self._application.admission, self._application.settings
        started, admission.draining = time.monotonic(), True
        if admission.loaded:
            log.info("shutting down", extra={"active": admission.active})
        end = started + settings.drain
        if self.stop_grpc:
            await self.stop_grpc(settings.drain)
        while admission.active and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        unanswered = admission.active
        await self._finish_new_connections(sockets or [])
        await super().shutdown(sockets)
        if self._application.traces:
            self._application.traces.close()
        if admission.loaded:
            log.info("shut down", extra={"unanswered": unanswered, "seconds": round(time.monotonic() - started, 2)})

    async def _finish_new_connections(self, listeners: list[socket.socket]) -> None:
        """Close the listeners, and respond to the clients that have connected: closing resets what has not been accepted."""
        loop, state = asyncio.get_running_loop(), self.server_state
        protocol: Any = self.config.http_protocol_class
        for listener in listeners:
            loop.remove_reader(listener.fileno())
            listener.listen(0)  # further clients try again, until they are refused
        await asyncio.sleep(SETTLE)
        accepted = [one for listener in listeners for one in _accept_all(listener)]
        for server in self.servers:
            server.close()
        for one in accepted:
            await loop.connect_accepted_socket(lambda: protocol(config=self.config, server_state=state, app_state={}), one)
        end = time.monotonic() + LINGER
        connections: set[Any] = state.connections
        while any(one.is_new or one.waits for one in connections):
            if time.monotonic() > end or self.force_exit:
                break
            await asyncio.sleep(SETTLE)


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that a listener has not accepted yet."""
    with suppress(OSError):  # there are no more
        while True:
            yield listener.accept()[0]
