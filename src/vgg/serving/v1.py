"""The server's own protocol: `POST /v1/classify` with images, `GET /v1/models`."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import ImageError
from ..explanation import can_explain, cropped_area, grad_cam, outputs
from ..predictions import choose, network_scores
from .bodies import read_images
from .operations import Content, Operation, closed, schema
from .refusals import NotFound, NotSupported, Refusal, Unreadable
from .repository import Model

FEW = 1000  # predictions that the event loop's thread may format
OPTIONS = ("top", "threshold", "explain", "model", "version")
NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Top = Annotated[int, schema(minimum=1, maximum=999_999_999)]
Threshold = Annotated[float, schema(minimum=0, maximum=1)]
Flag = Literal["true", "false", "1", "0"]
Base64 = Annotated[str, schema("An image file as base64 or as a data: URL.", contentEncoding="base64")]


class Query(TypedDict, total=False):
    top: Annotated[Top, schema("Maximum number of predictions per image; by default 5, or any if classes are independent.")]
    threshold: Annotated[
        Threshold, schema("Predictions have a score above it; by default none, or 0.5 if classes are independent.")
    ]
    explain: Annotated[Flag, schema("Also return a heat map for the best class.", default="false")]
    model: Annotated[str, schema("Name of the model; by default the first model.")]
    version: Annotated[str, schema("Version of the model; by default the newest.")]


@closed
class ClassifyForm(TypedDict):
    """Every file is read as an image, whatever the name of its field."""

    image: Annotated[list[bytes], schema(minItems=1)]
    top: NotRequired[Top]
    threshold: NotRequired[Threshold]
    explain: NotRequired[Flag]


@closed
class NamedImage(TypedDict):
    name: NotRequired[str]
    data: Base64


class JsonOptions(TypedDict, total=False):
    top: Annotated[int, schema(minimum=1)]
    threshold: Threshold
    explain: bool
    model: str
    version: str


@closed
class OneImage(JsonOptions):
    image: Base64 | NamedImage


@closed
class SeveralImages(JsonOptions):
    images: Annotated[list[Base64 | NamedImage], schema(minItems=1)]


class Prediction(TypedDict):
    label: str
    score: Annotated[float, schema("Probability of the class.", minimum=0, maximum=1)]
    index: Annotated[int, schema("Class index, from 0.")]
    wnid: Annotated[str | None, schema("WordNet id.")]


class Explanation(TypedDict):
    index: Annotated[int, schema("Index of the explained class.")]
    map: Annotated[list[list[float]], schema("Rows of the heat map: how much each place supports the class.")]
    box: Annotated[
        list[float],
        schema("The area of the image that the map covers: left, top, right, bottom, as fractions of its sides.",
               minItems=4, maxItems=4),
    ]  # fmt: skip


@closed
class ImageResult(TypedDict):
    image: str
    predictions: list[Prediction]
    explanation: NotRequired[Explanation]


@closed
class ImageFailure(TypedDict):
    image: str
    error: str


class ModelId(TypedDict):
    name: str
    version: str


class Timing(TypedDict):
    """Milliseconds, of the slowest image."""

    decode_ms: float
    queue_ms: float
    inference_ms: float


class Classified(TypedDict):
    model: ModelId
    results: list[ImageResult | ImageFailure]
    timing: Timing


class ModelDescription(ModelId):
    architecture: str
    classes: Annotated[int, schema("0 without a head; the model then has features, and can't classify.")]
    output: Annotated[
        str | None,
        schema("`softmax`: one class of many; `sigmoid`: classes are independent; `binary`: two classes; null without a head."),
    ]
    parameters: int
    bytes: int
    input_size: int
    preprocessing: str
    explains: Annotated[bool, schema("Whether the model supports heat maps.")]


class Models(TypedDict):
    models: list[ModelDescription]


async def classify(request: Request) -> Response:
    """Classify the images of the body."""
    app, query, facts = request.app, request.query_params, request.scope["facts"]
    facts["served"] = requested = app.repository.get(query.get("model"), query.get("version"))
    requested.batcher.check_room()  # before reading the body, so that most refused clients need not send it
    body = await read_images(request)
    options = _options({**query, **body.options})
    with app.repository.get(options["model"], options["version"]).in_use() as model:
        explain = options["explain"]
        if explain and not can_explain(model.classifier):
            raise NotSupported(f"model {model.name} has no heat maps: its file quantizes activations")
        facts.update(served=model, images=len(body.images))
        model.classifier.network.check_values(["logits"])
        layers = outputs(model.classifier.network) if explain else ("logits",)
        inferred = await app.infer_images(model, body.images, layers)
        names = [image.name for image in body.images]
        if explain or len(names) * (options["top"] or model.classifier.network.architecture.classes) > FEW:
            results = await app.in_thread(lambda: _results(model, names, inferred, options))
        else:
            results = _results(model, names, inferred, options)
    readable = [one for one in inferred if not isinstance(one, ImageError)]
    if not readable:
        raise Unreadable("; ".join(str(error) for error in inferred[:3]))
    decoded, queued, ran = (
        round(1000 * max(getattr(one, key) for one in readable), 2) for key in ("decoded", "queued", "inferred")
    )
    timing = Timing(decode_ms=decoded, queue_ms=queued, inference_ms=ran)
    return JSONResponse(Classified(model=ModelId(name=model.name, version=model.version), results=results, timing=timing))


async def models(request: Request) -> Response:
    """List the served models."""
    return JSONResponse(Models(models=[describe(model) for model in request.app.repository]))


def describe(model: Model) -> ModelDescription:
    """The properties of a model."""
    network = model.classifier.network
    return {
        "name": model.name,
        "version": model.version,
        "architecture": network.architecture.name,
        "classes": network.architecture.classes,
        "output": network.architecture.output,
        "parameters": network.architecture.parameter_count,
        "bytes": sum(array.nbytes for array in network.tensors().values()),
        "input_size": network.preprocessing.crop,
        "preprocessing": network.preprocessing.name,
        "explains": can_explain(model.classifier),
    }


def _results(
    model: Model, names: Sequence[str], inferred: Sequence[Any], options: Mapping[str, Any]
) -> list[ImageResult | ImageFailure]:
    return [
        ImageFailure(image=name, error=str(one)) if isinstance(one, ImageError) else _result(model, name, one, options)
        for name, one in zip(names, inferred, strict=True)
    ]


def _result(model: Model, name: str, inferred: Any, options: Mapping[str, Any]) -> ImageResult:
    network = model.classifier.network
    scores = network_scores(network, inferred.values["logits"])
    best = choose(network, scores, options["top"], options["threshold"])
    predictions = [Prediction(label=p.label, score=round(p.score, 6), index=p.index, wnid=p.wnid) for p in best]
    result = ImageResult(image=name, predictions=predictions)
    if options["explain"] and best:
        [heat] = grad_cam(network, inferred.values, [best[0].index])
        area = cropped_area(network.preprocessing, inferred.width, inferred.height)
        result["explanation"] = {
            "index": best[0].index,
            "map": [[float(f"{value:.4g}") for value in row] for row in heat],
            "box": [round(fraction, 6) for fraction in area],
        }
    return result


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request, from text or JSON. Raises Refusal."""
    if unknown := sorted(set(given) - set(OPTIONS)):
        raise Refusal(f"unknown option {', '.join(unknown)}; choose from {', '.join(OPTIONS)}")
    top, explain = given.get("top"), given.get("explain", False)
    threshold: Any = given.get("threshold")
    if isinstance(top, str) and top.isascii() and top.isdigit() and len(top) < 10:
        top = int(top)
    if isinstance(threshold, str) and NUMBER.fullmatch(threshold):
        threshold = float(threshold)
    if isinstance(explain, str):
        explain = BOOLEANS.get(explain)
    if "top" in given and (type(top) is not int or top < 1):
        raise Refusal(Refusal.example)
    if "threshold" in given and (type(threshold) not in (int, float) or not 0 <= threshold <= 1):
        raise Refusal("threshold must be a number from 0 to 1")
    if type(explain) is not bool:
        raise Refusal("explain must be true or false")
    names = {key: given.get(key, "") for key in ("model", "version")}
    if not all(isinstance(name, str) for name in names.values()):
        raise Refusal("model and version must be text")
    return {"top": top, "threshold": threshold, "explain": explain, **names}


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
IMAGES = Content(
    "Images",
    {
        "application/octet-stream": bytes, "image/jpeg": bytes, "image/png": bytes, "multipart/form-data": ClassifyForm,
        "application/json": OneImage | SeveralImages,
    },
    example={"images": [{"name": "cat.jpg", "data": PIXEL}], "top": 2},
)  # fmt: skip
CLASSIFIED = Content(
    "Classified",
    Classified,
    "A result for each image, in order: its predictions, best first, or an error if it can't be read.",
    {
        "model": {"name": "vgg16-gap", "version": "1"},
        "results": [
            {
                "image": "cat.jpg",
                "predictions": [
                    {"label": "Egyptian cat", "score": 0.41, "index": 285, "wnid": "n02124075"},
                    {"label": "tabby", "score": 0.3, "index": 281, "wnid": "n02123045"},
                ],
            }
        ],
        "timing": {"decode_ms": 4.1, "queue_ms": 0.1, "inference_ms": 61.3},
    },
)
MODELS = Content(
    "Models",
    Models,
    "The served models; the first one is the default.",
    {
        "models": [
            {
                "name": "vgg16-gap", "version": "1", "architecture": "vgg16", "classes": 1000, "output": "softmax",
                "parameters": 15227688, "bytes": 15287000, "input_size": 224, "preprocessing": "torchvision", "explains": True,
            }
        ]
    },
)  # fmt: skip
ROUTES = [
    Operation(
        "/v1/classify", classify, "classify", "Classify images", {200: CLASSIFIED}, ["POST"],
        body=IMAGES, query=Query, raises=[NotFound, Unreadable, NotSupported],
        description="Send one image as the body, several as the files of a form, or base64 in JSON. The server never "
        "downloads images from URLs.\n\nOptions are sent in the query, or with the images in a form or in JSON, which takes "
        "precedence. The result of an image that can't be read is an error; if no image can be read, the status is 422.",
        examples=[
            "curl --data-binary @cat.jpg http://127.0.0.1:8080/v1/classify",
            "curl -F a=@cat.jpg -F b=@dog.jpg 'http://127.0.0.1:8080/v1/classify?top=3'",
            "jq -n --arg data \"$(base64 -w0 cat.jpg)\" '{image: $data, explain: true}' |\n"
            "  curl --json @- http://127.0.0.1:8080/v1/classify",
        ],
    ),
    Operation(
        "/v1/models", models, "models", "List the models", {200: MODELS},
        examples=["curl http://127.0.0.1:8080/v1/models"],
    ),
]  # fmt: skip
