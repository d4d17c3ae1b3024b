"""ONNX files that quantize activations, run as they are: what the engines that can do so have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..formats import onnx_reader
from ..network import Network
from . import check_batch


class GraphEngine(ABC):
    """An ONNX file as it is; see `vgg.engines.Engine`. It has no values but `logits`."""

    def __init__(self, network: Network) -> None:
        assert network.graph is not None
        self._path: Path = network.graph
        self._architecture, self._softmax = network.architecture, onnx_reader.ends_in_softmax(self._path)
        self._count: int | None = None  # images that the file wants at once, where it is not any number

    @abstractmethod
    def _infer(self, batch: Array) -> Array:
        """The file's output for as many images as it wants."""

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        self._architecture.check_values(outputs)
        if set(outputs) - {"logits"}:
            raise ModelError("a graph with quantized activations gives its logits only; the engine native gives every value")
        return {"logits": self.logits(batch)}

    def logits(self, batch: Array) -> Array:
        check_batch(self._architecture, batch)
        step = self._count or max(1, len(batch))
        rows = [np.empty((0, self._architecture.classes), np.float32)]
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            filled = np.concatenate([part, np.zeros((step - len(part), *part.shape[1:]), np.float32)])
            rows.append(self._infer(filled).reshape(step, -1)[: len(part)])
        found = np.concatenate(rows)
        # Of probabilities, logarithms are logits as good as any.
        return np.log(found.clip(np.finfo(np.float32).tiny)) if self._softmax else found
