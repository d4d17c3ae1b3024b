"""ONNX Runtime: the graph is built here, the parameters are lent to the session as they lie in memory or in the file."""

import threading
from collections.abc import Sequence

import onnx
import onnxruntime
from onnx import helper

from ..arrays import Array
from ..errors import ModelError, one_line
from ..formats import onnx_graph
from ..formats.onnx_options import OnnxOptions
from ..network import Network
from ..parameters import contiguous
from . import check_batch
from .graph import GraphEngine

OPSET = 17


class OnnxGraphEngine(GraphEngine):
    """An ONNX file that quantizes activations, in ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def __init__(self, network: Network, threads: int | None = None) -> None:
        super().__init__(network)
        try:
            self._session = onnxruntime.InferenceSession(self._path, _options(threads), providers=["CPUExecutionProvider"])
        except Exception as error:  # whatever ONNX Runtime's bindings raise
            why = one_line(error)
            raise ModelError(
                f"{self._path}: ONNX Runtime can't run it ({why}); the engine native takes its weights alone"
            ) from None
        count = self._session.get_inputs()[0].shape[0]
        self._count = count if isinstance(count, int) else None

    def _infer(self, batch: Array) -> Array:
        found: Array = self._session.run(None, {self._session.get_inputs()[0].name: batch})[0]
        return found


class OnnxRuntimeEngine:
    """A network in ONNX Runtime's CPU provider; see `vgg.engines.Engine`."""

    name = "onnxruntime"

    def __init__(self, network: Network, threads: int | None = None) -> None:
        self._network, self._threads = network, threads
        self._sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}
        self._lock = threading.Lock()
        self._session(("logits",))

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        check_batch(self._network.architecture, batch)
        session = self._session(tuple(sorted(set(outputs))))
        return dict(zip(outputs, session.run(list(outputs), {"data": batch}), strict=True))

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]

    def _session(self, outputs: tuple[str, ...]) -> onnxruntime.InferenceSession:
        """The session for these outputs; it computes no more than they need."""
        with self._lock:
            if outputs not in self._sessions:
                self._sessions[outputs] = _session(self._network, outputs, self._threads)
            return self._sessions[outputs]


def _session(network: Network, outputs: Sequence[str], threads: int | None) -> onnxruntime.InferenceSession:
    # Left to itself, ONNX Runtime would turn quantized weights into floats anew in every run.
    graph, initializers = onnx_graph.build(network.expanded(), OPSET, outputs, OnnxOptions())
    options = _options(threads)
    # Copies the weights into another order at every load; measured on VGG-19, it costs 0.5 s and gains 1% at batch 8.
    options.add_session_config_entry("session.disable_prepacking", "1")
    for one in initializers:
        lent = graph.initializer.add(name=one.name, data_type=one.data_type, dims=one.dims)
        lent.data_location = onnx.TensorProto.EXTERNAL
        lent.external_data.add(key="location", value="memory")
    arrays = [contiguous(one.value, one.dtype).reshape(one.dims) for one in initializers]
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays]
    options.add_external_initializers([one.name for one in initializers], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _options(threads: int | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors only
    return options
