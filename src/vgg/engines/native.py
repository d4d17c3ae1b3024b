"""The native engine: native/ in C++, called through its C interface."""

import ctypes
import math
import os
import warnings
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np

from ..architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Layer, Shape
from ..arrays import Array
from ..errors import Notice
from ..network import Network
from ..parameters import LowRank, Parameter, Part, as_bytes, contiguous
from .comparison import Area, Kind, checked_areas, checked_pairs, checked_weights
from .guard import Guard
from .native_interface import ComparisonStruct, LayerStruct, OutputStruct, check, chosen_instructions, library

# The numbers of native/vgg.h.
OPERATIONS = {
    "convolution": 0, "lrn": 1, "max_pool": 2, "mean_pool": 3, "l2_pool": 4, "average_pool": 5, "adaptive_pool": 5,
    "global_max_pool": 6, "linear": 7,
}  # fmt: skip
FUNCTIONS = ("none", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
KINDS = {np.dtype(dtype): kind for kind, dtype in enumerate((np.float32, np.float16, ml_dtypes.bfloat16, np.int8))}
FLOAT32, BFLOAT16, INT4 = 0, 2, 4
COMPARISONS = ("cosine", "l1", "l2", "moments")


class NativeEngine:
    """A network on vgg's own kernels; see `vgg.engines.Engine`.

    Convolutions are transformed once, when the engine is created. Linear layers are read in place, from the mapped file.
    With the precision `bf16`, transformed inputs and weights of 3x3 convolutions are rounded to bfloat16, and their products
    added in float32. Linear weights in float32 or float16 are copied as bfloat16, which takes less time to read.

    Raises:
        Error: the library is of another version, or VGG_INSTRUCTIONS is unknown or not supported.
        MemoryError: there is not enough memory.
    """

    name = "native"

    def __init__(self, network: Network, threads: int | None = None, precision: str = "auto") -> None:
        self._library, self._handle = library(), ctypes.c_void_p()
        self.precision = "bf16" if precision == "bf16" else "float32"
        # The kernels of linear layers give NaN for weights that are not finite numbers, so these need not be read before.
        linear = (f"{layer.name}.weight" for layer in network.architecture.layers if layer.operation == "linear")
        in_place = [name for name in linear if isinstance(network.parameters[name], np.ndarray)]
        self._guard = Guard(network, dense=True, passed=in_place)
        network = network.fold_batch_norm()
        self._architecture = network.architecture
        self._threads = threads or os.cpu_count() or 1
        self._kept: list[Array] = []  # arrays that the engine reads in place
        self._steps: dict[str, int] = {}  # of each layer output
        self._count = 0  # of steps
        instructions = chosen_instructions()
        if self.precision == "bf16" and instructions != "avx512bf16":
            slow = f"no instructions for bfloat16 in {instructions}; bf16 can take longer than float32"
            warnings.warn(Notice(slow), stacklevel=3)
        size = self._architecture.input_size
        check(self._library.vgg_open(instructions.encode(), self._threads, size, ctypes.byref(self._handle)), "the network")
        layers = [one for one in self._architecture.layers if one.operation not in ("flatten", "dropout")]
        for layer, following in zip(layers, (*layers[1:], None), strict=True):
            if layer.operation in OPERATIONS:
                activation = following if following and following.operation in FUNCTIONS else None
                self._add(network.parameters, layer, activation)
                self._steps[activation.value if activation else layer.value] = self._count - 1

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
            check(code, f"{count} images of {width}x{height}")
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
        check(code, f"{count} images of {width}x{height}")

    def _add(self, parameters: Mapping[str, Parameter], layer: Layer, activation: Layer | None) -> None:
        """Add a layer as one step, or as two if its weight is of low rank."""
        if layer.operation == "lrn":
            self._step(layer, LayerStruct(kernel=1, group=1, numbers=(LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K)))
            return
        if "weight" not in layer.parameters:
            self._step(layer, LayerStruct(kernel=int(layer.number or 1), group=1))
            return
        weight, bias = parameters[f"{layer.name}.weight"], contiguous(parameters[f"{layer.name}.bias"], np.float32)
        if isinstance(weight, LowRank):
            self._weighted(layer, weight.right, np.zeros(weight.right.shape[0], np.float32), None)
            weight = weight.left
        self._weighted(layer, weight, bias, activation)

    def _weighted(self, layer: Layer, weight: Part, bias: Array, activation: Layer | None) -> None:
        shape = weight.shape
        entry = LayerStruct(outputs=shape[0], inputs=shape[1], kernel=shape[-1] if len(shape) == 4 else 1, group=1)
        if activation:
            entry.activation, entry.numbers[0] = FUNCTIONS.index(activation.operation), activation.number or 0.0
        values, kind, scale, entry.group = _in_place(weight)
        rounds = self.precision == "bf16"
        if layer.operation == "linear":
            if rounds and values.dtype in (np.float32, np.float16):
                values, kind = values.astype(ml_dtypes.bfloat16), BFLOAT16
            self._kept.append(values)
            entry.kind = kind
        else:
            if values.dtype != np.int8 or entry.group < math.prod(shape[1:]):
                values, scale = contiguous(weight, np.float32), None
            entry.kind = BFLOAT16 if rounds else FLOAT32
        entry.scale = None if scale is None else scale.ctypes.data
        entry.weight, entry.bias = values.ctypes.data, bias.ctypes.data
        self._step(layer, entry)

    def _step(self, layer: Layer, entry: LayerStruct) -> None:
        entry.operation = OPERATIONS[layer.operation]
        check(self._library.vgg_add(self._handle, ctypes.byref(entry)), layer.name)
        self._count += 1


def _in_place(weight: Part) -> tuple[Array, int, Array | None, int]:
    """A linear layer's weight as the engine reads it: values, kind, scales, and the number of inputs that share a scale."""
    inputs = int(np.prod(weight.shape[1:]))
    if isinstance(weight, np.ndarray):
        values = contiguous(weight, None if weight.dtype in KINDS else np.float32)
        return values, KINDS[values.dtype], None, inputs
    plain = weight.zero_point is None or not weight.zero_point.any()
    if plain and (weight.group or weight.axis == 0):
        group = weight.group or inputs
        scale = contiguous(weight.scale, np.float32)
        if weight.values.dtype == np.int8:
            return contiguous(weight.values), KINDS[np.dtype(np.int8)], scale, group
        if weight.values.dtype == ml_dtypes.int4 and inputs % 2 == 0 and (group % 2 == 0 or group >= inputs):
            return as_bytes(contiguous(weight.values)), INT4, scale, group
    return contiguous(weight, np.float32), KINDS[np.dtype(np.float32)], None, inputs
