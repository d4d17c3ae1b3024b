"""The Open Inference Protocol over REST, with Triton's extensions for binary tensors, classification, statistics, model
configuration and the model repository."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import open_inference, rest_tensors, tensors
from .bodies import decoded_body
from .json_text import parse_object
from .open_inference import (
    IndexRequest,
    InferRequest,
    InferResponse,
    Live,
    ModelConfig,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    Statistics,
)  # fmt: skip
from .operations import Content, Operation
from .refusals import Refusal
from .repository import IndexEntry, Model


def _model(request: Request) -> Model:
    model: Model = request.app.repository.get(request.path_params["model"], request.path_params.get("version"))
    return model


async def metadata(request: Request) -> Response:
    return JSONResponse(open_inference.server_metadata(request.app.repository))


async def live(request: Request) -> Response:
    return JSONResponse(Live(live=True))


async def ready(request: Request) -> Response:
    is_ready = request.app.admission.ready
    return JSONResponse(Ready(ready=is_ready), 200 if is_ready else 503)


async def one_metadata(request: Request) -> Response:
    return JSONResponse(open_inference.model_metadata(request.app.repository, _model(request)))


async def one_ready(request: Request) -> Response:
    return JSONResponse(ModelReady(name=_model(request).name, ready=True))


async def one_config(request: Request) -> Response:
    return JSONResponse(open_inference.model_config(_model(request), request.app.settings.batch_size))


async def infer(request: Request) -> Response:
    app, facts = request.app, request.scope["facts"]
    facts["served"] = requested = _model(request)
    requested.batcher.check_room()  # before reading the body
    body = await decoded_body(request)
    with _model(request).in_use() as model:
        facts["served"] = model
        architecture = model.classifier.network.architecture
        header_length = request.headers.get(tensors.HEADER)
        queue, memory = app.settings.queue, request.scope["memory"]
        inference = await app.in_thread(lambda: rest_tensors.read_request(body, header_length, architecture, queue, memory))
        tensors.check_outputs(inference, model.classifier.network, app.settings.max_body * 2**20, memory)
        facts["images"] = len(inference.items)
        outputs = await open_inference.run(app, model, inference)
        head = {"model_name": model.name, "model_version": model.version}
        if inference.id:
            head["id"] = inference.id
        content, length = await app.in_thread(lambda: tensors.write_response(head, outputs, inference.outputs))
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={tensors.HEADER: str(length)}, media_type="application/octet-stream")


async def statistics(request: Request) -> Response:
    """The statistics of one version, of all versions of a model, or of all models."""
    repository = request.app.repository
    name, version = request.path_params.get("model"), request.path_params.get("version")
    if name is not None:
        repository.get(name, version)
    chosen = (model for model in repository if name in (None, model.name) and version in (None, model.version))
    return JSONResponse(Statistics(model_stats=[model.statistics.record() for model in chosen]))


async def index(request: Request) -> Response:
    """The served models and the models of the repository; with `{"ready": true}` in the body, only the served models."""
    only_ready = (await _optional_object(request)).get("ready", False)
    if not isinstance(only_ready, bool):
        raise Refusal("`ready` must be true or false")
    entries = request.app.repository.index()
    return JSONResponse([entry for entry in entries if not only_ready or entry["state"] == "READY"])


async def load(request: Request) -> Response:
    """Load a model of the repository. Triton's parameters, which can replace its files, are not supported."""
    if (await _optional_object(request)).get("parameters"):
        raise Refusal(open_inference.NO_PARAMETERS)
    await request.app.repository.load(request.path_params["model"])
    return JSONResponse({})


async def unload(request: Request) -> Response:
    await _optional_object(request)
    await request.app.repository.unload(request.path_params["model"])
    return JSONResponse({})


async def _optional_object(request: Request) -> dict[str, Any]:
    body = await decoded_body(request)
    return parse_object(body) if body else {}


INFER = Content(
    "InferRequest",
    InferRequest,
    example={
        "id": "42",
        "inputs": [{"name": "data", "datatype": "FP32", "shape": [1, 3, 224, 224], "data": ["…"]}],
        "outputs": [{"name": "logits", "parameters": {"classification": 5}}],
    },
)
INFERRED = Content(
    "InferResponse",
    {"application/json": InferResponse, "application/octet-stream": bytes},
    "The outputs; `id` is returned if the request has one.",
    {
        "model_name": "vgg16-gap",
        "model_version": "1",
        "id": "42",
        "outputs": [{"name": "logits", "datatype": "BYTES", "shape": [1, 1], "data": ["12.345000:285:Egyptian cat"]}],
    },
)
INFER_DESCRIPTION = (
    "The input is a batch of preprocessed images, FP32 `data` [batch, 3, height, width], as `vgg.preprocess` returns them. "
    "Other numbers are converted to float32 and nothing else: UINT8 pixels are not normalised. With datatype BYTES and shape "
    "[batch] or [batch, 1], `data` are encoded images (JPEG, PNG, …), which the server decodes and preprocesses: base64 text "
    "in JSON, or bytes as a binary tensor.\n\n"
    "The output is `logits` [batch, classes], or the features of a model without a head. Other layer outputs can be requested "
    "by name, such as `fc7` or `pool5`.\n\n"
    "Binary tensors follow the JSON; the header `Inference-Header-Content-Length` then gives the length of the JSON (Triton's "
    'extension). `"parameters": {"classification": 5}` of an output requests the best classes as `value:index:label`. '
    "`timeout`, in microseconds, shortens the deadline. The body may be compressed with gzip or deflate."
)
METADATA = Content(
    "ServerMetadata", ServerMetadata, "Name, version and supported extensions.",
    {"name": "vgg", "version": "@VERSION@", "extensions": ["classification", "binary_tensor_data"]},
)  # fmt: skip
MODEL_METADATA = Content(
    "ModelMetadata",
    ModelMetadata,
    "Inputs and outputs of the model.",
    {
        "name": "vgg16-gap",
        "versions": ["1"],
        "platform": open_inference.PLATFORM,
        "inputs": [{"name": "data", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 1000]}],
    },
)
CONFIG = Content("ModelConfig", ModelConfig, "The model in the format of Triton's model configuration.")
STATISTICS = Content("Statistics", Statistics, "Triton's statistics extension.")
LIVE = Content("Live", Live, "The process is alive.", {"live": True})
READY = Content("ServerReady", Ready, "The server accepts requests.", {"ready": True})
NOT_READY = Content("ServerNotReady", Ready, "The server is shutting down.", {"ready": False})
MODEL_READY = Content("ModelReady", ModelReady, "The model is ready.", {"name": "vgg16-gap", "ready": True})
ONLY_READY = Content("IndexRequest", IndexRequest, required=False)
INDEX = Content(
    "RepositoryIndex", list[IndexEntry], "The served models, and the models of the repository that are not loaded.",
    [{"name": "vgg16-gap", "version": "1", "state": "READY", "reason": ""}],
)  # fmt: skip
DONE = Content("Done", dict, "The operation has succeeded.", {})
REPOSITORY = "Requires `vgg serve --repository DIR`, and applies to the models in that folder only. "


def _with_version(
    path: str, endpoint: Callable[[Request], Any], id: str, summary: str, reply: Content, **more: Any
) -> list[Route]:
    """The routes of a model without and with a version."""
    model = "/v2/models/{model}"
    return [
        Operation(model + path, endpoint, id, summary, {200: reply}, **more),
        Operation(f"{model}/versions/{{version}}{path}", endpoint, f"{id}V", f"{summary} of a version", {200: reply}, **more),
    ]


ROUTES = [
    Operation("/v2", metadata, "serverMetadata", "Server metadata", {200: METADATA}),
    Route("/v2/", metadata, methods=["GET"]),
    Operation("/v2/health/live", live, "live", "Check whether the process is alive", {200: LIVE}),
    Operation("/v2/health/ready", ready, "ready", "Check whether the server accepts requests", {200: READY, 503: NOT_READY}),
    Operation("/v2/models/stats", statistics, "stats", "Statistics of all models", {200: STATISTICS}),
    *_with_version("", one_metadata, "modelMetadata", "Model metadata", MODEL_METADATA),
    *_with_version("/ready", one_ready, "modelReady", "Model readiness", MODEL_READY),
    *_with_version("/config", one_config, "modelConfig", "Model configuration", CONFIG),
    *_with_version("/stats", statistics, "modelStats", "Statistics", STATISTICS),
    *_with_version(
        "/infer", infer, "infer", "Inference", INFERRED, methods=["POST"], body=INFER, description=INFER_DESCRIPTION
    ),
    Operation("/v2/repository/index", index, "repositoryIndex", "List the repository", {200: INDEX}, ["POST"], body=ONLY_READY),
    Operation(
        "/v2/repository/models/{model}/load", load, "load", "Load or reload a model", {200: DONE}, ["POST"],
        description=REPOSITORY + "A loaded model serves until the new one is ready.",
    ),
    Operation(
        "/v2/repository/models/{model}/unload", unload, "unload", "Unload a model", {200: DONE}, ["POST"],
        description=REPOSITORY + "Accepted requests still finish.",
    ),
]  # fmt: skip
