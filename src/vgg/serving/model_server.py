"""The inference interface of Multi Model Server, so that its clients work unchanged.

Paths, responses and errors follow awslabs/multi-model-server, docs/inference_api.md: an image in, raw or as a form, the five
best classes out. SageMaker calls the same at `/invocations`.
"""

from typing import Any, TypedDict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ImageError
from ..predictions import network_scores, rank
from . import site
from .bodies import read_images
from .operations import Content, Operation
from .refusals import NotFound, Refusal
from .repository import Model

TOP = 5
PATHS = ("/ping", "/predictions/", "/invocations", "/api-description", "/models/")

MmsClass = TypedDict("MmsClass", {"class": str, "probability": float})


class ImageForm(TypedDict):
    """Every file is read as an image, whatever the name of its field."""

    data: bytes


class MmsErrorBody(TypedDict):
    code: int
    type: str
    message: str


def owns(path: str) -> bool:
    """Whether a path belongs to Multi Model Server's interface."""
    return path.startswith(PATHS)


async def ping(request: Request) -> Response:
    healthy = request.app.admission.ready
    return JSONResponse(site.Status(status="Healthy" if healthy else "Unhealthy"), 200 if healthy else 503)


async def predict(request: Request) -> Response:
    """The five best classes of an image, or a list of them for each image of a form with several."""
    app, facts = request.app, request.scope["facts"]
    name = request.path_params.get("model") or request.query_params.get("model_name")
    version = request.path_params.get("version")
    facts["served"] = requested = app.repository.get(name, version)
    requested.batcher.check_room()  # before reading the body
    body = await read_images(request)
    with app.repository.get(name or body.options.get("model_name"), version).in_use() as model:
        facts.update(served=model, images=len(body.images))
        model.classifier.network.check_values(["logits"])
        results = []
        for inferred in await app.infer_images(model, body.images, ("logits",)):
            if isinstance(inferred, ImageError):
                raise Refusal(str(inferred))
            results.append(_classes(model, inferred.values["logits"]))
    return JSONResponse(results[0] if len(results) == 1 else results)


def _classes(model: Model, logits: Any) -> list[MmsClass]:
    """The best classes, named by WordNet id and label like the lines of `synset.txt` in Multi Model Server's models."""
    network = model.classifier.network
    best = rank(network_scores(network, logits), TOP, network.class_names)
    return [{"class": f"{one.wnid} {one.label}" if one.wnid else one.label, "probability": one.score} for one in best]


IMAGE = Content(
    "Image",
    {"application/octet-stream": bytes, "image/jpeg": bytes, "image/png": bytes, "multipart/form-data": ImageForm},
)
CLASSES = Content(
    "MmsClasses",
    list[MmsClass | list[MmsClass]],
    "The five best classes, best first; for several images, a list of such lists.",
    [{"class": "n02124075 Egyptian cat", "probability": 0.41}],
)
HEALTHY = Content("Healthy", site.Status, "The server is healthy.", {"status": "Healthy"})
UNHEALTHY = Content("Unhealthy", site.Status, "The server loads its models, or is shutting down.", {"status": "Unhealthy"})


def _predict(path: str, id: str, methods: list[str], **more: Any) -> Operation:
    summary = "Return the five best classes of an image"
    return Operation(path, predict, id, summary, {200: CLASSES}, methods, body=IMAGE, **more)


CURL = "curl -X POST http://127.0.0.1:8080/predictions/vgg16-gap -T cat.jpg"
ROUTES = [
    Operation("/ping", ping, "ping", "Check whether the server is healthy", {200: HEALTHY, 503: UNHEALTHY}),
    _predict("/predictions/{model}", "predict", ["POST", "PUT"], examples=[CURL]),  # `curl -T` sends PUT
    _predict("/predictions/{model}/{version}", "predictVersion", ["POST", "PUT"]),
    Route("/predictions/{model}", site.openapi, methods=["OPTIONS"]),
    _predict("/models/{model}/invoke", "invokeModel", ["POST"]),
    _predict("/invocations", "invocations", ["POST"], raises=[NotFound]),
    Operation("/api-description", site.openapi, "apiDescription", "This description", {200: site.OPENAPI}),
    Route("/", site.openapi, methods=["OPTIONS"]),
]
