"""The layers of a network as the native engine's C interface takes them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ..architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Layer
from ..arrays import Array
from ..formats.activations import Activations, Quantization
from ..network import Network
from ..parameters import LowRank, Part, Quantized, as_bytes, contiguous
from .native_interface import LayerStruct

# The numbers of native/vgg.h.
OPERATIONS = {
    "convolution": 0, "lrn": 1, "max_pool": 2, "mean_pool": 3, "l2_pool": 4, "average_pool": 5, "adaptive_pool": 5,
    "global_max_pool": 6, "linear": 7,
}  # fmt: skip
QUANTIZE, DEQUANTIZE = 8, 9
FUNCTIONS = ("none", "relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
KINDS = {np.dtype(dtype): kind for kind, dtype in enumerate((np.float32, np.float16, ml_dtypes.bfloat16, np.int8))}
FLOAT32, BFLOAT16, INT4 = 0, 2, 4

LARGEST_BIAS = 2**29  # of an integer bias; the engine clips sums of it and of zero points to 2**30
FLOATS = ("lrn", "mean_pool", "l2_pool")  # operations that compute in floats only
KEEPING = ("max_pool", "global_max_pool")  # operations whose outputs are among their inputs


@dataclass(frozen=True)
class Step:
    """A layer as the engine takes it. `arrays` is the memory that it points to."""

    name: str  # of the layer
    value: str  # the layer output that the step computes; "" if it is not complete yet
    entry: LayerStruct
    arrays: tuple[Array, ...] = ()
    in_place: bool = False  # whether the engine reads `arrays` while it exists; otherwise they are copied


@dataclass
class Steps:
    """The steps of a network, in order. Iterate once.

    With `activations`, layer outputs are rounded to 8 bits as they say. A layer that reads such integers is computed in
    integers if its weight has 8 bits and one scale per row, and else in floats, of the same rounded values.

    Args:
        network: without batch normalisation.
        activations: as in `formats.QuantizedGraph`; empty for floats.
        precision: of products of floats: `float32` or `bf16`.
    """

    network: Network
    activations: Activations
    precision: str = "float32"
    held: Quantization | None = None  # the form of the last step's output; None for floats

    def __iter__(self) -> Iterator[Step]:
        yield from self._rounded("data", "data")
        layers = [one for one in self.network.architecture.layers if one.operation not in ("flatten", "dropout")]
        for layer, following in zip(layers, (*layers[1:], None), strict=True):
            if layer.operation in OPERATIONS:
                activation = following if following and following.operation in FUNCTIONS else None
                value = activation.value if activation else layer.value
                yield from self._layer(layer, activation, value)
                yield from self._rounded(layer.name, value)

    def _rounded(self, name: str, value: str) -> Iterator[Step]:
        """Round a layer output to each of its quantizations."""
        for one in self.activations.get(value, ()):
            if one != self.held:
                self.held = one
                yield Step(name, value, self._struct(QUANTIZE))

    def _floats(self, layer: Layer) -> Iterator[Step]:
        """Turn integers into floats."""
        if self.held:
            self.held = None
            yield Step(layer.name, "", LayerStruct(operation=DEQUANTIZE))

    def _struct(self, operation: int, **fields: int) -> LayerStruct:
        """A struct with the form of its output, `held`."""
        entry = LayerStruct(operation=operation, **fields)
        if self.held:
            entry.output_scale, entry.output_zero = self.held.scale, self.held.unsigned_zero
        return entry

    def _layer(self, layer: Layer, activation: Layer | None, value: str) -> Iterator[Step]:
        """A layer as one step, or as two if its weight is of low rank."""
        if layer.operation in FLOATS:
            yield from self._floats(layer)
        if "weight" not in layer.parameters:
            if layer.operation not in KEEPING and self.held:
                self.held = next(iter(self.activations.get(value, ())), None)
            entry = self._struct(OPERATIONS[layer.operation], kernel=int(layer.number or 1), group=1)
            if layer.operation == "lrn":
                entry.numbers = (LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K)
            yield Step(layer.name, value, entry)
            return
        parameters = self.network.parameters
        weight, bias = parameters[f"{layer.name}.weight"], contiguous(parameters[f"{layer.name}.bias"], np.float32)
        if isinstance(weight, LowRank):
            yield from self._weighted(layer, weight.right, np.zeros(weight.right.shape[0], np.float32), None, "")
            weight = weight.left
        yield from self._weighted(layer, weight, bias, activation, value)

    def _weighted(self, layer: Layer, weight: Part, bias: Array, activation: Layer | None, value: str) -> Iterator[Step]:
        shape = weight.shape
        stored = _integers(weight, bias, self.held) if self.held else None
        zero: Array | None = None
        scale: Array | None
        if stored:
            values, zero, scale, kind, group = *stored, KINDS[np.dtype(np.int8)], math.prod(shape[1:])
            self.held = next(iter(self.activations.get(value, ())), None)
        else:
            yield from self._floats(layer)
            values, kind, scale, group = _in_place(weight)
            rounds = self.precision == "bf16"
            if layer.operation == "convolution":  # its kind says how it is computed
                kind = BFLOAT16 if rounds else FLOAT32
                if values.dtype != np.int8 or group < math.prod(shape[1:]):
                    values, scale = contiguous(weight, np.float32), None
            elif rounds and values.dtype in (np.float32, np.float16):
                values, kind = values.astype(ml_dtypes.bfloat16), BFLOAT16
        entry = self._struct(
            OPERATIONS[layer.operation], outputs=shape[0], inputs=shape[1], kernel=shape[-1] if len(shape) == 4 else 1,
            kind=kind, group=group,
        )  # fmt: skip
        if activation:
            entry.activation, entry.numbers[0] = FUNCTIONS.index(activation.operation), activation.number or 0.0
        for field, array in (("weight", values), ("bias", bias), ("scale", scale), ("zero", zero)):
            setattr(entry, field, None if array is None else array.ctypes.data)
        arrays = tuple(array for array in (values, bias, scale, zero) if array is not None)
        yield Step(layer.name, value, entry, arrays, layer.operation == "linear")


def _integers(weight: Part, bias: Array, inputs: Quantization) -> tuple[Array, Array | None, Array] | None:
    """A weight that integers are multiplied with: int8 values, int32 zero points or None, and scales, one for each row.

    None if the weight has another form, or so many inputs that sums can exceed 32 bits.

    The engine adds the bias as an integer, in steps of both scales. In a row of weights that are almost 0, such as that of a
    unit that training has switched off, these steps can be too small for that; the row then gets a larger scale.
    """
    if not isinstance(weight, Quantized) or weight.values.dtype.name not in ("int8", "uint8"):
        return None
    if weight.axis or (weight.group and weight.scale.shape[1] > 1):
        return None
    values, scale = contiguous(weight.values), weight.scale.reshape(-1)
    zero = None if weight.zero_point is None else weight.zero_point.reshape(-1).astype(np.int32)
    if values.dtype == np.uint8:
        values, zero = (
            (values ^ np.uint8(128)).view(np.int8),
            (0 if zero is None else zero) - np.full(len(scale), 128, np.int32),
        )
    if (scale < 0).any():  # the kernels take positive scales; ~value - ~zero is zero - value, and never overflows
        flip = -(scale < 0).astype(np.int8)
        values = values ^ flip.reshape(-1, *[1] * (values.ndim - 1))
        zero = (np.zeros(len(scale), np.int32) if zero is None else zero) ^ flip
        scale = np.abs(scale)
    if 255 * (128 if zero is None else 255) * math.prod(weight.shape[1:]) >= 2**31:
        return None
    step = scale.astype(np.float64) * inputs.scale
    least = np.abs(bias.astype(np.float64)) / LARGEST_BIAS
    small = (step < least) | (step == 0)
    if small.any():
        values, zero, scale = values.copy(), np.zeros(len(scale), np.int32) if zero is None else zero, scale.copy()
        larger = np.maximum(3 * step, least)[small]  # with a third of the steps, differences to zero points fit in 8 bits
        larger[larger == 0] = 1
        rows = values[small].reshape(len(larger), -1) - zero[small, None].astype(np.float64)
        values[small] = np.rint(rows * (step[small] / larger)[:, None]).reshape(-1, *values.shape[1:])
        zero[small], scale[small] = 0, larger / inputs.scale
    return values, zero, contiguous(scale, np.float32)


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
