"""The health of the server and of each model over gRPC: the standard service `grpc.health.v1.Health`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from . import limits, protobuf
from .application import Application
from .refusals import NotFound, Refusal

NAME = "grpc.health.v1.Health"
INTERVAL = 0.2  # seconds after which Watch notices a change
UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)


def _field(name: str, kind: str, label: str = "LABEL_OPTIONAL") -> dict[str, Any]:
    message = {"type": "TYPE_MESSAGE", "typeName": f".grpc.health.v1.{kind}"}
    return {"name": name, "number": 1, "label": label, **(message if kind[0].isupper() else {"type": f"TYPE_{kind.upper()}"})}


# grpc/proto, grpc/health/v1/health.proto. The status is an enumeration there, which has the encoding of an integer.
FILE = {
    "name": "vgg/health.proto",
    "package": "grpc.health.v1",
    "syntax": "proto3",
    "messageType": [
        {"name": "HealthCheckRequest", "field": [_field("service", "string")]},
        {"name": "HealthCheckResponse", "field": [_field("status", "int32")]},
        {"name": "HealthListRequest"},
        {
            "name": "HealthListResponse",
            "field": [_field("statuses", "HealthListResponse.StatusesEntry", "LABEL_REPEATED")],
            "nestedType": [
                {
                    "name": "StatusesEntry",
                    "field": [_field("key", "string"), {**_field("value", "HealthCheckResponse"), "number": 2}],
                    "options": {"mapEntry": True},
                }
            ],
        },
    ],
}
POOL = descriptor_pool.DescriptorPool()  # its own: programs may also load the messages of another package
POOL.Add(json_format.ParseDict(FILE, descriptor_pb2.FileDescriptorProto()))
CheckRequest, CheckResponse, ListResponse = (
    message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"grpc.health.v1.Health{name}"))
    for name in ("CheckRequest", "CheckResponse", "ListResponse")
)


class Health:
    """The methods of the service. A service is a model's name, the name of the inference service, or "" for the server."""

    def __init__(self, application: Application, service: str) -> None:
        self._application, self._services = application, ("", service)
        self._watchers = 0

    def handler(self) -> Any:
        """The service for a gRPC server."""

        def serialize(message: Any) -> bytes:
            content: bytes = message.SerializeToString()
            return content

        # Messages are parsed here, not by the library, so that they are counted first.
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, None, serialize),
            "List": grpc.unary_unary_rpc_method_handler(self.list, None, serialize),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, None, serialize),
        }
        return grpc.method_handlers_generic_handler(NAME, methods)

    async def check(self, content: bytes, context: Any) -> Any:
        """The status of a service."""
        name = await _service(content, context)
        status = self._status(name)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(NotFound(f"unknown service {name!r}")))
        return CheckResponse(status=status)

    async def list(self, content: bytes, context: Any) -> Any:
        """The status of every service."""
        names = [*self._services, *dict.fromkeys(model.name for model in self._application.repository)]
        return ListResponse(statuses={name: CheckResponse(status=self._status(name)) for name in names})

    async def watch(self, content: bytes, context: Any) -> AsyncIterator[Any]:
        """The status of a service, and each later one. Ends when the server shuts down."""
        name = await _service(content, context)
        if self._watchers >= limits.WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many clients watch the health; use Check")
        self._watchers += 1
        try:
            sent, last = UNKNOWN, False
            while not last:
                last = self._application.admission.draining
                if (status := self._status(name)) != sent:
                    yield CheckResponse(status=status)
                    sent = status
                await asyncio.sleep(0 if last else INTERVAL)
        finally:
            self._watchers -= 1

    def _status(self, name: str) -> int:
        admission, repository = self._application.admission, self._application.repository
        if admission.loaded and name not in self._services and name not in {model.name for model in repository}:
            return SERVICE_UNKNOWN
        return SERVING if admission.ready else NOT_SERVING


async def _service(content: bytes, context: Any) -> str:
    """The service's name in a request."""
    try:
        name: str = protobuf.parse(CheckRequest, content).service
        return name
    except Refusal as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise
