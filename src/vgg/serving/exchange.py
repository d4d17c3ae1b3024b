"""One HTTP request and its response: request id, limits, errors, metrics, log."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, TypedDict

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import Error
from . import limits, model_server, routes
from .admission import Admission, has_deadline, requires_readiness, shutting_down
from .metrics import Metrics
from .operations import schema
from .refusals import Busy, Late, Refusal, TooSlow
from .repository import Model
from .traces import Traces

log = logging.getLogger("vgg.serving")

PART = 2**16  # bytes of a response in one message
LINGER = 2.0  # seconds for which a refused client may continue to send before the connection is closed
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
DISCONNECTED = 499  # nginx's status for a client that disconnects before the response
FAILURES = {503: "REJECTED", DISCONNECTED: "CANCELED", 504: "CANCELED"}  # Triton's reasons by status; otherwise OTHER
METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
INTERNAL_ERROR = "internal error; see the server's log"


class ErrorBody(TypedDict):
    error: Annotated[str, schema("One line that says what is wrong.")]


class Exchange:
    """One HTTP request and its response."""

    def __init__(
        self, router: ASGIApp, admission: Admission, metrics: Metrics, traces: Traces | None,
        scope: Scope, receive: Receive, send: Send,
    ) -> None:  # fmt: skip
        self._router, self._admission, self._metrics = router, admission, metrics
        self._scope, self._receive, self._send = scope, receive, send
        self._cancels = has_deadline(scope["path"])  # whether work ends with the deadline, and if the client disconnects
        self._end = asyncio.get_running_loop().time() + admission.deadline
        self._timeout = asyncio.timeout_at(self._end if self._cancels else None)
        self._headers = Headers(scope=scope)
        self._id = request_id(self._headers)
        self._started = time.perf_counter()
        self._received, self._complete = 0, False  # bytes of the body, and whether it has ended
        self._status = 0
        self._watcher: asyncio.Task[None] | None = None
        self._disconnected = False
        traced = traces and requires_readiness(scope["path"])
        self._trace = traces.start(self._headers, self._started) if traces and traced else None
        self._memory = scope["memory"] = admission.reservation()
        scope["facts"] = {}  # handlers add the model and what else to log

    async def run(self) -> None:
        """Route the request, and send an error response if it fails."""
        self._admission.active += 1
        try:
            self._admission.check(self._scope, self._headers)
            async with self._timeout:
                await self._router(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if self._disconnected:
                self._status = DISCONNECTED
            else:  # the time for finishing accepted requests during a shutdown is over
                await self._refuse(shutting_down())
        except Exception as error:
            await self._refuse(error)
        finally:
            if self._watcher:
                self._watcher.cancel()
            self._admission.active -= 1
            self._memory.release()
            self._account()

    async def receive(self) -> Message:
        async with asyncio.timeout_at(None if self._complete else self._end):
            message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._received += size
            self._admission.check_size(self._received)
            self._memory.take(size)
            self._complete = not message.get("more_body", False)
            if self._complete and not self._watcher and self._cancels:
                self._watcher = asyncio.create_task(self._cancel_on_disconnect(asyncio.current_task()))
        return message

    async def _cancel_on_disconnect(self, work: "asyncio.Task[None] | None") -> None:
        """Cancel the work for a client that disconnects, so that the engine is free for other clients."""
        while (await self._receive())["type"] == "http.request":
            pass
        if not self._status and work:
            self._disconnected = True
            work.cancel()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._timeout.reschedule(None)  # `_transmit` has a deadline of its own
        await self._transmit(message)

    async def _transmit(self, message: Message) -> None:
        """Send a part of the response. Raises TimeoutError if the client has not read the response by its deadline."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._end = asyncio.get_running_loop().time() + self._admission.deadline
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            headers.setdefault("x-content-type-options", "nosniff")
            if self._admission.draining:
                headers["connection"] = "close"
        body = memoryview(message.get("body", b""))
        async with asyncio.timeout_at(self._end):
            # uvicorn waits for the client before each message, and holds what it has not read.
            last = max(len(body) - 1, 0) // PART * PART
            for start in range(0, last, PART):
                part = bytes(body[start : start + PART])
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
            await self._send({**message, "body": bytes(body[last:])} if body else message)

    async def _refuse(self, error: Exception) -> None:
        if self._status:  # the response has begun, so no error can be sent
            if isinstance(error, TimeoutError):
                log.warning("the client did not read the response", extra={"request_id": self._id})
            else:
                log.error("response interrupted", exc_info=error, extra={"request_id": self._id})
            return
        response = error_response(self._scope["path"], self._as_refusal(error))
        with suppress(TimeoutError):  # the client does not read the error
            if response.headers.get("connection") == "close" and not self._complete:
                await self._linger(response)
            else:
                await response(self._scope, self._receive, self._transmit)

    def _as_refusal(self, error: Exception) -> Error | HTTPException | None:
        if isinstance(error, TimeoutError):
            return Late(Late.example) if self._complete else TooSlow(TooSlow.example)
        if isinstance(error, Error | HTTPException):
            return error
        if isinstance(error, MemoryError):
            return Busy("out of memory; try again later", retry_after="1")
        log.error("internal error", exc_info=error, extra={"request_id": self._id})
        return None

    async def _linger(self, response: Response) -> None:
        """Respond at once, but close the connection only when the client stops sending, or it may lose the response."""
        await self._transmit({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await self._transmit({"type": "http.response.body", "body": response.body, "more_body": True})
        try:
            async with asyncio.timeout(LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass
        await self._transmit({"type": "http.response.body", "body": b""})

    def _account(self) -> None:
        seconds = time.perf_counter() - self._started
        scope, facts = self._scope, self._scope["facts"]
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, str(self._status)).inc()
        model: Model | None = facts.pop("served", None)
        if model and self._status < 400:
            model.statistics.succeeded(seconds)
        elif model:
            model.statistics.failed(FAILURES.get(self._status, "OTHER"), seconds)
        if model:
            facts = {"model": f"{model.name}:{model.version}", **facts}
        client = (scope.get("client") or ("",))[0]
        if self._trace:
            facts = {**facts, "trace_id": self._trace.id}
            self._end_trace(method, route, client, facts)
        log_request("request", self._id, client, scope["method"], self._status, seconds, path=scope["path"], **facts)

    def _end_trace(self, method: str, route: str, client: str, facts: Mapping[str, Any]) -> None:
        scope = self._scope
        attributes: dict[str, str | int] = {
            "http.request.method": scope["method"] if method in METHODS else "_OTHER",
            "http.response.status_code": self._status,
            "url.scheme": scope["scheme"],
            "url.path": scope["path"],
            "client.address": client,
            "network.protocol.version": scope["http_version"],
            "vgg.request_id": self._id,
        }
        if route != "none":
            attributes["http.route"] = route
        if self._status >= 500:
            attributes["error.type"] = str(self._status)
        attributes |= {f"vgg.{name}": facts[name] for name in ("model", "images") if name in facts}
        name = method if method in METHODS else "HTTP"
        assert self._trace
        self._trace.end(f"{name} {route}" if route != "none" else name, attributes, self._status >= 500)


def log_request(message: str, request_id: str, client: str, method: str, status: int, seconds: float, **facts: object) -> None:
    """Log a finished request."""
    record = {"request_id": request_id, "client": client, "method": method, "status": status, "ms": round(seconds * 1000, 1)}
    log.info(message, extra={**record, **facts})


def request_id(headers: Headers) -> str:
    """The id that a request carries, or a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def error_response(path: str, error: Error | HTTPException | None) -> Response:
    """The response for an error, in the format of the path's protocol. None: an internal error."""
    headers: Mapping[str, str] = {}
    if isinstance(error, HTTPException):
        status, message, headers = error.status_code, error.detail, error.headers or {}
        if status == 404:
            message = f"no such path: {path[: limits.PATH]}; use {routes.nearest(path)}"
        elif status == 405:
            message = f"{path[: limits.PATH]} does not support this method; use {routes.instead(path, headers)}"
    elif isinstance(error, Refusal):
        status, message, headers = error.status, str(error), error.headers
    elif error is not None:
        status, message = 400, str(error)
    else:
        status, message = 500, INTERNAL_ERROR
    kind = type(error).__name__ if error else "InternalError"
    return JSONResponse(error_body(path, status, kind, message), status, headers=dict(headers))


def error_body(path: str, status: int, kind: str, message: str) -> ErrorBody | model_server.MmsErrorBody:
    """The JSON of an error, in the format of the path's protocol."""
    if model_server.owns(path):
        return {"code": status, "type": kind, "message": message}
    return {"error": message}
