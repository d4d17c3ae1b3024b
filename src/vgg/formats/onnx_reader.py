"""The network in an ONNX file, mapped."""

import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import ModelError, Notice
from ..network import Network
from ..parameters import Part
from . import metadata, walk
from .activations import Activations
from .dimensions import OPEN, Dimensions
from .layouts import Bare
from .nodes import INTEGERS, Node, in_order
from .onnx_file import NEWEST, NEWEST_IR, PRODUCER, OnnxFile, Port, Tensor, scan
from .pixels import Pixels
from .protobuf import fields
from .walk import Walked

_QUANTIZING = (
    "QuantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "ConvInteger", "MatMulInteger",
)  # fmt: skip
# Names that converters of Keras and TensorFlow models leave: theirs, those of TensorFlow's operators, of Keras's layers.
_KERAS = re.compile(
    r"[Kk]eras|tf2onnx|OnnxMLTools|StatefulPartitionedCall|ReadVariableOp|BiasAdd|/Conv2D|/kernel|kernel:0|functional(_\d+)?/|"
    r"block[1-5]_conv[1-4]"
)
FLOAT = 1  # TensorProto.DataType


@dataclass(frozen=True)
class Graph:
    """What an engine must know of a graph with quantized activations to run it; `activations` and `obstacle` as in `Walked`."""

    qdq: bool  # QuantizeLinear and DequantizeLinear around float operators, rather than integer operators
    output: str  # the name of the output that is the network's
    ending: str  # see `walk.Walked`
    activations: Activations
    obstacle: str


def read(path: Path) -> Network | Bare:
    """The network in a file that vgg wrote, or the architecture and parameters in another file.

    A file that vgg wrote is read by its tensors' names; any other, and one that a tool has changed, by its graph.
    """
    model = scan(path)
    written = metadata.architecture(path, model.metadata) if metadata.ARCHITECTURE in model.metadata else None
    if not written and is_streamed(model):
        raise ModelError(f"{path}: is truncated: vgg wrote it, but its metadata is missing")
    if written and metadata.is_whole(written, model.tensors.keys()):
        return metadata.build(path, model.metadata, {name: model.array(name) for name in model.tensors})
    walked = _walk(model)
    if written:
        found = walked.architecture
        candidates = (written, written.without_batch_norm())  # which a tool may have folded
        found = next((one for one in candidates if one.parameters == found.parameters), found)
        return metadata.complete(path, model.metadata, found, walked.parameters)
    if walked.ending.endswith("softmax"):
        warnings.warn(Notice(f"{path}: removed the softmax at its end; writing can add it again"), stacklevel=2)
    if walked.ignored:
        warnings.warn(Notice(f"{path}: removed {walked.ignored} at its end"), stacklevel=2)
    steps = walked.pixels.preprocessing(model.inputs[0].data_type in INTEGERS, usual_preset(path))
    if not steps:
        return Bare(walked.architecture, walked.parameters, assumed=walked.assumed)
    preprocessing, pixels = steps
    usual = "torchvision" if preprocessing.name == "file" else preprocessing.name
    warnings.warn(
        Notice(
            f"{path}: normalises pixels in its graph, which is now the preprocessing; assumed pixels {pixels} and images "
            f"resized as by preset {usual!r}. Set with --preset"
        ),
        stacklevel=2,
    )
    return Bare(walked.architecture, walked.parameters, preprocessing, assumed=walked.assumed)


def is_streamed(model: OnnxFile) -> bool:
    """Whether the file is as vgg wrote it, in its order: opsets, graph, metadata. Other programs write the graph first."""
    graph, opsets = 7, 8
    order = [number for number, _ in fields(model.mapped, 0, len(model.mapped)) if number in (graph, opsets)]
    return model.producer == PRODUCER and order[0] == opsets


def quantizes(model: OnnxFile) -> bool:
    """Whether a graph quantizes activations."""
    return any(node.operator.startswith(_QUANTIZING) for node in model.nodes)


def quantized_activations(model: OnnxFile) -> Graph | None:
    """What an engine must know of an ONNX file that quantizes activations; None if no engine can run its graph.

    A graph with another input or output than the network's, such as pixels or the best class, is read as its weights alone.

    Raises:
        ModelError: a scale or another number is NaN or infinite, which integers would hide.
    """
    operators = [node.operator for node in model.nodes]
    walked, port = _walk(model), model.inputs[0]
    other = port.data_type not in (0, FLOAT) or _dimensions(port, model.nodes).axes != walk.MAP.axes
    if other or walked.ignored or walked.pixels != Pixels():
        return None
    for name, tensor in model.tensors.items():
        if tensor.data_type == FLOAT and not np.isfinite(model.array(name)).all():
            raise ModelError(f"{model.path}: {name} has values that are not finite numbers, so the graph can't be used")
    qdq = not any(one.startswith(_QUANTIZING[1:]) for one in operators)
    return Graph(qdq, walked.output, walked.ending, walked.activations, walked.obstacle)


def usual_preset(path: Path) -> str:
    """The usual preset of files of this file's origin, which its producer and the names in its graph show.

    Optimisers and quantizers write their own name as the producer, but keep most of the others.
    """
    model = scan(path)
    tensors = " ".join(model.tensors)
    ports = [port.name for port in (*model.inputs, *model.outputs)]
    values = [name for node in model.nodes for name in (*node.inputs, *node.outputs)]
    names = " ".join((model.producer, tensors, *ports, *values))
    if "caffe" in names.lower() or "conv1_1_w" in tensors.lower() or _KERAS.search(names):
        return "caffe"
    if "conv0_weight" in tensors.lower():  # MXNet's; the zoo measured its quantized files with another preprocessing
        return "onnxrt" if "quant" in tensors.lower() else "zoo"
    return "torchvision"


def _check_version(model: OnnxFile) -> None:
    """Raise ModelError for a newer version of ONNX than this package knows."""
    for name, found, newest in (("opset", model.opset, NEWEST), ("IR version", model.ir_version, NEWEST_IR)):
        if found > newest:
            raise ModelError(
                f"{model.path}: {name} {found} is newer than {newest}, the newest that this version of vgg knows; "
                "update vgg, or export the file with an older version"
            )


def _walk(model: OnnxFile) -> Walked:
    _check_version(model)
    if len(model.inputs) != 1:
        names = ", ".join(port.name for port in model.inputs) or "none"
        raise ModelError(f"{model.path}: not a VGG network: expected one input, found {names}")
    constants: dict[str, Part] = {name: model.array(name) for name in model.tensors}
    nodes = []
    for node in model.nodes:
        tensors = {key: model.array(value) for key, value in node.attributes.items() if isinstance(value, Tensor)}
        nodes.append(replace(node, attributes={**node.attributes, **tensors}))
    nodes = in_order(nodes)
    start, dimensions = model.inputs[0].name, _dimensions(model.inputs[0], nodes)
    if metadata.ARCHITECTURE in model.metadata:  # may start with preprocessing
        within = next((name for node in nodes for name in node.outputs if name in ("data", "data_0")), "")
        start, dimensions = (within, walk.MAP) if within else (start, dimensions)
    return walk.follow(model.path, nodes, [port.name for port in model.outputs], constants, start, dimensions)


def _dimensions(port: Port, nodes: list[Node]) -> Dimensions:
    """The dimensions of the input: images of 3 channels, which are the last dimension if the shape or a Transpose shows it."""
    sides = [side if isinstance(side, int) and side > 0 else 0 for side in port.shape]
    rank = len(sides) if len(sides) in (3, 4) else 4
    sides = sides if len(sides) == rank else [0] * rank
    first = next((node.attributes.get("perm") for node in nodes if port.name in node.inputs), None)
    last = sides[-1] == 3 if 3 in (sides[-3], sides[-1]) else first == [0, 3, 1, 2]
    axes = ("N", "H", "W", "C") if last and sides[-3] != 3 else ("N", "C", "H", "W")
    known = dict(zip(axes[4 - rank :], sides, strict=True))
    sizes = {axis: known.get(axis) or OPEN[axis] for axis in "HW"}
    free = "".join(axis for axis in "HW" if not known.get(axis))
    # Images of a fixed number are any number of images, so that the network takes batches.
    return Dimensions(axes[4 - rank :], {"N": OPEN["N"], "C": 3, **sizes}, free, known.get("N") or 1)
