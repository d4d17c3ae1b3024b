"""What engines share: their protocol, and the bases of those that run ONNX models."""

import platform
import sys
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import Error, ModelError
from ..formats import QuantizedGraph
from ..network import Network
from .comparison import Area, Comparing, Kind
from .guard import Guard

LEAST = 2.0**-24  # distance of a float32 score from 0 and 1 whose logit is finite
DENSE = ("native", "torch")  # engines that take images larger than a network's crop
MODELS = 8  # that an engine keeps, of the last sets of outputs; each has a copy of the weights
PIXELS = ("torch",)  # engines that take uint8 pixels and normalise them


class Engine(Protocol):
    """A network ready to run. Safe to use from several threads at once."""

    name: str

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> Mapping[str, Array]:
        """Compute named values for a batch.

        Args:
            batch: float32 [batch, 3, height, width], preprocessed; or, for an engine of `takes_pixels`, uint8: RGB pixels of
                0..255, resized and cropped.
            outputs: names as in `Architecture.values`: `conv1_1` … `pool5`, `fc6`, `fc7` (after the ReLU), `logits`.

        Returns:
            float32 arrays by name; `logits` is [batch, classes].

        Raises:
            ModelError: an output is unknown, or the network doesn't take a batch of this shape.
        """
        ...

    def logits(self, batch: Array) -> Array:
        """float32 [batch, classes] for float32 [batch, 3, height, width]."""
        ...

    def differences(
        self, batch: Array, pairs: Array, layers: Mapping[str, Array], kind: Kind = "cosine"
    ) -> Mapping[str, Array]:
        """How much the layer outputs of pairs of images differ, at each position.

        Args:
            batch: float32 [batch, 3, height, width], preprocessed.
            pairs: int [pairs, 2], indices of images in the batch. The layer outputs of an image that is in many pairs are
                computed once.
            layers: names of layer outputs before the head, each with the weights of its channels, float32 [channels], 0 or
                more.
            kind: `cosine`: the sum over channels of weight * (a / |a| - b / |b|)^2, where |a| is the length over the channels
                of a position plus 1e-10, as in LPIPS (arXiv 1801.03924); `l1`: of weight * |a - b|; `l2`: of
                weight * (a - b)^2.

        Returns:
            float32 [pairs, rows, columns] by layer, 0 or more; 0 for an image and itself. NaN and infinity stay visible.

        Raises:
            ModelError: as `run`, or a layer output is in the head.
            Error: pairs, weights or kind are invalid.
        """
        ...

    def moments(
        self, batch: Array, pairs: Array, layers: Sequence[str], area: Mapping[str, Area] | None = None
    ) -> Mapping[str, Array]:
        """Sums over the positions of pairs of layer outputs, for means, variances and covariances of channels.

        Args:
            batch: as in `differences`.
            pairs: as in `differences`.
            layers: names of layer outputs before the head.
            area: by layer, the positions that count: top, left, bottom, right; by default all.

        Returns:
            float64 [pairs, 5, channels] by layer: the sums of a, b, a * a, b * b and a * b, added up in float64.

        Raises:
            ModelError: as in `differences`.
            Error: pairs or areas are invalid.
        """
        ...


class Model(Protocol):
    """A network on an engine, such as a `vgg.Classifier`."""

    network: Network
    engine: Engine
    name: str


class BuiltEngine(Comparing):
    """A network as ONNX models, one for each of the last sets of outputs, so that nothing else is computed; see `Engine`."""

    def __init__(self, network: Network) -> None:
        self._network, self._guard = network, Guard(network)
        self._models: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()
        self._model(network.architecture.values[-1:])

    @abstractmethod
    def _build(self, outputs: tuple[str, ...]) -> Any:
        """The runtime's model for these outputs."""

    def _model(self, outputs: Sequence[str]) -> Any:
        key = tuple(sorted(set(outputs)))
        with self._lock:
            found = self._models.pop(key, None) or self._build(key)
            self._models[key] = found  # the last one
            if len(self._models) > MODELS:
                del self._models[next(iter(self._models))]  # the one that was used longest ago
            return found


class GraphEngine(Comparing):
    """A graph with quantized activations, computed with integers; see `Engine`."""

    name: str

    def __init__(self, graph: QuantizedGraph) -> None:
        self.graph = graph


class WholeGraphEngine(GraphEngine):
    """A graph with quantized activations, run as it is. Its only value is its last one, such as `logits`."""

    def __init__(self, graph: QuantizedGraph) -> None:
        super().__init__(graph)
        self._architecture = graph.network.architecture
        self._guard = Guard(graph.network)
        self._count: int | None = None  # images in a batch, if the file fixes it

    @abstractmethod
    def _infer(self, batch: Array) -> Array:
        """The file's output for a batch of the size that it takes."""

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        last = self._architecture.values[-1]
        if {*outputs}.intersection(self._architecture.values) - {last}:
            raise ModelError(
                f"a graph with quantized activations gives only its {last}; use the engine native for other values"
            )
        self._guard.check(batch, outputs)
        if not outputs:
            return {}
        step = self._count or max(1, len(batch))
        shape = self._architecture.shape(last, step, *batch.shape[2:])
        rows = [np.empty((0, *shape[1:]), np.float32)]
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            filled = np.concatenate([part, np.zeros((step - len(part), *part.shape[1:]), np.float32)])
            rows.append(self._logits(self._infer(filled)).reshape(shape)[: len(part)])
        return {last: np.concatenate(rows)}

    def _logits(self, output: Array) -> Array:
        """The logits that the file's output shows, of softmax up to a constant, which softmax ignores."""
        if self.graph.ending == "sigmoid":
            scores = output.astype(np.float64).clip(LEAST, 1 - LEAST)
            if self._architecture.output == "binary":  # the second of two classes, if the file has both
                scores = scores.reshape(len(scores), -1)[:, -1]
            return np.asarray(np.log(scores / (1 - scores)), np.float32)
        return np.log(output.clip(np.finfo(np.float32).tiny)) if self.graph.ending == "softmax" else output


def check_dense(engine: Engine, architecture: Architecture) -> None:
    """Raises Error unless an engine takes images larger than a network's crop."""
    if architecture.fixed_size and engine.name not in DENSE:
        raise Error(f"{engine.name} takes only crops of the network's input size; for whole images use {' or '.join(DENSE)}")


def takes_pixels(engine: Engine) -> bool:
    """Whether an engine takes uint8 [batch, 3, height, width] and normalises as the network's preprocessing says."""
    return engine.name in PIXELS


def native_library() -> Path | None:
    """The file of the compiled native engine; None if this installation has none."""
    folders = sys.modules[__package__].__path__  # two of them in an editable installation
    return next((path for folder in folders if (path := Path(folder, "libvgg.so")).exists()), None)


def instruction_set() -> str:
    """The newest of this processor's instruction sets that matter to engines; elsewhere than on Linux its architecture."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    known = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "asimddp", "asimd")
    return next((name for name in known if name in flags), platform.machine())


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
