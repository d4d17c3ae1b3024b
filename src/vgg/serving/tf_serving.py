"""The REST interface of TensorFlow Serving, and KServe's version 1, which has the same paths.

Paths, requests and responses follow tensorflow.org/tfx/serving/api_rest and kserve.github.io, "V1 Protocol". A response has the
fields of both.
"""

from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..arrays import Array
from ..predictions import network_scores, rank
from . import tensors
from .bodies import decoded_body
from .instances import Reader
from .open_inference import model_metadata
from .operations import Content, Operation, schema
from .refusals import Refusal
from .repository import Model
from .tensors import Inference, RequestedOutput

SCORES = "scores"  # name of the output of a model with classes
SIGNATURE, IMAGES = "serving_default", "images"  # names of the signatures: numbers, and encoded images
TYPES = {"FP32": "DT_FLOAT", "BYTES": "DT_STRING"}


class VersionStatus(TypedDict):
    version: str
    state: str
    status: dict[str, str]


class ModelStatus(TypedDict):
    """TensorFlow Serving's `model_version_status`, and KServe's `name` and `ready`."""

    name: str
    ready: bool
    model_version_status: list[VersionStatus]


class SignatureMetadata(TypedDict):
    model_spec: dict[str, str]
    metadata: dict[str, Any]


class PredictRequest(TypedDict, total=False):
    """Either `instances` or `inputs`: encoded images, or preprocessed numbers in either order of axes."""

    signature_name: str
    instances: Annotated[list[Any], schema('Rows: `{"b64": "…"}`, `{"image_bytes": {"b64": "…"}}`, or nested lists.')]
    inputs: Annotated[list[Any] | dict[str, Any], schema("The same as one list, or as an object with one named list.")]


class PredictResponse(TypedDict):
    predictions: Annotated[list[Any], schema("Scores of the classes of each image; of a model without a head its features.")]
    outputs: NotRequired[Annotated[list[Any], schema("The same, if the request has `inputs`.")]]


class ClassifyRequest(TypedDict, total=False):
    signature_name: str
    examples: list[Any]


class ClassifyResponse(TypedDict):
    results: Annotated[list[Any], schema("For each image, `[label, score]` of each class, best first.")]


async def status(request: Request) -> Response:
    repository, name, version = request.app.repository, request.path_params["model"], request.path_params.get("version")
    repository.get(name, version)
    versions = [version] if version else reversed(repository.versions(name))
    ok = {"error_code": "OK", "error_message": ""}
    states = [VersionStatus(version=one, state="AVAILABLE", status=ok) for one in versions]
    return JSONResponse(ModelStatus(name=name, ready=True, model_version_status=states))


async def metadata(request: Request) -> Response:
    model = request.app.repository.get(request.path_params["model"], request.path_params.get("version"))
    described: Any = model_metadata(request.app.repository, model)
    [numbers], [output] = described["inputs"], described["outputs"]
    if model.classifier.network.architecture.classifier:
        output = {**output, "name": SCORES, "shape": [-1, model.classifier.network.architecture.classes]}
    images = {"name": "b64", "datatype": "BYTES", "shape": [-1]}
    signatures = {
        name: {"inputs": _tensor(given), "outputs": _tensor(output), "method_name": "tensorflow/serving/predict"}
        for name, given in ((SIGNATURE, numbers), (IMAGES, images))
    }
    spec = {"name": model.name, "signature_name": "", "version": model.version}
    return JSONResponse(SignatureMetadata(model_spec=spec, metadata={"signature_def": {"signature_def": signatures}}))


def _tensor(described: dict[str, Any]) -> dict[str, Any]:
    """A tensor of a signature."""
    sides = [{"size": str(side), "name": ""} for side in described["shape"]]
    shape = {"dim": sides, "unknown_rank": False}
    return {described["name"]: {"dtype": TYPES[described["datatype"]], "tensor_shape": shape, "name": described["name"]}}


async def predict(request: Request) -> Response:
    """The scores of each instance, or the features of a model without a head."""
    _, values, columns = await _run(request, "instances", "inputs")
    rows = await request.app.in_thread(lambda: _rows(values))
    outputs = b',"outputs":%b' % rows if columns else b""
    return Response(b'{"predictions":%b%b}' % (rows, outputs), media_type="application/json")


async def classify(request: Request) -> Response:
    """The classes of each example, best first."""
    model, values, _ = await _run(request, "examples")
    network = model.classifier.network
    network.architecture.check_values(["logits"])
    count = network.architecture.classes

    def results() -> bytes:
        ranked = [[(one.label, one.score) for one in rank(row, count, network.class_names)] for row in values]
        return msgspec.json.encode({"results": ranked})

    return Response(await request.app.in_thread(results), media_type="application/json")


async def _run(request: Request, *fields: str) -> tuple[Model, Array, bool]:
    """The model, its output for the instances in one of the fields, and whether they are a column."""
    app, facts, path = request.app, request.scope["facts"], request.path_params
    facts["served"] = requested = app.repository.get(path["model"], path.get("version"))
    requested.batcher.check_room()  # before reading the body
    body = await decoded_body(request)
    with app.repository.get(path["model"], path.get("version")).in_use() as model:
        facts["served"] = model
        network, memory = model.classifier.network, request.scope["memory"]
        reader = Reader(network, app.settings.queue, memory)
        given = await app.in_thread(lambda: reader.read(body, *fields))
        facts["images"] = len(given.items)
        name = network.architecture.values[-1]
        outputs = (RequestedOutput(name),) * (1 + given.columns)
        tensors.check_outputs(Inference(given.items, outputs), network, app.settings.max_body * 2**20, memory)
        values = (await app.infer_items(model, given.items, (name,)))[name]
    return model, network_scores(network, values) if network.architecture.classifier else values, given.columns


def _rows(values: Array) -> bytes:
    """A JSON list of an array, row by row, so that other threads can run in between."""
    if not np.isfinite(values).all():
        raise Refusal("the output has values that are not finite, which JSON can't represent")
    return b"[%b]" % b",".join(msgspec.json.encode(row.tolist()) for row in values)


PREDICT = Content("PredictRequest", PredictRequest, example={"instances": [{"b64": "iVBORw0KGgo…"}]})
PREDICTED = Content("PredictResponse", PredictResponse, "A row for each instance.", {"predictions": [[0.41, 0.3, 0.29]]})
EXAMPLES = Content("ClassifyRequest", ClassifyRequest, example={"examples": [{"image_bytes": {"b64": "iVBORw0KGgo…"}}]})
CLASSIFIED = Content(
    "ClassifyResponse",
    ClassifyResponse,
    "The classes of each example.",
    {"results": [[["Egyptian cat", 0.41]]]},
)
STATUS = Content(
    "ModelStatus",
    ModelStatus,
    "The versions of the model that are served.",
    {
        "name": "vgg16-gap",
        "ready": True,
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
        ],
    },
)
SIGNATURES = Content("SignatureMetadata", SignatureMetadata, "The signatures of the model.")
DESCRIPTION = (
    "Encoded images are base64, and are preprocessed by the server. Numbers are preprocessed images, [batch, 3, height, width] "
    "or [batch, height, width, 3], and are not normalised. Rows are `instances`, a column is `inputs`; a model has one input, "
    "so its name may be omitted. The content type is ignored."
)
CURL = (
    'curl http://127.0.0.1:8080/v1/models/vgg16-gap:predict -d "{\\"instances\\": [{\\"b64\\": \\"$(base64 -w0 cat.jpg)\\"}]}"'
)


def _with_version(path: str, *rest: Any, **more: Any) -> list[Operation]:
    """The routes of a model without and with a version."""
    endpoint, id, summary, reply = rest
    return [
        Operation(f"/v1/models/{{model}}{version}{path}", endpoint, f"{id}{suffix}", summary, {200: reply}, **more)
        for version, suffix in (("", ""), ("/versions/{version}", "V"))
    ]


ROUTES = [
    *_with_version(
        ":predict", predict, "tfPredict", "Scores of images", PREDICTED, methods=["POST"], body=PREDICT,
        description=DESCRIPTION, examples=[CURL],
    ),
    *_with_version(":classify", classify, "tfClassify", "Classes of images", CLASSIFIED, methods=["POST"], body=EXAMPLES),
    *_with_version("/metadata", metadata, "tfMetadata", "Signatures of a model", SIGNATURES),
    *_with_version("", status, "tfStatus", "Status of a model", STATUS),
]  # fmt: skip
