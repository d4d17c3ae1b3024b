"""The Open Inference Protocol over gRPC: `GRPCInferenceService`, with the messages of Triton's client package."""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from starlette.datastructures import Headers
from tritonclient.grpc import service_pb2 as messages

from ..architectures import Architecture
from ..errors import Error
from . import limits, open_inference, protobuf, tensors
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
INLINE = 2**16  # bytes of a message that is parsed in the event loop's thread
CHUNK = 2**16  # numbers that are copied at once, so that other threads can run in between


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
        method.name: grpc.unary_unary_rpc_method_handler(getattr(service, method.name), None, _serialize)
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


class _Service:
    """Each method corresponds to a handler in `open_inference`."""

    def __init__(self, application: Application) -> None:
        self.application = application

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
                settings, architecture = self.application.settings, model.classifier.network.architecture
                read = functools.partial(_inference, request, architecture, settings.queue)
                inference = await self.application.in_thread(read)
                tensors.check_outputs(inference, architecture, settings.max_body * 2**20, memory)
                outputs = await open_inference.run(self.application, model, inference)
            except (Exception, asyncio.CancelledError) as error:
                reason = FAILURES.get(_status(error), "OTHER")
                model.statistics.failed(reason, time.perf_counter() - started)
                raise
            model.statistics.succeeded(time.perf_counter() - started)
        return messages.ModelInferResponse(
            model_name=model.name,
            model_version=model.version,
            id=inference.id,
            outputs=[
                messages.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
                for one in outputs
            ],
            raw_output_contents=[one.raw() for one in outputs],
        )

    def _model(self, name: str, version: str) -> Model:
        return self.application.repository.get(name or None, version or None)


def _inference(request: Any, architecture: Architecture, max_images: int) -> tensors.Inference:
    """The inference request in a message. Raises Refusal."""
    if len(request.inputs) != 1:
        raise Refusal(f"the request must have one input, {tensors.INPUT!r}")
    tensor, raw = request.inputs[0], request.raw_input_contents
    if len(raw) > 1 or (raw and len(raw[0]) % 4):
        raise Refusal("`raw_input_contents` must be the bytes of one FP32 tensor")
    shape = list(tensor.shape)
    count = tensors.check_input(tensor.name, tensor.datatype, shape, architecture, max_images)
    numbers = tensor.contents.fp32_contents
    if not raw and len(numbers) != count:
        raise Refusal(f"shape {shape} needs {count} values, not {len(numbers)}")
    if raw:
        values = np.frombuffer(raw[0], "<f4")
    else:
        values = np.empty(count, np.float32)
        for place in range(0, count, CHUNK):
            values[place : place + CHUNK] = numbers[place : place + CHUNK]
    batch = tensors.make_batch(values, shape)
    outputs = [tensors.requested_output(out.name, True, _number(out.parameters, "classification")) for out in request.outputs]
    architecture.check_values(out.name for out in outputs)
    timeout = _number(request.parameters, "timeout")
    if timeout < 0:
        raise Refusal("`timeout` must be an integer, in microseconds")
    outputs = outputs or [tensors.RequestedOutput(architecture.values[-1], True)]
    return tensors.Inference(batch, tuple(outputs), request.id, timeout / 1e6 or None)


def _number(parameters: Any, name: str) -> int:
    return int(parameters[name].int64_param) if name in parameters else 0
