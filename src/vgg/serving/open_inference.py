"""The Open Inference Protocol (KServe's version 2): its JSON types, and what REST and gRPC share."""

import asyncio
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from .. import __version__
from . import datatypes, tensors
from .datatypes import FP32
from .metrics import ModelStatistics
from .operations import schema
from .repository import Model, Repository

PLATFORM = "onnx_onnxv1"
EXTENSIONS = ["classification", "binary_tensor_data", "statistics", "model_configuration"]
NO_PARAMETERS = "parameters are not supported; the model is loaded from the repository's folder"

Parameters = dict[str, Any]


class ServerMetadata(TypedDict):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(TypedDict):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelConfig(TypedDict):
    name: str
    platform: str
    backend: NotRequired[str]
    max_batch_size: int
    input: list[dict[str, Any]]
    output: list[dict[str, Any]]
    dynamic_batching: NotRequired[dict[str, Any]]
    parameters: Annotated[dict[str, Any], schema("`input_datatypes`: all datatypes of the input.")]


class Live(TypedDict):
    live: bool


class Ready(TypedDict):
    ready: bool


class ModelReady(TypedDict):
    name: str
    ready: bool


class Statistics(TypedDict):
    model_stats: list[ModelStatistics]


class InferInput(TypedDict):
    name: Literal["data"]
    datatype: Annotated[str, schema("`BYTES`: encoded images.", enum=(*datatypes.DATATYPES, datatypes.BYTES))]
    shape: Annotated[
        list[int],
        schema("[batch, 3, height, width]; of encoded images [batch] or [batch, 1], or UINT8 [batch, length].",
               minItems=1, maxItems=4),
    ]  # fmt: skip
    parameters: NotRequired[Parameters]
    data: NotRequired[
        Annotated[list[Any], schema("Numbers, flat or nested, in row-major order; of `BYTES` the base64 text of each image.")]
    ]


class InferOutput(TypedDict):
    name: str
    parameters: NotRequired[Parameters]


class InferRequest(TypedDict):
    id: NotRequired[str]
    parameters: NotRequired[Parameters]
    inputs: Annotated[list[InferInput], schema(minItems=1, maxItems=1)]
    outputs: NotRequired[list[InferOutput]]


class OutputTensor(TypedDict):
    name: str
    datatype: str
    shape: list[int]
    parameters: NotRequired[Parameters]
    data: NotRequired[list[Any]]


class InferResponse(TypedDict):
    model_name: str
    model_version: NotRequired[str]
    id: NotRequired[str]
    outputs: list[OutputTensor]


class IndexRequest(TypedDict, total=False):
    ready: Annotated[bool, schema("List only the models that are loaded.")]


def server_metadata(repository: Repository) -> ServerMetadata:
    extensions = [*EXTENSIONS, "model_repository"] if repository.changeable else EXTENSIONS
    return {"name": "vgg", "version": __version__, "extensions": extensions}


def model_metadata(repository: Repository, model: Model) -> ModelMetadata:
    """Inputs and outputs of a model. Only the last output is listed; other layer outputs can be requested by name."""
    name, shape = _output(model)
    return {
        "name": model.name,
        "versions": repository.versions(model.name),
        "platform": PLATFORM,
        "inputs": [{"name": tensors.INPUT, "datatype": FP32.name, "shape": [-1, *_input_shape(model)]}],
        "outputs": [{"name": name, "datatype": FP32.name, "shape": [-1, *shape]}],
    }


def _input_shape(model: Model) -> list[int]:
    """The shape that the preprocessing makes, also if the network accepts others: clients resize their images to it."""
    side = model.classifier.network.preprocessing.crop
    return [3, side, side]


def _output(model: Model) -> tuple[str, list[int]]:
    """The name and shape of the last output: logits, or the map of a backbone, of any height and width."""
    architecture = model.classifier.network.architecture
    name, side = architecture.values[-1], architecture.input_size
    shape = list(architecture.shape(name, 1, side, side)[1:])
    return name, shape if architecture.classifier else [shape[0], -1, -1]


def model_config(model: Model, batch_size: int) -> ModelConfig:
    """The model in the format of Triton's model configuration."""
    name, shape = _output(model)
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "vgg",
        "max_batch_size": batch_size,
        "input": [{"name": tensors.INPUT, "data_type": "TYPE_FP32", "format": "FORMAT_NCHW", "dims": _input_shape(model)}],
        "output": [{"name": name, "data_type": "TYPE_FP32", "dims": shape}],
        "dynamic_batching": {},
        "parameters": {"input_datatypes": {"string_value": f"{datatypes.NAMES}, {datatypes.BYTES}"}},
    }


async def run(app: Any, model: Model, inference: tensors.Inference) -> list[tensors.Tensor]:
    """Run an inference request, within its own timeout."""
    names = [output.name for output in inference.outputs]
    async with asyncio.timeout(inference.timeout):
        values = await app.infer_items(model, inference.items, names)
    return tensors.encode_outputs(values, inference.outputs, model.classifier.network)
