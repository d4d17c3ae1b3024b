"""The Open Inference Protocol over gRPC: `GRPCInferenceService`, with the messages of Triton's client package."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import json_format
from starlette.datastructures import Headers
from tritonclient.grpc import service_pb2 as messages

from ..errors import Error
from . import grpc_tensors, limits, open_inference, protobuf, tensors
from .admission import shutting_down
from .application import Application
from .exchange import DISCONNECTED, FAILURES, INTERNAL_ERROR, log_request, request_id
from .health import Health
from .memory import Reservation
from .refusals import Late, Refusal
from .repository import Model
from .tls import Certificate
from .traces import Trace

log = logging.getLogger("vgg.serving")

CODES = {
    200: grpc.StatusCode.OK, 400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED, 500: grpc.StatusCode.INTERNAL, 503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
SERVICE = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HANDLERS = {False: grpc.unary_unary_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}  # by `client_streaming`
DRAINING = 0.2  # seconds after which a stream without messages notices a shutdown
INLINE = 2**16  # bytes of a message that is parsed in the event loop's thread


async def start(
    application: Application, host: str, port: int, certificate: Certificate | None
) -> tuple[int, Callable[[float], Awaitable[None]]]:
    """Start listening.

    Returns:
        The port, and a function that stops the server within a number of seconds.

    Raises:
        Error: the server can't listen on the port.
    """
    settings = application.settings
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", settings.max_body * 2**20),
            ("grpc.max_allowed_incoming_connections", limits.connections(2)),
            ("grpc.so_reuseport", 0),
        ),
        maximum_concurrent_rpcs=2 * settings.queue + limits.WATCHERS,
    )
    service = _Service(application)
    # Messages are parsed by `_guarded`, not by the library, so that they are counted first.
    handlers = {
        method.name: HANDLERS[method.client_streaming](getattr(service, method.name), None, _serialize)
        for method in SERVICE.methods
        if hasattr(service, method.name)
    }
    health = Health(application, SERVICE.full_name)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers), health.handler()))
    address = f"{f'[{host}]' if ':' in host else host}:{port}"
    try:
        bound = server.add_secure_port(address, _credentials(certificate)) if certificate else server.add_insecure_port(address)
    except RuntimeError:
        raise Error(f"can't listen on {host} port {port} for gRPC") from None
    await server.start()

    async def stop(seconds: float) -> None:
        await server.stop(seconds)

    return bound, stop


def _credentials(certificate: Certificate) -> Any:
    """Credentials that follow the certificate when it is reloaded."""

    def configuration() -> Any:
        return grpc.ssl_server_certificate_configuration([certificate.pair])

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration)


def _serialize(message: Any) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _guarded(method: Callable[..., Any]) -> Any:
    """Wrap a method: API keys, limits, the deadline, errors as status codes, and the log."""
    kind = getattr(messages, SERVICE.methods_by_name[method.__name__].input_type.name)

    @functools.wraps(method)
    async def call(self: "_Service", content: bytes, context: Any) -> Any:
        app, started, status = self.application, time.perf_counter(), 200
        parse: Any = None
        request: Any = None
        admission = app.admission
        memory = admission.reservation()
        headers = Headers({key: str(value) for key, value in context.invocation_metadata()})
        identity = request_id(headers)
        context.set_trailing_metadata((("x-request-id", identity),))
        admission.active += 1
        trace = app.traces.start(headers, started) if app.traces else None
        try:
            admission.check_key(headers)
            admission.check_ready()
            # The bytes, the message, which may have room for as many again, and the tensor.
            memory.take(4 * len(content))
            async with asyncio.timeout(None if "Repository" in method.__name__ else app.settings.deadline):
                parse = functools.partial(protobuf.parse, kind, content)
                request = parse() if len(content) <= INLINE else await app.in_thread(parse)
                return await method(self, request, memory)
        except (Error, TimeoutError) as error:
            status = _status(error)
            message = Late.example if isinstance(error, TimeoutError) else str(error)
        except asyncio.CancelledError:
            status = DISCONNECTED
            raise
        except Exception as error:
            status, message = 500, INTERNAL_ERROR
            log.error("internal error", exc_info=error, extra={"request_id": identity})
        finally:
            # An exception would keep the message in memory until the next garbage collection.
            content, parse, request = b"", None, None
            admission.active -= 1
            memory.release()
            seconds = time.perf_counter() - started
            facts = {"trace_id": trace.id} if trace else {}
            log_request("call", identity, context.peer(), method.__name__, status, seconds, **facts)
            if trace:
                _end_trace(trace, method.__name__, identity, status)
        return await context.abort(_code(status), message)

    return call


def _code(status: int) -> grpc.StatusCode:
    return CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT)


def _end_trace(trace: Trace, method: str, identity: str, status: int) -> None:
    name = f"{SERVICE.full_name}/{method}"
    code = _code(status).name
    attributes = {"rpc.system.name": "grpc", "rpc.method": name, "rpc.response.status_code": code, "vgg.request_id": identity}
    failed = status >= 500
    trace.end(name, {**attributes, "error.type": code} if failed else attributes, failed)


def _status(error: BaseException) -> int:
    """The corresponding HTTP status."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, TimeoutError):
        return Late.status
    if isinstance(error, asyncio.CancelledError):
        return DISCONNECTED
    return 400 if isinstance(error, Error) else 500


class _Refused(Exception):
    """A message of a stream is refused; the stream continues."""


class _StreamedCall:
    """The context of one message of a stream."""

    def __init__(self, stream: Any) -> None:
        self.invocation_metadata, self.peer = stream.invocation_metadata, stream.peer

    def set_trailing_metadata(self, metadata: Any) -> None:
        """The responses share the metadata of the stream."""

    async def abort(self, code: grpc.StatusCode, message: str) -> None:
        raise _Refused(message)


class _Service:
    """Each method corresponds to a handler in `open_inference`."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self._streams = 0

    async def ServerLive(self, content: bytes, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, content: bytes, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=self.application.admission.ready)

    @_guarded
    async def ModelReady(self, request: Any, memory: Reservation) -> Any:
        try:
            self._model(request.name, request.version)
        except Refusal:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    @_guarded
    async def ServerMetadata(self, request: Any, memory: Reservation) -> Any:
        return messages.ServerMetadataResponse(**open_inference.server_metadata(self.application.repository))

    @_guarded
    async def ModelMetadata(self, request: Any, memory: Reservation) -> Any:
        model = self._model(request.name, request.version)
        return messages.ModelMetadataResponse(**open_inference.model_metadata(self.application.repository, model))

    @_guarded
    async def ModelConfig(self, request: Any, memory: Reservation) -> Any:
        model = self._model(request.name, request.version)
        record = {"config": open_inference.model_config(model, self.application.settings.batch_size)}
        return json_format.ParseDict(record, messages.ModelConfigResponse())

    @_guarded
    async def ModelStatistics(self, request: Any, memory: Reservation) -> Any:
        chosen = [self._model(request.name, request.version)] if request.name else list(self.application.repository)
        record = {"model_stats": [model.statistics.record() for model in chosen]}
        return json_format.ParseDict(record, messages.ModelStatisticsResponse())

    @_guarded
    async def RepositoryIndex(self, request: Any, memory: Reservation) -> Any:
        index = self.application.repository.index()
        entries = [entry for entry in index if not request.ready or entry["state"] == "READY"]
        models = [messages.RepositoryIndexResponse.ModelIndex(**entry) for entry in entries]
        return messages.RepositoryIndexResponse(models=models)

    @_guarded
    async def RepositoryModelLoad(self, request: Any, memory: Reservation) -> Any:
        if request.parameters:
            raise Refusal(open_inference.NO_PARAMETERS)
        await self.application.repository.load(request.model_name)
        return messages.RepositoryModelLoadResponse()

    @_guarded
    async def RepositoryModelUnload(self, request: Any, memory: Reservation) -> Any:
        await self.application.repository.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    @_guarded
    async def ModelInfer(self, request: Any, memory: Reservation) -> Any:
        started = time.perf_counter()
        with self._model(request.model_name, request.model_version).in_use() as model:
            try:
                model.batcher.check_room()
                settings, network = self.application.settings, model.classifier.network
                read = functools.partial(grpc_tensors.read_request, request, network, settings.queue, memory)
                inference = await self.application.in_thread(read)
                tensors.check_outputs(inference, network, settings.max_body * 2**20, memory)
                outputs = await open_inference.run(self.application, model, inference)
            except (Exception, asyncio.CancelledError) as error:
                reason = FAILURES.get(_status(error), "OTHER")
                model.statistics.failed(reason, time.perf_counter() - started)
                raise
            model.statistics.succeeded(time.perf_counter() - started)
        return grpc_tensors.response(model.name, model.version, inference.id, outputs)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> None:
        """Each message is a call of ModelInfer; the responses are in the order of the requests."""
        if self._streams >= self.application.settings.queue:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams; close some, or use ModelInfer")
        self._streams += 1
        try:
            while (content := await self._next(context)) is not grpc.aio.EOF:
                try:
                    reply = {"infer_response": await self.ModelInfer(content, _StreamedCall(context))}
                    reply["infer_response"].parameters["triton_final_response"].bool_param = True
                except _Refused as refused:
                    reply = {"error_message": str(refused)}
                await context.write(messages.ModelStreamInferResponse(**reply))
        finally:
            self._streams -= 1

    async def _next(self, context: Any) -> Any:
        """The next message of a stream, or grpc.aio.EOF."""
        reading = asyncio.ensure_future(context.read())
        try:
            while not (await asyncio.wait([reading], timeout=DRAINING))[0]:
                if self.application.admission.draining:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, str(shutting_down()))
        finally:
            reading.cancel()
        return await reading

    def _model(self, name: str, version: str) -> Model:
        return self.application.repository.get(name or None, version or None)
