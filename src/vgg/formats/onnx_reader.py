"""The network in an ONNX file, mapped."""

import warnings
from dataclasses import replace
from pathlib import Path

from ..architectures import Architecture
from ..errors import ModelError, Notice
from ..network import Network
from ..parameters import Parameter, Part
from . import metadata, walk
from .layouts import Bare
from .onnx_file import OnnxFile, Tensor, scan

_QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinear", "QGemm", "ConvInteger", "MatMulInteger")


def read(path: Path) -> Network | Bare:
    """The network in a file that vgg wrote, or the architecture and parameters in another file.

    A file that vgg wrote is read by its tensors' names; any other, and one that a tool has changed, by its graph.
    """
    model = scan(path)
    written = metadata.architecture(path, model.metadata) if metadata.ARCHITECTURE in model.metadata else None
    if written and metadata.is_whole(written, model.tensors.keys()):
        return metadata.build(path, model.metadata, {name: model.array(name) for name in model.tensors})
    architecture, parameters, softmax = _walk(model, written is not None)
    if written:
        same = written.parameters == architecture.parameters
        return metadata.complete(path, model.metadata, written if same else architecture, parameters)
    if softmax:
        warnings.warn(Notice(f"{path}: removed the softmax at its end; writing can add it again"), stacklevel=2)
    return Bare(architecture, parameters)


def quantized_activations(path: Path) -> tuple[bool, bool] | None:
    """Of an ONNX file with quantized activations: whether it is in the QDQ format, and whether it ends in a softmax."""
    operators = [node.operator for node in scan(path).nodes]
    if not any(one.startswith(_QUANTIZING) for one in operators):
        return None
    qdq = not any(one.startswith(_QUANTIZING[1:]) for one in operators)
    return qdq, any(one.endswith("Softmax") for one in operators[-3:])


def usual_preset(path: Path) -> str:
    """The usual preset of files of this file's producer, which its name and the tensors' names show."""
    model = scan(path)
    names = " ".join((model.producer, *model.tensors)).lower()
    if "caffe" in names or "conv1_1_w" in names:
        return "caffe"
    if "conv0_weight" in names:  # MXNet's; the zoo measured its quantized files with another preprocessing
        return "onnxrt" if any("quant" in name for name in model.tensors) else "zoo"
    return "torchvision"


def _walk(model: OnnxFile, ours: bool) -> tuple[Architecture, dict[str, Parameter], bool]:
    start = model.inputs[0].name if model.inputs else ""
    if ours:  # may start with preprocessing
        start = next((name for node in model.nodes for name in node.outputs if name in ("data", "data_0")), start)
    if len(model.inputs) != 1:
        names = ", ".join(port.name for port in model.inputs) or "none"
        raise ModelError(f"{model.path}: not a VGG network: expected one input, found {names}")
    constants: dict[str, Part] = {name: model.array(name) for name in model.tensors}
    nodes = []
    for node in model.nodes:
        tensors = {key: model.array(value) for key, value in node.attributes.items() if isinstance(value, Tensor)}
        nodes.append(replace(node, attributes={**node.attributes, **tensors}))
    return walk.follow(model.path, nodes, constants, start, [port.name for port in model.outputs])
