"""The server process: sockets, models, logging, and a graceful shutdown."""

import asyncio
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from PIL import Image
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from ..errors import Error
from ..files import reason
from . import Settings
from .application import Application

log = logging.getLogger("vgg.serving")

KEEP_ALIVE = 75  # seconds; longer than load balancers keep idle connections, so that they never reuse a closed one
BACKLOG = 2048
STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests.

    Raises:
        Error: a model can't be loaded, or the server can't listen on the port.
    """
    configure_log(sys.stderr.isatty())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # while the models load, no request is accepted
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    started = time.perf_counter()
    with listen(settings.host, settings.port) as listener:
        application = Application(settings)
        Image.init()  # load Pillow's decoders before the first request
        await application.repository.load_all()
        front: ASGIApp = application
        if settings.allow_origins:
            front = CORSMiddleware(
                application, settings.allow_origins, ("GET", "POST"), ("*",), expose_headers=("x-request-id", "retry-after")
            )
        config = uvicorn.Config(
            front, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=1, backlog=BACKLOG,
        )  # fmt: skip
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = _Server(config, application)
        facts = {"address": address}
        if settings.grpc_port is not None:
            from .grpc import start

            bound, server.stop_grpc = await start(application, settings.host, settings.grpc_port)
            facts["grpc"] = f"{host}:{bound}"
        names = [f"{model.name}:{model.version}" for model in application.repository]
        seconds = round(time.perf_counter() - started, 2)
        log.info(f"ready at {address}", extra={**facts, "models": names, "seconds": seconds})
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises the signal again after the shutdown
        await server.serve(sockets=[listener])
        await application.repository.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Error if the address is not available."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Error(f"can't listen on {host} port {port}: {reason(error).lower()}") from None


class _Server(uvicorn.Server):
    """Uvicorn, but it listens until all accepted requests are finished: health checks still work during the shutdown, and new
    requests get a response instead of a refused connection."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application
        self.stop_grpc: Callable[[float], Awaitable[None]] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        admission, settings = self._application.admission, self._application.settings
        started, admission.draining = time.monotonic(), True
        log.info("shutting down", extra={"active": admission.active})
        end = started + settings.drain
        if self.stop_grpc:
            await self.stop_grpc(settings.drain)
        while admission.active and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        unanswered = admission.active
        await super().shutdown(sockets)
        log.info("shut down", extra={"unanswered": unanswered, "seconds": round(time.monotonic() - started, 2)})


def configure_log(terminal: bool) -> None:
    """Log to standard error: readable lines on a terminal, otherwise one JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines() if terminal else _Json())
    for name, level in (("vgg.serving", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in STANDARD}


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        entry = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage(), **_facts(record)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{key}={value}" for key, value in _facts(record).items())
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.getMessage()} {facts}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")
