"""The Open Inference Protocol (KServe's v2) over REST, with Triton's extensions for binary tensors, classification,
statistics, model configuration and the model repository."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from . import tensors
from .bodies import decoded_body, parse_object
from .refusals import Refusal
from .repository import Model, Repository

PLATFORM = "onnx_onnxv1"
EXTENSIONS = ["classification", "binary_tensor_data", "statistics", "model_configuration"]


def server_metadata(repository: Repository) -> dict[str, Any]:
    extensions = [*EXTENSIONS, "model_repository"] if repository.changeable else EXTENSIONS
    return {"name": "vgg", "version": __version__, "extensions": extensions}


def model_metadata(repository: Repository, model: Model) -> dict[str, Any]:
    """What goes in and out. Any of the network's values can be asked for by name; only the logits are listed."""
    classes = model.classifier.network.architecture.classes
    return {
        "name": model.name,
        "versions": repository.versions(model.name),
        "platform": PLATFORM,
        "inputs": [{"name": tensors.INPUT, "datatype": tensors.DATATYPE, "shape": [-1, *_input_shape(model)]}],
        "outputs": [{"name": tensors.OUTPUT, "datatype": tensors.DATATYPE, "shape": [-1, classes]}],
    }


def _input_shape(model: Model) -> list[int]:
    architecture = model.classifier.network.architecture
    side = architecture.input_size if architecture.head == "fc" else -1
    return [3, side, side]


def model_config(model: Model, batch_size: int) -> dict[str, Any]:
    """The model in the words of Triton's configuration."""
    classes = model.classifier.network.architecture.classes
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "vgg",
        "max_batch_size": batch_size,
        "input": [{"name": tensors.INPUT, "data_type": "TYPE_FP32", "dims": _input_shape(model)}],
        "output": [{"name": tensors.OUTPUT, "data_type": "TYPE_FP32", "dims": [classes]}],
        "dynamic_batching": {},
    }


async def run(app: Any, model: Model, inference: tensors.Inference) -> list[tensors.Tensor]:
    """Infer, within the time that the request gives."""
    names = [one.name for one in inference.outputs]
    async with asyncio.timeout(inference.timeout):
        found = await app.infer(model, inference.batch, names)
    return tensors.answers(found, inference.outputs, model.classifier.network.labels)


def _model(request: Request) -> Model:
    model: Model = request.app.repository.get(request.path_params["model"], request.path_params.get("version"))
    return model


async def metadata(request: Request) -> Response:
    return JSONResponse(server_metadata(request.app.repository))


async def live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def ready(request: Request) -> Response:
    is_ready = not request.app.draining
    return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)


async def one_metadata(request: Request) -> Response:
    return JSONResponse(model_metadata(request.app.repository, _model(request)))


async def one_ready(request: Request) -> Response:
    model = _model(request)
    return JSONResponse({"name": model.name, "ready": True})


async def one_config(request: Request) -> Response:
    return JSONResponse(model_config(_model(request), request.app.settings.batch_size))


async def infer(request: Request) -> Response:
    app = request.app
    request.scope["facts"]["served"] = _model(request)
    _model(request).batcher.check_room()  # before the body is read
    body = await decoded_body(request)
    with _model(request).held() as model:
        request.scope["facts"]["served"] = model
        architecture = model.classifier.network.architecture
        header_length = request.headers.get(tensors.HEADER)
        inference = await app.threaded(lambda: tensors.read_request(body, header_length, architecture))
        request.scope["facts"]["pictures"] = len(inference.batch)
        found = await run(app, model, inference)
        head = {"model_name": model.name, "model_version": model.version}
        if inference.id:
            head["id"] = inference.id
        content, length = await app.threaded(lambda: tensors.write_response(head, found, inference.outputs))
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={tensors.HEADER: str(length)}, media_type="application/octet-stream")


async def statistics(request: Request) -> Response:
    """Of one version, of all versions of a model, or of all models."""
    repository = request.app.repository
    name, version = request.path_params.get("model"), request.path_params.get("version")
    if name is not None:
        repository.get(name, version)
    chosen = (one for one in repository if name in (None, one.name) and version in (None, one.version))
    return JSONResponse({"model_stats": [one.statistics.record() for one in chosen]})


async def index(request: Request) -> Response:
    """What is loaded and what could be; with `{"ready": true}` in the body, only what is loaded."""
    only_ready = (await _optional_object(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise Refusal("`ready` must be true or false")
    found = request.app.repository.index()
    if only_ready:
        found = [one for one in found if one["state"] == "READY"]
    return JSONResponse(found)


async def load(request: Request) -> Response:
    """Load a model of the repository's folder; Triton's parameters, which would bring another file, are not taken."""
    if (await _optional_object(request)).get("parameters"):
        raise Refusal("a model is loaded as it lies in the repository's folder; there are no parameters")
    await request.app.repository.load(request.path_params["model"])
    return JSONResponse({})


async def unload(request: Request) -> Response:
    await _optional_object(request)
    await request.app.repository.unload(request.path_params["model"])
    return JSONResponse({})


async def _optional_object(request: Request) -> dict[str, Any]:
    body = await decoded_body(request)
    return parse_object(body) if body else {}


def _routes(path: str, endpoint: Callable[[Request], Any], methods: Sequence[str] = ("GET",)) -> list[Route]:
    """With and without a version."""
    places = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return [Route(place + path, endpoint, methods=list(methods)) for place in places]


ROUTES = [
    Route("/v2", metadata, methods=["GET"]),
    Route("/v2/", metadata, methods=["GET"]),
    Route("/v2/health/live", live, methods=["GET"]),
    Route("/v2/health/ready", ready, methods=["GET"]),
    Route("/v2/models/stats", statistics, methods=["GET"]),
    *_routes("/stats", statistics),
    *_routes("/ready", one_ready),
    *_routes("/config", one_config),
    *_routes("/infer", infer, ["POST"]),
    *_routes("", one_metadata),
    Route("/v2/repository/index", index, methods=["POST"]),
    Route("/v2/repository/models/{model}/load", load, methods=["POST"]),
    Route("/v2/repository/models/{model}/unload", unload, methods=["POST"]),
]
