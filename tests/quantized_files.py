"""Files with quantized activations, as `onnxruntime.quantization` and others write them."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from conftest import random_network
from heads_helpers import without_gemm
from onnx_optimised import optimise

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8, "u16": QuantType.QUInt16}


class Images(CalibrationDataReader):
    def __init__(self):
        self._left = iter([{"data": image[None]} for image in IMAGES])

    def get_next(self):
        return next(self._left, None)


def quantized(
    folder: Path, form="QDQ", kinds=("u8", "s8"), *, name="vgg11", per_channel=True, level="", matmul=False, written=None,
    extra=None, only=None, **architecture,
) -> Path:  # fmt: skip
    """A random network, quantized by ONNX Runtime; with a `level`, also optimised and saved by it."""
    source, path = folder / "float.onnx", folder / "q.onnx"
    random_network(name, input_size=64, **architecture).write(source, opset=21, **(written or {}))
    if matmul:
        without_gemm(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            source, path, Images(), quant_format=QuantFormat[form], per_channel=per_channel, op_types_to_quantize=only,
            activation_type=TYPES[kinds[0]], weight_type=TYPES[kinds[1]], extra_options=extra or {},
        )  # fmt: skip
    if level:
        optimise(path, level)
    return path


# Arguments of `quantized` by the name of a test.
EXACT = {
    f"{form}, {''.join(kinds)}, {'channels' if per_channel else 'tensors'}": {
        "form": form, "kinds": kinds, "per_channel": per_channel,
    }
    for form in ("QDQ", "QOperator") for kinds in (("u8", "u8"), ("u8", "s8"), ("s8", "s8")) for per_channel in (True, False)
} | {
    f"{form}, {title}": {"form": form, **arguments}
    for form in ("QDQ", "QOperator")
    for title, arguments in {
        "symmetric": {"kinds": ("s8", "s8"), "extra": {"ActivationSymmetric": True}},
        "average": {"head": "average, 40 relu, classes"}, "maximum": {"head": "max, 40 relu, classes"},
        "gap": {"head": "gap"}, "backbone": {"head": "none", "classes": 0}, "lrn": {"name": "vgg11-lrn"},
        "1x1": {"name": "vgg16-c"}, "BASIC": {"level": "BASIC"}, "EXTENDED": {"level": "EXTENDED"}, "ALL": {"level": "ALL"},
    }.items()
} | {
    "QDQ, float biases": {"extra": {"QuantizeBias": False}},
    "QDQ, float weights": {"extra": {"AddQDQPairToWeight": True}},
    "QDQ, pairs of their own": {"extra": {"DedicatedQDQPair": True}},
    "QDQ, asymmetric weights": {"kinds": ("u8", "u8"), "extra": {"WeightSymmetric": False}},
}  # fmt: skip


def bare(path: Path, batch=IMAGES) -> np.ndarray:
    """The output of a file on ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def simulated(path: Path, twice: bool = False) -> Path:
    """A random network as quantization-aware training writes it, with Q and DQ before each layer, for float weights too.

    Max pooling is between a ReLU and its Q. With `twice`, the outputs of convolutions have another Q and DQ before their ReLU.
    """
    random_network("vgg11", input_size=64).write(path, opset=13)
    model = onnx.load(path)
    del model.metadata_props[:]
    nodes, graph = [], model.graph
    weights = {one.name: numpy_helper.to_array(one) for one in graph.initializer}

    def pair(name, scale, zero, axis=None):
        given = [f"{name}.s", f"{name}.z"]
        graph.initializer.extend(numpy_helper.from_array(array, key) for array, key in zip((scale, zero), given, strict=True))
        along = {} if axis is None else {"axis": axis}
        nodes.append(helper.make_node("QuantizeLinear", [name, *given], [f"{name}.q"], **along))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *given], [f"{name}.d"], **along))
        return f"{name}.d"

    for node in list(graph.node):
        if node.op_type in ("Conv", "Gemm"):
            weight = weights[node.input[1]]
            scale = (np.abs(weight).reshape(len(weight), -1).max(1) / 127).astype(np.float32)
            node.input[1] = pair(node.input[1], scale, np.zeros(len(scale), np.int8), 0)
            zero = np.uint8(120 if node.input[0] == "data" else 0)
            node.input[0] = pair(node.input[0], np.float32(0.03), zero)
        raw = node.input[0]
        if twice and node.op_type == "Relu" and raw.startswith("conv"):
            node.input[0] = pair(raw, np.float32(0.05), np.uint8(100))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)
    return path
