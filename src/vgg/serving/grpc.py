"""The Open Inference Protocol over gRPC: `GRPCInferenceService`, with the messages that Triton's client brings."""

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
from .application import Application
from .exchange import FAILURES, LEFT, going_down, request_id
from .refusals import Refusal
from .repository import Model

log = logging.getLogger("vgg.serving")

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND, 413: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
Method = Callable[[Any, Any], Awaitable[Any]]


async def start(application: Application, host: str, port: int) -> tuple[int, Callable[[float], Awaitable[None]]]:
    """Listen; the port, and how to stop within some seconds. Raises Error where that port can't be listened on."""
    server = grpc.aio.server(
        options=(("grpc.max_receive_message_length", application.settings.max_body * 2**20), ("grpc.so_reuseport", 0))
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(application), server)
    try:
        bound = server.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{port}")
    except RuntimeError:
        raise Error(f"{host} port {port}: can't be listened on for gRPC") from None
    await server.start()

    async def stop(seconds: float) -> None:
        await server.stop(seconds)

    return bound, stop


def _guarded(method: Callable[[Any, Any], Any]) -> Any:
    """What every call goes through: the key, the deadline, errors as statuses, a line in the log."""

    @functools.wraps(method)
    async def call(self: "_Service", request: Any, context: Any) -> Any:
        app, begun, status, held = self.application, time.perf_counter(), 200, 0
        headers = Headers({key: str(value) for key, value in context.invocation_metadata()})
        identity = request_id(headers)
        context.set_trailing_metadata((("x-request-id", identity),))
        app.at_work += 1
        try:
            app.check_key(headers)
            if app.draining:
                raise going_down()
            app.hold(size := request.ByteSize(), 0)
            held = size
            async with asyncio.timeout(None if "Repository" in method.__name__ else app.settings.deadline):
                return await method(self, request)
        except (Error, TimeoutError) as error:
            status = _status(error)
            line = "no answer before the deadline" if isinstance(error, TimeoutError) else str(error)
            await context.abort(CODES.get(status, grpc.StatusCode.INVALID_ARGUMENT), line)
        except asyncio.CancelledError:
            status = LEFT
            raise
        except Exception as error:
            status = 500
            log.error("internal error", exc_info=error, extra={"request_id": identity})
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log says more")
        finally:
            app.at_work -= 1
            app.release(held)
            log.info(
                "call",
                extra={
                    "request_id": identity,
                    "client": context.peer(),
                    "method": method.__name__,
                    "status": status,
                    "ms": round((time.perf_counter() - begun) * 1000, 1),
                },
            )

    return call


def _status(error: BaseException) -> int:
    """The HTTP status that says the same."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, TimeoutError | asyncio.CancelledError):
        return 504 if isinstance(error, TimeoutError) else LEFT
    return 400 if isinstance(error, Error) else 500


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Each method is its REST twin in `open_inference`."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=not self.application.draining)

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
        record = {"model_stats": [one.statistics.record() for one in chosen]}
        return json_format.ParseDict(record, messages.ModelStatisticsResponse())

    @_guarded
    async def RepositoryIndex(self, request: Any) -> Any:
        found = self.application.repository.index()
        ready = [one for one in found if not request.ready or one["state"] == "READY"]
        return messages.RepositoryIndexResponse(models=[messages.RepositoryIndexResponse.ModelIndex(**one) for one in ready])

    @_guarded
    async def RepositoryModelLoad(self, request: Any) -> Any:
        if request.parameters:
            raise Refusal("a model is loaded as it lies in the repository's folder; there are no parameters")
        await self.application.repository.load(request.model_name)
        return messages.RepositoryModelLoadResponse()

    @_guarded
    async def RepositoryModelUnload(self, request: Any) -> Any:
        await self.application.repository.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    @_guarded
    async def ModelInfer(self, request: Any) -> Any:
        begun = time.perf_counter()
        with self._model(request.model_name, request.model_version).held() as model:
            try:
                model.batcher.check_room()
                inference = _inference(request, model)
                found = await open_inference.run(self.application, model, inference)
            except (Exception, asyncio.CancelledError) as error:
                reason = FAILURES.get(_status(error), "OTHER")
                model.statistics.failed(reason, time.perf_counter() - begun)
                raise
            model.statistics.answered(time.perf_counter() - begun)
        outputs = [
            messages.ModelInferResponse.InferOutputTensor(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in found
        ]
        raw = [one.raw() for one in found]
        return messages.ModelInferResponse(
            model_name=model.name, model_version=model.version, id=inference.id, outputs=outputs, raw_output_contents=raw
        )

    def _model(self, name: str, version: str) -> Model:
        return self.application.repository.get(name or None, version or None)


def _inference(request: Any, model: Model) -> tensors.Inference:
    """A request's message as what it asks for. Raises Refusal."""
    architecture = model.classifier.network.architecture
    if len(request.inputs) != 1:
        raise Refusal(f"there must be one input, {tensors.INPUT!r}")
    one, raw = request.inputs[0], request.raw_input_contents
    shape = list(one.shape)
    count = tensors.check_input(one.name, one.datatype, shape)
    if len(raw) > 1 or (raw and len(raw[0]) % 4):
        raise Refusal("there must be the bytes of one FP32 tensor")
    values = np.frombuffer(raw[0], "<f4") if raw else np.array(one.contents.fp32_contents, np.float32)
    if values.size != count:
        raise Refusal(f"shape {shape} means {count} values; there are {values.size}")
    batch = np.asarray(values, np.float32).reshape(shape)
    tensors.check_values(batch, architecture)
    outputs = [tensors.wanted(out.name, True, _number(out.parameters, "classification")) for out in request.outputs]
    architecture.check_values(out.name for out in outputs)
    timeout = _number(request.parameters, "timeout")
    return tensors.Inference(batch, tuple(outputs) or (tensors.Wanted(tensors.OUTPUT),), request.id, timeout / 1e6 or None)


def _number(parameters: Any, name: str) -> int:
    return int(parameters[name].int64_param) if name in parameters else 0
