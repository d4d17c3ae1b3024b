"""OpenVINO. It reads the parameters in place, in memory or in the mapped file."""

import math
from collections.abc import Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import openvino

from ..arrays import Array
from ..errors import ModelError, one_line
from ..formats import QuantizedGraph, companions, onnx_builder, onnx_whole
from ..formats.onnx_builder import OnnxOptions
from ..formats.onnx_file import Port
from ..network import Network
from ..parameters import LowRank, Parameter, Part, Quantized, as_bytes, contiguous
from .engine import BuiltEngine, WholeGraphEngine


class OpenVinoGraphEngine(WholeGraphEngine):
    """A graph with quantized activations in OpenVINO's CPU plugin, which computes with integers where it can."""

    name = "openvino"

    def __init__(self, graph: QuantizedGraph, threads: int | None = None) -> None:
        super().__init__(graph)
        try:
            # It reads no external data behind a link.
            content = onnx_whole.whole(graph.path).SerializeToString() if companions(graph.path) else graph.path
            model = openvino.Core().read_model(content)
            # Float32 where values are not integers: OpenVINO would use bfloat16 with AMX, for which it has no kernel with
            # signed activations.
            self._model = openvino.Core().compile_model(model, "CPU", _options(threads))
        except Exception as error:  # OpenVINO's errors have no common base
            raise ModelError(f"{graph.path}: OpenVINO can't run it ({one_line(error)}); the engine onnxruntime may") from None
        count = model.input(0).partial_shape[0]
        self._count = count.get_length() if count.is_static else None

    def _infer(self, batch: Array) -> Array:
        return np.array(self._model.create_infer_request().infer([batch])[self.graph.output])


class OpenVinoEngine(BuiltEngine):
    """A network in OpenVINO's CPU plugin; see `vgg.engines.Engine`.

    Quantized linear layers are multiplied in float32. OpenVINO keeps a reordered copy of the weights for each set of
    outputs.
    """

    name = "openvino"

    def __init__(self, network: Network, threads: int | None = None, precision: str = "auto") -> None:
        # Float32 arithmetic unless bfloat16 is asked for, and no activations rounded to 8 bits.
        self.precision = "bf16" if precision == "bf16" else "float32"
        hint = {"INFERENCE_PRECISION_HINT": "bf16"} if precision == "bf16" else {}
        self._options = {**_options(threads), **hint, "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        self._core = openvino.Core()
        accepted = {name: _accepted(value) for name, value in network.parameters.items()}
        super().__init__(replace(network, parameters=accepted))

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        architecture = self._network.architecture
        self._guard.check(batch, outputs)
        if not outputs:
            return {}
        model, _ = self._model(outputs)
        count, _, height, width = batch.shape
        if not count:  # OpenVINO refuses empty batches
            return {name: np.empty(architecture.shape(name, 0, height, width), np.float32) for name in outputs}
        # A request serves one thread at a time; creating one takes 0.05 ms.
        values = model.create_infer_request().infer({"data": batch}, share_inputs=True)
        return {name: values[name] for name in outputs}

    def _build(self, outputs: tuple[str, ...]) -> tuple[openvino.CompiledModel, list[openvino.Tensor]]:
        """A model, with the memory that it reads."""
        graph, initializers = onnx_builder.build(self._network, OnnxOptions(opset=onnx_builder.BLOCKED, outputs=outputs))
        # Initializers are read as inputs, then replaced by constants on the memory of the parameters.
        ports = [Port(one.name, one.data_type, [*one.dims]) for one in initializers]
        model = self._core.read_model(graph.model(inputs=ports))
        by_name, tensors = {one.name: one for one in initializers}, []
        for port in model.get_parameters():
            if one := by_name.get(port.get_friendly_name()):
                tensor = _tensor(contiguous(one.value, one.dtype).reshape(one.dims))
                tensors.append(tensor)
                port.output(0).replace(openvino.op.Constant(tensor).output(0))
                model.remove_parameter(port)
        model.validate_nodes_and_infer_types()
        return self._core.compile_model(model, "CPU", self._options), tensors


def _options(threads: int | None) -> dict[str, str]:
    number = {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **number}


def _accepted(value: Parameter) -> Parameter:
    """A parameter in a form that OpenVINO computes correctly: integers with one scale per row or per whole group, else float32.

    OpenVINO 2026.4 refuses other groups, and gives wrong results for one scale per column.
    """
    if isinstance(value, LowRank):
        return LowRank(_accepted_part(value.left), _accepted_part(value.right))
    return _accepted_part(value)


def _accepted_part(value: Part) -> Part:
    if isinstance(value, Quantized):
        whole = math.prod(value.shape[1:]) % value.group == 0 if value.group else value.axis == 0
        if whole:
            return value
    return contiguous(value, np.float32)


def _tensor(array: Array) -> openvino.Tensor:
    """A tensor on an array's own memory; 4-bit numbers are packed in pairs, the first in the lower half of the byte."""
    kinds = {np.dtype(ml_dtypes.int4): openvino.Type.i4, np.dtype(ml_dtypes.uint4): openvino.Type.u4}
    if (kind := kinds.get(array.dtype)) is None:
        return openvino.Tensor(array, openvino.Shape(array.shape), openvino.Type(array.dtype))
    packed = as_bytes(array)
    return openvino.Tensor(packed, openvino.Shape(array.shape), kind)
