"""What engines share: their protocol, the checks of their input, and the bases of those that run ONNX models."""

import platform
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..architectures import STRIDE, Architecture
from ..arrays import Array
from ..errors import Error, ModelError
from ..formats import QuantizedGraph
from ..network import Network

LEAST = 2.0**-24  # distance of a float32 score from 0 and 1 whose logit is finite
DENSE = ("native", "torch")  # engines that take images larger than a network's crop


class Engine(Protocol):
    """A network ready to run. Safe to use from several threads at once."""

    name: str

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> Mapping[str, Array]:
        """Compute named values for a batch.

        Args:
            batch: float32 [batch, 3, height, width], preprocessed.
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


class Model(Protocol):
    """A network on an engine, such as a `vgg.Classifier`."""

    network: Network
    engine: Engine
    name: str


class Guard:
    """The checks before a run: of the outputs' names and the batch, and of the parameters of each layer before its first use.

    Args:
        network: that the engine computes.
        dense: see `check_batch`.
        passed: names of parameters that aren't checked here, since the engine's outputs show whether they are finite.
    """

    def __init__(self, network: Network, *, dense: bool = False, passed: Collection[str] = ()) -> None:
        self.network, self._dense = network, dense
        self._unchecked = [name for name in network.parameters if name not in passed]

    def check(self, batch: Array, outputs: Sequence[str]) -> None:
        """Raise ModelError for unknown outputs, a batch of another shape, or parameters that are not finite numbers."""
        self.network.check_values(outputs)
        check_batch(self.network.architecture, batch, dense=self._dense)
        if self._unchecked and outputs:
            needed = {*self.needed(outputs)}
            self.network.check_finite([name for name in self._unchecked if name in needed])
            self._unchecked = [name for name in self._unchecked if name not in needed]

    def needed(self, outputs: Sequence[str]) -> list[str]:
        """The names of the parameters of the layers up to the last of these outputs."""
        layers = self.network.architecture.layers
        last = max((place for place, layer in enumerate(layers) if layer.value in outputs), default=-1)
        return [f"{layer.name}.{role}" for layer in layers[: last + 1] for role in layer.parameters]


class BuiltEngine(ABC):
    """A network as ONNX models, one for each set of outputs, so that nothing else is computed; see `Engine`."""

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
            if key not in self._models:
                self._models[key] = self._build(key)
            return self._models[key]

    @abstractmethod
    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]: ...

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]


class GraphEngine(ABC):
    """A graph with quantized activations, run as it is; see `Engine`. Its only value is its last one, such as `logits`."""

    name: str

    def __init__(self, graph: QuantizedGraph) -> None:
        self.graph, self._architecture = graph, graph.network.architecture
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

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]


def check_dense(engine: Engine, architecture: Architecture) -> None:
    """Raises Error unless an engine takes images larger than a network's crop."""
    if architecture.fixed_size and engine.name not in DENSE:
        raise Error(f"{engine.name} takes only crops of the network's input size; for whole images use {' or '.join(DENSE)}")


def check_batch(architecture: Architecture, batch: Array, *, dense: bool = False) -> None:
    """Check the shape and dtype of a batch.

    Args:
        architecture: of the network that gets the batch.
        batch: the input.
        dense: whether the engine takes images larger than `Architecture.input_size` if the head reads a map.

    Raises:
        ModelError: the network doesn't take it.
    """
    side = architecture.input_size if architecture.fixed_size else STRIDE
    fits = batch.ndim == 4 and batch.shape[1] == 3 and batch.dtype == np.float32 and min(batch.shape[2:]) >= side
    fixed = architecture.fixed_map and not dense
    side = architecture.input_size if fixed else side
    if not fits or (fixed and batch.shape[2:] != (side, side)):
        size = f"{side}, {side}]" if fixed else f"height, width] of {side} pixels or more"
        raise ModelError(f"{architecture.name} takes float32 [batch, 3, {size}, not {batch.dtype} {list(batch.shape)}")


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
