"""The native engine: native/ in C++, called through its C interface."""

import ctypes
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ..architectures import Shape
from ..arrays import Array
from ..errors import Notice, counted
from ..formats import QuantizedGraph
from ..formats.activations import Activations
from ..network import Network
from ..parallel import cores
from .comparison import Area, Comparing, Kind, checked_areas, checked_pairs, checked_weights
from .engine import GraphEngine
from .guard import Guard
from .native_interface import WITH_BFLOAT16, ComparisonStruct, OutputStruct, check, chosen_instructions, library
from .native_layers import Steps

COMPARISONS = ("cosine", "l1", "l2", "moments")


class NativeEngine:
    """A network on vgg's own kernels; see `vgg.engines.Engine`.

    Args:
        network: the network.
        threads: the largest number of threads; the number of cores by default.
        precision: `bf16`, or another one for float32.
        activations: quantizations of layer outputs, as in `formats.QuantizedGraph`.

    Convolutions are transformed once, when the engine is created. Linear layers are read in place, from the mapped file.
    With the precision `bf16`, transformed inputs and weights of 3x3 convolutions are rounded to bfloat16, and their products
    added in float32. Linear weights in float32 or float16 are copied as bfloat16, which takes less time to read.

    Raises:
        Error: the library is of another version, or VGG_INSTRUCTIONS is unknown or not supported.
        MemoryError: there is not enough memory.
    """

    name = "native"

    def __init__(
        self,
        network: Network,
        threads: int | None = None,
        precision: str = "auto",
        activations: Activations = MappingProxyType({}),
    ) -> None:
        self._library, self._handle = library(), ctypes.c_void_p()
        self.precision = "bf16" if precision == "bf16" else "float32"
        # The kernels of linear layers give NaN for weights that are not finite numbers, so these need not be read before.
        linear = (f"{layer.name}.weight" for layer in network.architecture.layers if layer.operation == "linear")
        in_place = [name for name in linear if isinstance(network.parameters[name], np.ndarray)]
        self._guard = Guard(network, dense=True, skipped=in_place)
        network = network.fold_batch_norm()
        self._architecture = network.architecture
        self._threads = threads or cores()
        self._kept: list[Array] = []  # arrays that the engine reads in place
        self._steps: dict[str, int] = {}  # of each layer output
        self._count = 0  # of steps
        instructions = chosen_instructions()
        if self.precision == "bf16" and instructions not in WITH_BFLOAT16:
            slow = f"no instructions for bfloat16 in {instructions}; bf16 can take longer than float32"
            warnings.warn(Notice(slow), stacklevel=3)
        size = self._architecture.input_size
        check(self._library.vgg_open(instructions.encode(), self._threads, size, ctypes.byref(self._handle)), "the network")
        for step in Steps(network, activations, self.precision):
            check(self._library.vgg_add(self._handle, ctypes.byref(step.entry)), step.name)
            if step.in_place:
                self._kept.extend(step.arrays)
            if step.value in self._architecture.values:
                self._steps[step.value] = self._count
            self._count += 1

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.vgg_close(self._handle)

    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> dict[str, Array]:
        self._guard.check(batch, outputs)
        batch = np.ascontiguousarray(batch)
        count, _, height, width = batch.shape
        found = {name: np.empty(self._shape(name, batch), np.float32) for name in outputs}
        wanted = (OutputStruct * len(found))(
            *[OutputStruct(self._steps[name], array.ctypes.data) for name, array in found.items()]
        )
        if count:
            code = self._library.vgg_run(self._handle, batch.ctypes.data, count, height, width, wanted, len(found))
            check(code, f"{counted(count, 'image')} of {width}x{height}")
        if not all(np.isfinite(array).all() for array in found.values()):
            self._guard.network.check_finite(self._guard.needed(outputs))
        return found

    def differences(self, batch: Array, pairs: Array, layers: Mapping[str, Array], kind: Kind = "cosine") -> dict[str, Array]:
        self._guard.check(batch, [*layers])
        pairs = checked_pairs(batch, pairs)
        weights = checked_weights(self._architecture, layers, kind)
        found, wanted = {}, []
        for name, weight in weights.items():
            found[name] = np.empty((len(pairs), *self._shape(name, batch)[2:]), np.float32)
            entry = ComparisonStruct(self._steps[name], weight=weight.ctypes.data, differences=found[name].ctypes.data)
            wanted.append(entry)
        self._compare(batch, pairs, COMPARISONS.index(kind), wanted)
        return found

    def moments(
        self, batch: Array, pairs: Array, layers: Sequence[str], area: Mapping[str, Area] | None = None
    ) -> dict[str, Array]:
        self._guard.check(batch, layers)
        pairs = checked_pairs(batch, pairs)
        found, wanted = {}, []
        for name, positions in checked_areas(self._architecture, batch, layers, area or {}).items():
            found[name] = np.empty((len(pairs), 5, self._shape(name, batch)[1]))
            wanted.append(ComparisonStruct(self._steps[name], positions, moments=found[name].ctypes.data))
        self._compare(batch, pairs, COMPARISONS.index("moments"), wanted)
        return found

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]

    def times(self) -> dict[str, float]:
        """Seconds of each layer in the last run; a convolution's include the pooling that is fused with it."""
        seconds = (ctypes.c_double * self._count)()
        check(self._library.vgg_times(self._handle, seconds), "the times")
        steps = [-1, *self._steps.values()]
        return {name: sum(seconds[a + 1 : b + 1]) for name, a, b in zip(self._steps, steps, steps[1:], strict=False)}

    def _shape(self, name: str, batch: Array) -> Shape:
        count, _, height, width = batch.shape
        return self._architecture.shape(name, count, height, width)

    def _compare(self, batch: Array, pairs: Array, kind: int, wanted: list[ComparisonStruct]) -> None:
        batch = np.ascontiguousarray(batch)
        count, _, height, width = batch.shape
        entries = (ComparisonStruct * len(wanted))(*wanted)
        data, indices = batch.ctypes.data, pairs.ctypes.data
        code = self._library.vgg_compare(self._handle, data, height, width, kind, indices, len(pairs), entries, len(wanted))
        check(code, f"{counted(count, 'image')} of {width}x{height}")


class NativeGraphEngine(NativeEngine, GraphEngine):
    """A graph with quantized activations on vgg's own kernels for integers."""

    differences = Comparing.differences  # the engine compares layer outputs of floats only
    moments = Comparing.moments

    def __init__(self, graph: QuantizedGraph, threads: int | None = None) -> None:
        GraphEngine.__init__(self, graph)
        NativeEngine.__init__(self, graph.network, threads, activations=graph.activations)
