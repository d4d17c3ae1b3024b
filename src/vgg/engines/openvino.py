"""OpenVINO: the graph is built here, the parameters are lent to it as they lie in memory or in the file."""

import math
import threading
from collections.abc import Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import openvino
from onnx import helper

from ..arrays import Array
from ..errors import ModelError, one_line
from ..formats import onnx_graph
from ..formats.onnx_options import OnnxOptions
from ..network import Network
from ..parameters import LowRank, Parameter, Part, Quantized, as_bytes, contiguous
from . import check_batch
from .graph import GraphEngine

OPSET, IR_VERSION = 21, 10  # the first with 4-bit numbers and with scales in groups


class OpenVinoGraphEngine(GraphEngine):
    """An ONNX file that quantizes activations, in OpenVINO's CPU plugin, which computes with integers where it can."""

    name = "openvino"

    def __init__(self, network: Network, threads: int | None = None) -> None:
        super().__init__(network)
        # What is left in floats stays float32: in bfloat16, which OpenVINO takes where there is AMX, it finds no kernel for
        # signed activations.
        options = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
            **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {}),
        }  # fmt: skip
        try:
            model = openvino.Core().read_model(self._path)
            self._model = openvino.Core().compile_model(model, "CPU", options)
        except Exception as error:  # whatever OpenVINO's bindings raise
            raise ModelError(f"{self._path}: OpenVINO can't run it ({one_line(error)}); the engine onnxruntime may") from None
        count = model.input(0).partial_shape[0]
        self._count = count.get_length() if count.is_static else None

    def _infer(self, batch: Array) -> Array:
        return np.array(self._model.create_infer_request().infer([batch])[0])


class OpenVinoEngine:
    """A network in OpenVINO's CPU plugin; see `vgg.engines.Engine`.

    Quantized linear layers are read as they are and multiplied in float32. For each set of outputs that is asked for,
    OpenVINO keeps a copy of the weights, in the order that its kernels like.
    """

    name = "openvino"

    def __init__(self, network: Network, threads: int | None = None) -> None:
        lent = {name: _lent(value) for name, value in network.parameters.items()}
        self._network = replace(network, parameters=lent)
        # Nothing but float32 arithmetic: neither bfloat16 nor activations rounded to 8 bits.
        self._options = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            **({"INFERENCE_NUM_THREADS": str(threads)} if threads else {}),
        }  # fmt: skip
        self._core = openvino.Core()
        self._models: dict[tuple[str, ...], openvino.CompiledModel] = {}
        self._tensors: list[openvino.Tensor] = []  # what the models read in place
        self._lock = threading.Lock()
        self._model(("logits",))

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        architecture = self._network.architecture
        check_batch(architecture, batch)
        model = self._model(tuple(sorted(set(outputs))))
        count, _, height, width = batch.shape
        if not count:  # OpenVINO refuses to compute nothing
            return {name: np.empty(architecture.shape(name, 0, height, width), np.float32) for name in outputs}
        # A request serves one thread at a time; making one takes 0.05 ms.
        found = model.create_infer_request().infer({"data": batch}, share_inputs=True)
        return {name: found[name] for name in outputs}

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]

    def _model(self, outputs: tuple[str, ...]) -> openvino.CompiledModel:
        """The model for these outputs; it computes no more than they need."""
        with self._lock:
            if outputs not in self._models:
                self._models[outputs] = self._compile(outputs)
            return self._models[outputs]

    def _compile(self, outputs: Sequence[str]) -> openvino.CompiledModel:
        graph, initializers = onnx_graph.build(self._network, OPSET, outputs, OnnxOptions())
        # The graph is read with its initializers as inputs, which then become constants where the numbers lie.
        graph.input.extend(helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in initializers)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model = self._core.read_model(made.SerializeToString())
        by_name = {one.name: one for one in initializers}
        for port in model.get_parameters():
            if one := by_name.get(port.get_friendly_name()):
                tensor = _tensor(contiguous(one.value, one.dtype).reshape(one.dims))
                self._tensors.append(tensor)
                port.output(0).replace(openvino.op.Constant(tensor).output(0))
                model.remove_parameter(port)
        model.validate_nodes_and_infer_types()
        return self._core.compile_model(model, "CPU", self._options)


def _lent(value: Parameter) -> Parameter:
    """A parameter as OpenVINO takes it: integers with a scale a row or in whole groups along the rows, else float32.

    OpenVINO 2026.4 refuses other groups, and computes something else when there is a scale a column.
    """
    if isinstance(value, LowRank):
        return LowRank(_lent_part(value.left), _lent_part(value.right))
    return _lent_part(value)


def _lent_part(value: Part) -> Part:
    if isinstance(value, Quantized) and (
        math.prod(value.shape[1:]) % value.group == 0 if value.group else value.axis == 0
    ):  # fmt: skip
        return value
    return contiguous(value, np.float32)


def _tensor(array: Array) -> openvino.Tensor:
    """A tensor on an array's own memory; 4-bit numbers are packed in pairs, the lower half of a byte first."""
    kinds = {np.dtype(ml_dtypes.int4): openvino.Type.i4, np.dtype(ml_dtypes.uint4): openvino.Type.u4}
    if (kind := kinds.get(array.dtype)) is None:
        return openvino.Tensor(array, openvino.Shape(array.shape), openvino.Type(array.dtype))
    packed = as_bytes(array)
    return openvino.Tensor(packed, openvino.Shape(array.shape), kind)
