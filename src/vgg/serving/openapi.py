"""The OpenAPI document, generated from the routes and their types. docs/openapi.json is a copy of it."""

import types
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from . import model_server, open_inference_rest, site, tf_serving, v1
from .admission import has_deadline, is_open, requires_readiness
from .exchange import ErrorBody, error_body
from .operations import Content, Operation
from .refusals import Busy, Forbidden, Late, NotFound, Refusal, TooLarge, TooSlow, Unauthorized, Unsupported

INFO = {
    "title": "vgg",
    "summary": "VGG networks as a service",
    "description": "Send images, get labels; or send tensors, with clients of the Open Inference Protocol.",
}
GROUPS = (
    ("Images", "Classification of images, and the list of models.", v1.ROUTES),
    (
        "Open Inference Protocol",
        "KServe's protocol, version 2, with Triton's extensions. Clients of Triton and KServe work unchanged.",
        open_inference_rest.ROUTES,
    ),
    (
        "TensorFlow Serving",
        "TensorFlow Serving's REST interface, and KServe's version 1, which has the same paths.",
        tf_serving.ROUTES,
    ),
    ("Multi Model Server", "The interface of Multi Model Server and SageMaker.", model_server.ROUTES),
    ("Operation", "Health checks, metrics, and this description.", site.ROUTES),
)
PATH_PARAMETERS = {"model": ("Name of the model.", "vgg16-gap"), "version": ("Version of the model.", "1")}
HEADERS = {
    Unauthorized: ("WWW-Authenticate", "`Bearer`", str),
    Busy: ("Retry-After", "Seconds after which to try again.", int),
}
PRIMITIVES: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"},
    bytes: {"type": "string", "format": "binary"}, dict: {"type": "object"}, list: {"type": "array"},
}  # fmt: skip


class Document:
    """An OpenAPI document under construction."""

    def __init__(self) -> None:
        self.paths: dict[str, Any] = {}
        self.components: dict[str, dict[str, Any]] = {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "parameters": {
                name: {"name": name, "in": "path", "required": True, "description": text,
                       "schema": {"type": "string", "minLength": 1}, "example": example}
                for name, (text, example) in PATH_PARAMETERS.items()
            },
            "requestBodies": {}, "responses": {}, "schemas": {},
        }  # fmt: skip

    def add(self, tag: str, route: Operation) -> None:
        """Add the operations of a route, one for each method."""
        item = self.paths.setdefault(route.path, {})
        if names := list(route.param_convertors):
            item["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in names]
        for method in route.ordered_methods:
            suffix = "" if method == route.ordered_methods[0] else method.capitalize()
            operation: dict[str, Any] = {"tags": [tag], "summary": route.summary, "operationId": route.id + suffix}
            if is_open(route.path):
                operation["security"] = []
            if route.description:
                operation["description"] = route.description
            if route.query:
                operation["parameters"] = self.query(route.query)
            if route.body:
                operation["requestBody"] = self.component("requestBodies", route.body)
            if route.examples:
                operation["x-examples"] = list(route.examples)
            responses = {status: self.component("responses", reply) for status, reply in route.replies.items()}
            for kind in refusals(route, method):
                responses.setdefault(kind.status, self.refusal(kind, route.path))
            operation["responses"] = {str(status): responses[status] for status in sorted(responses)}
            item[method.lower()] = operation

    def component(self, section: str, content: Content) -> dict[str, str]:
        """A reference to a request body or response, which is added on first use."""
        kinds = content.type if isinstance(content.type, dict) else {"application/json": content.type}
        media: dict[str, Any] = {}
        for name, kind in kinds.items():
            media[name] = {"schema": self.schema(kind)}
            if name == "multipart/form-data":
                files = [key for key, value in fields(kind).items() if "'binary'" in str(self.schema(value))]
                media[name]["encoding"] = {key: {"contentType": "image/*"} for key in files}
            if name == "application/json" and content.example is not None:
                media[name]["example"] = content.example
        described = {"description": content.description} if content.description else {}
        required = {"required": True} if section == "requestBodies" and content.required else {}
        return self.reference(section, content.name, {**described, **required, "content": media})

    def refusal(self, kind: type[Refusal], path: str) -> dict[str, str]:
        """A reference to the response for a refusal, in the format of the path's protocol."""
        owned = model_server.owns(path)
        body = model_server.MmsErrorBody if owned else ErrorBody
        example = error_body(path, kind.status, kind.__name__, kind.example)
        record: dict[str, Any] = {"description": kind.__doc__}
        if kind in HEADERS:
            name, text, value = HEADERS[kind]
            record["headers"] = {name: {"description": text, "schema": self.schema(value)}}
        record["content"] = {"application/json": {"schema": self.schema(body), "example": example}}
        return self.reference("responses", ("Mms" if owned else "") + kind.__name__, record)

    def query(self, kind: Any) -> list[dict[str, Any]]:
        """The query parameters of a TypedDict."""
        found = []
        for name, value in fields(kind).items():
            described = self.schema(value)
            found.append({"name": name, "in": "query", "description": described.pop("description"), "schema": described})
        return found

    def reference(self, section: str, name: str, record: dict[str, Any]) -> dict[str, str]:
        """A reference to a component, which is added on first use."""
        if self.components[section].setdefault(name, record) != record:
            raise ValueError(f"two components have the name {section}/{name}")
        return {"$ref": f"#/components/{section}/{name}"}

    def schema(self, kind: Any) -> dict[str, Any]:
        """The JSON Schema of a type; TypedDicts become components."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            keywords = {key: value for note in arguments[1:] for key, value in note}
            return {**self.schema(arguments[0]), **keywords}
        if origin is NotRequired:
            return self.schema(arguments[0])
        if origin is Literal:
            return {"const": arguments[0]} if len(arguments) == 1 else {"type": "string", "enum": list(arguments)}
        if origin in (Union, types.UnionType):
            if types.NoneType in arguments:
                return {"type": [self.schema(arguments[0])["type"], "null"]}
            return {"anyOf": [self.schema(one) for one in arguments]}
        if origin in (list, dict):
            keyword = "items" if origin is list else "additionalProperties"
            return {**PRIMITIVES[origin], **({} if arguments[-1] is Any else {keyword: self.schema(arguments[-1])})}
        if not is_typeddict(kind):
            return dict(PRIMITIVES[kind])
        record: dict[str, Any] = {"description": kind.__doc__} if kind.__doc__ else {}
        record |= {"type": "object", "properties": {key: self.schema(value) for key, value in fields(kind).items()}}
        if required := [key for key in fields(kind) if key in kind.__required_keys__]:
            record["required"] = required
        if getattr(kind, "__closed__", False):
            record["additionalProperties"] = False
        return self.reference("schemas", kind.__name__, record)


def fields(kind: Any) -> dict[str, Any]:
    """The fields of a TypedDict, with their annotations."""
    return get_type_hints(kind, include_extras=True)


def refusals(route: Operation, method: str) -> set[type[Refusal]]:
    """The refusals with which a route may respond."""
    kinds = set(route.raises)
    if not is_open(route.path):
        kinds.add(Unauthorized)
        kinds |= {Late} if has_deadline(route.path) else set()
    if requires_readiness(route.path):
        kinds.add(Busy)
    if method in ("POST", "PUT"):
        kinds |= {Refusal, Forbidden, TooSlow, TooLarge, Unsupported}
    if "model" in route.param_convertors:
        kinds.add(NotFound)
    return kinds


def document(version: str) -> dict[str, Any]:
    """The OpenAPI document of a version of vgg."""
    under = Document()
    for tag, _, routes in GROUPS:
        for route in routes:
            if isinstance(route, Operation):
                under.add(tag, route)
    return {
        "openapi": "3.1.0",
        "info": {**INFO, "version": version},
        "servers": [{"url": "/"}],
        "tags": [{"name": tag, "description": text} for tag, text, _ in GROUPS],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "paths": under.paths,
        "components": {section: dict(sorted(records.items())) for section, records in under.components.items()},
    }
