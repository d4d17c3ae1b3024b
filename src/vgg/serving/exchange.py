"""One request and its answer: identity, limits, refusals, accounts."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from ..errors import Error
from . import model_server
from .refusals import Busy, Late, Refusal, TooSlow

if TYPE_CHECKING:
    from .application import Application
    from .repository import Model

log = logging.getLogger("vgg.serving")

LINGER = 2.0  # seconds in which a client that is refused may go on sending before the connection is closed
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
LEFT = 499  # nginx's number for a client that went away before it had an answer
FAILURES = {503: "REJECTED", LEFT: "CANCELED", 504: "CANCELED"}  # the statistics' reasons by status; else OTHER
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")


class Exchange:
    """One request and its answer."""

    def __init__(self, application: "Application", scope: Scope, receive: Receive, send: Send) -> None:
        self._application, self._scope, self._receive, self._send = application, scope, receive, send
        self._headers = Headers(scope=scope)
        self._started = time.perf_counter()
        self._held, self._read = 0, False  # bytes of the body, and whether that was all
        self._status = 0
        self._watch: asyncio.Task[None] | None = None
        self._left = False  # the client went away
        self._id = request_id(self._headers)
        scope["app"] = application
        scope["facts"] = {}  # what a handler wants to have logged

    async def run(self) -> None:
        app = self._application
        app.at_work += 1
        try:
            app.check(self._scope, self._headers)
            await app.answer(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if self._left:
                self._status = LEFT
            else:  # its time to finish, while the server goes down, is over
                await self._refuse(going_down())
        except Exception as error:
            await self._refuse(error)
        finally:
            if self._watch:
                self._watch.cancel()
            app.at_work -= 1
            app.release(self._held)
            self._account()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._application.hold(size, self._held)
            self._held += size
            self._read = not message.get("more_body", False)
            if self._read and not self._watch and not unhurried(self._scope):
                self._watch = asyncio.create_task(self._drop_when_left(asyncio.current_task()))
        return message

    async def _drop_when_left(self, work: "asyncio.Task[None] | None") -> None:
        """End the work for a client that goes away before it has an answer, so that the engine works for those who wait."""
        while (await self._receive())["type"] == "http.request":
            pass
        if not self._status and work:
            self._left = True
            work.cancel()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            headers.setdefault("x-content-type-options", "nosniff")
            if self._application.draining:
                headers["connection"] = "close"
        await self._send(message)

    async def _refuse(self, error: Exception) -> None:
        if self._status:  # it is too late to say anything
            log.error("an answer broke off", exc_info=error, extra={"request_id": self._id})
            return
        response = refused(self._scope["path"], self._as_refusal(error))
        if response.headers.get("connection") == "close" and not self._read:
            await self._linger(response)
        else:
            await response(self._scope, self._receive, self.send)

    def _as_refusal(self, error: Exception) -> Error | HTTPException | None:
        if isinstance(error, TimeoutError):
            return Late("no answer before the deadline") if self._read else TooSlow("the body did not arrive in time")
        if isinstance(error, Error | HTTPException):
            return error
        if isinstance(error, MemoryError):
            return Busy("there is not enough memory now", retry_after="1")
        log.error("internal error", exc_info=error, extra={"request_id": self._id})
        return None

    async def _linger(self, response: Response) -> None:
        """Answer now, but close only when the client has stopped sending, or had time to notice: it might lose the answer."""
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await self.send({"type": "http.response.body", "body": response.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass
        await self.send({"type": "http.response.body", "body": b""})

    def _account(self) -> None:
        seconds = time.perf_counter() - self._started
        scope, facts = self._scope, self._scope["facts"]
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._application.metrics.requests.labels(method, route, str(self._status)).inc()
        model: Model | None = facts.pop("served", None)
        if model and self._status < 400:
            model.statistics.answered(seconds)
        elif model:
            model.statistics.failed(FAILURES.get(self._status, "OTHER"), seconds)
        log.info(
            "request",
            extra={
                "request_id": self._id,
                "client": (scope.get("client") or ("",))[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": self._status,
                "ms": round(seconds * 1000, 1),
                **({"model": f"{model.name}:{model.version}"} if model else {}),
                **facts,
            },
        )


def request_id(headers: Headers) -> str:
    """The id that a request brings, or a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def unhurried(scope: Scope) -> bool:
    """Whether a request may take as long as it takes: a model may take longer to load than its caller waits."""
    return bool(scope["path"].startswith("/v2/repository/"))


def going_down() -> Busy:
    return Busy("the server is shutting down", retry_after="5", connection="close")


def refused(path: str, error: Error | HTTPException | None) -> Response:
    """The answer to a request that can't be answered, in the words of the protocol that the path belongs to."""
    headers: Mapping[str, str] = {}
    if isinstance(error, HTTPException):
        status, line, headers = error.status_code, error.detail, error.headers or {}
        line = {404: f"there is nothing at {path}", 405: f"{path} does not take this method"}.get(status, line)
    elif isinstance(error, Refusal):
        status, line, headers = error.status, str(error), error.headers
    elif error is not None:
        status, line = 400, str(error)
    else:
        status, line = 500, "internal error; the server's log says more"
    body: dict[str, Any] = {"error": line}
    if model_server.speaks(path):
        body = {"code": status, "type": type(error).__name__ if error else "InternalError", "message": line}
    return JSONResponse(body, status, headers=dict(headers))
