"""ONNX Runtime. Each session copies the parameters."""

from collections.abc import Sequence

import onnxruntime

from ..arrays import Array
from ..errors import ModelError, one_line
from ..formats import QuantizedGraph, onnx_builder
from ..formats.onnx_builder import OnnxOptions
from ..formats.onnx_messages import external_tensor
from ..network import Network
from ..parameters import contiguous
from .engine import BuiltEngine, WholeGraphEngine


class OnnxGraphEngine(WholeGraphEngine):
    """A graph with quantized activations in ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def __init__(self, graph: QuantizedGraph, threads: int | None = None) -> None:
        super().__init__(graph)
        try:
            self._session = onnxruntime.InferenceSession(graph.path, _options(threads), providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base
            raise ModelError(
                f"{graph.path}: ONNX Runtime can't run it ({one_line(error)}); the engine native can run its weights in float"
            ) from None
        count = self._session.get_inputs()[0].shape[0]
        self._count = count if isinstance(count, int) else None

    def _infer(self, batch: Array) -> Array:
        output: Array = self._session.run([self.graph.output], {self._session.get_inputs()[0].name: batch})[0]
        return output


class OnnxRuntimeEngine(BuiltEngine):
    """A network in ONNX Runtime's CPU provider; see `vgg.engines.Engine`."""

    name = "onnxruntime"

    def __init__(self, network: Network, threads: int | None = None) -> None:
        self._threads = threads
        super().__init__(network)

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        self._guard.check(batch, outputs)
        if not outputs:
            return {}
        return dict(zip(outputs, self._model(outputs).run(list(outputs), {"data": batch}), strict=True))

    def _build(self, outputs: tuple[str, ...]) -> onnxruntime.InferenceSession:
        # Expanded here, since ONNX Runtime would otherwise turn quantized weights into floats in every run.
        graph, initializers = onnx_builder.build(self._network.expanded(), OnnxOptions(outputs=outputs))
        options = _options(self._threads)
        # Prepacking copies the weights into another order at every load: it costs 0.5 s for VGG-19 and gains 1% at batch 8.
        options.add_session_config_entry("session.disable_prepacking", "1")
        lent = [external_tensor(one.name, one.data_type, one.dims, "memory") for one in initializers]
        arrays = [contiguous(one.value, one.dtype).reshape(one.dims) for one in initializers]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        options.add_external_initializers([one.name for one in initializers], values)
        return onnxruntime.InferenceSession(graph.model(lent), options, providers=["CPUExecutionProvider"])


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors only
    return options
