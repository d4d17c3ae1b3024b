"""The process: a socket, the models, and a way down that loses nothing."""

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

KEEP_ALIVE = 75  # seconds; more than the balancers in front of us keep an idle connection, so that they never use a closed one
BACKLOG = 2048
PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, and then until what was accepted is answered.

    Raises Error when a model can't be loaded or the port can't be listened on.
    """
    configure_log(sys.stderr.isatty())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # while the models load; nothing is accepted yet
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    begun = time.perf_counter()
    with listen(settings.host, settings.port) as listener:
        application = Application(settings)
        Image.init()  # else the first picture waits for Pillow's readers
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
        seconds = round(time.perf_counter() - begun, 2)
        log.info(f"ready at {address}", extra={**facts, "models": names, "seconds": seconds})
        signal.signal(signal.SIGTERM, lambda *_: None)  # what uvicorn hands the signal on to, once it is done
        await server.serve(sockets=[listener])
        await application.repository.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises Error when there can be none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Error(f"{host} port {port}: can't be listened on: {reason(error).lower()}") from None


class _Server(uvicorn.Server):
    """Uvicorn, but on its way down it goes on listening until what was accepted is answered, so that whoever watches the
    server sees it, and new work is refused with words instead of a closed door."""

    def __init__(self, config: uvicorn.Config, application: Application) -> None:
        super().__init__(config)
        self._application = application
        self.stop_grpc: Callable[[float], Awaitable[None]] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        application, begun = self._application, time.monotonic()
        application.draining = True
        log.info("shutting down", extra={"at_work": application.at_work})
        end = begun + application.settings.drain
        if self.stop_grpc:
            await self.stop_grpc(application.settings.drain)
        while application.at_work and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        left = application.at_work
        await super().shutdown(sockets)
        log.info("shut down", extra={"unanswered": left, "seconds": round(time.monotonic() - begun, 2)})


def configure_log(terminal: bool) -> None:
    """Lines for people on a terminal, else a JSON object a line; always on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines() if terminal else _Json())
    for name, level in (("vgg.serving", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in PLAIN}


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
