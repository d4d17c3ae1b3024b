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
from tritonclient.grpc import service_pb2_grpc

from ..errors import Error
from . import open_inference, tensors
from .admission import shutting_down
from .application import Application
from .exchange import DISCONNECTED, FAILURES, INTERNAL_ERROR, log_request, request_id
from .refusals import Late, Refusal
from .repository import Model

log = logging.getLogger("vgg.serving")

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
Method = Callable[[Any, Any], Awaitable[Any]]


async def start(application: Application, host: str, port: int) -> tuple[int, Callable[[float], Awaitable[None]]]:
    """Start listening.

    Returns:
        The port, and a function that stops the server within a number of seconds.

    Raises:
        Error: the server can't listen on the port.
    """
    server = grpc.aio.server(
        options=(("grpc.max_receive_message_length", application.settings.max_body * 2**20), ("grpc.so_reuseport", 0))
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(application), server)
    try:
        bound = server.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{port}")
    except RuntimeError:
        raise Error(f"can't listen on {host} port {port} for gRPC") from None
    await server.start()

    async def stop(seconds: float) -> None:
        await server.stop(seconds)

    return bound, stop


def _guarded(method: Callable[[Any, Any], Any]) -> Any:
    """Wrap a method: API keys, limits, the deadline, errors as status codes, and the log."""

    @functools.wraps(method)
    async def call(self: "_Service", request: Any, context: Any) -> Any:
        app, started, status, reserved = self.application, time.perf_counter(), 200, 0
        admission = app.admission
        headers = Headers({key: str(value) for key, value in context.invocation_metadata()})
        identity = request_id(headers)
        context.set_trailing_metadata((("x-request-id", identity),))
        admission.active += 1
        try:
            admission.check_key(headers)
            if admission.draining:
                raise shutting_down()
            admission.reserve(size := request.ByteSize())
            reserved = size
            async with asyncio.timeout(None if "Repository" in method.__name__ else app.settings.deadline):
                return await method(self, request)
        except (Error, TimeoutError) as error:
            status = _status(error)
            message = Late.example if isinstance(error, TimeoutError) else str(error)
            await context.abort(CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT), message)
        except asyncio.CancelledError:
            status = DISCONNECTED
            raise
        except Exception as error:
            status = 500
            log.error("internal error", exc_info=error, extra={"request_id": identity})
            await context.abort(grpc.StatusCode.INTERNAL, INTERNAL_ERROR)
        finally:
            admission.active -= 1
            admission.release(reserved)
            seconds = time.perf_counter() - started
            log_request("call", identity, context.peer(), method.__name__, status, seconds)

    return call


def _status(error: BaseException) -> int:
    """The corresponding HTTP status."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, TimeoutError):
        return Late.status
    if isinstance(error, asyncio.CancelledError):
        return DISCONNECTED
    return 400 if isinstance(error, Error) else 500


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Each method corresponds to a handler in `open_inference`."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=not self.application.admission.draining)

    @_guarded
    async def ModelReady(self, request: Any) -> Any:
        try:
            self._model(request.name, request.version)
        except Refusal:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    @_guarded
    async def ServerMetadata(self, request: Any) -> Any:
        return messages.ServerMetadataResponse(**open_inference.server_metadata(self.application.repository))

    @_guarded
    async def ModelMetadata(self, request: Any) -> Any:
        model = self._model(request.name, request.version)
        return messages.ModelMetadataResponse(**open_inference.model_metadata(self.application.repository, model))

    @_guarded
    async def ModelConfig(self, request: Any) -> Any:
        model = self._model(request.name, request.version)
        record = {"config": open_inference.model_config(model, self.application.settings.batch_size)}
        return json_format.ParseDict(record, messages.ModelConfigResponse())

    @_guarded
    async def ModelStatistics(self, request: Any) -> Any:
        chosen = [self._model(request.name, request.version)] if request.name else list(self.application.repository)
        record = {"model_stats": [model.statistics.record() for model in chosen]}
        return json_format.ParseDict(record, messages.ModelStatisticsResponse())

    @_guarded
    async def RepositoryIndex(self, request: Any) -> Any:
        index = self.application.repository.index()
        entries = [entry for entry in index if not request.ready or entry["state"] == "READY"]
        models = [messages.RepositoryIndexResponse.ModelIndex(**entry) for entry in entries]
        return messages.RepositoryIndexResponse(models=models)

    @_guarded
    async def RepositoryModelLoad(self, request: Any) -> Any:
        if request.parameters:
            raise Refusal(open_inference.NO_PARAMETERS)
        await self.application.repository.load(request.model_name)
        return messages.RepositoryModelLoadResponse()

    @_guarded
    async def RepositoryModelUnload(self, request: Any) -> Any:
        await self.application.repository.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    @_guarded
    async def ModelInfer(self, request: Any) -> Any:
        started = time.perf_counter()
        with self._model(request.model_name, request.model_version).in_use() as model:
            try:
                model.batcher.check_room()
                inference = _inference(request, model)
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


def _inference(request: Any, model: Model) -> tensors.Inference:
    """The inference request in a message. Raises Refusal."""
    architecture = model.classifier.network.architecture
    if len(request.inputs) != 1:
        raise Refusal(f"the request must have one input, {tensors.INPUT!r}")
    tensor, raw = request.inputs[0], request.raw_input_contents
    if len(raw) > 1 or (raw and len(raw[0]) % 4):
        raise Refusal("`raw_input_contents` must be the bytes of one FP32 tensor")
    values = np.frombuffer(raw[0], "<f4") if raw else np.array(tensor.contents.fp32_contents, np.float32)
    batch = tensors.make_batch(tensor.name, tensor.datatype, list(tensor.shape), values, architecture)
    outputs = [tensors.requested_output(out.name, True, _number(out.parameters, "classification")) for out in request.outputs]
    architecture.check_values(out.name for out in outputs)
    timeout = _number(request.parameters, "timeout") / 1e6 or None
    return tensors.Inference(batch, tuple(outputs) or (tensors.RequestedOutput(architecture.values[-1]),), request.id, timeout)


def _number(parameters: Any, name: str) -> int:
    return int(parameters[name].int64_param) if name in parameters else 0
