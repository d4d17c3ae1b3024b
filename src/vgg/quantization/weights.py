"""Integer weights, computed from the weights alone, with a scale per row, or per group of values in a row."""

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import ModelError
from ..network import Network
from ..parallel import cores
from ..parameters import LowRank, Parameter, Part, Quantized, blocks

INT8, INT4 = 127, 7  # the largest integers
ENOUGH = 35.0  # decibels of signal to noise; a convolution with fewer gets zero points
GROUP = 128  # values of a row that share a scale, for 4 bits
# Candidates for the largest representable value, in shares of a row's maximum: a finer scale for all values can outweigh the
# error of clipping a few.
SHARES = np.linspace(0.4, 1, 31)
CACHED = 2**15  # values processed at once, which fit into a core's cache


def integers(value: Part, limit: int = INT8, group: int = 0, *, zero_points: bool = False) -> Quantized:
    """A parameter as integers. Each row or group has the scale, of 31 candidates, with the smallest squared error.

    Rounding errors are then balanced as in SQuant (Guo et al., arXiv 2202.07471): a layer's inputs, outputs of a ReLU, have a
    positive mean and vary little between neighbouring pixels, so the sum of a filter's errors matters more than their squares.
    The values closest to a rounding boundary are rounded the other way until the errors of each filter's channel, and of each
    row or group, sum to at most half a step.

    Args:
        value: floats, [rows, ...]; a mapped file is read a few MiB at a time.
        limit: the largest integer; up to 7 the integers have 4 bits, and 7 is paired with -8.
        group: number of values in a row that share a scale; 0 for the whole row.
        zero_points: give each row or group a zero point, so that the integers cover the range from its minimum to its maximum;
            otherwise the range is symmetric.
    """
    rows, inputs = value.shape[0], math.prod(value.shape[1:])
    size, kernel = group or inputs, 0 if group else math.prod(value.shape[2:])
    values = np.empty((rows, inputs), np.int8)
    scale = np.empty((rows, -(-inputs // size)), np.float32)
    zero = np.zeros(scale.shape, np.int8)

    def work(start: int, block: Array) -> None:
        whole = inputs // size * size
        stop = start + len(block)
        for begin, end in ((0, whole), (whole, inputs)):  # whole groups, and the rest of the row
            if begin < end:
                parts = block[:, begin:end].reshape(-1, min(size, end - begin))
                groups = np.s_[start:stop, begin // size : -(-end // size)]
                found, scales, zeros = _rounded(parts, limit, kernel, zero_points)
                values[start:stop, begin:end] = found.reshape(len(block), -1)
                scale[groups], zero[groups] = scales.reshape(len(block), -1), zeros.reshape(len(block), -1)

    with ThreadPoolExecutor(cores()) as pool:
        start, waiting = 0, []
        for block in blocks(value, np.float32):
            waiting.append(pool.submit(work, start, block.reshape(len(block), -1)))
            start += len(block)
            if len(waiting) > 2 * cores():
                waiting.pop(0).result()
        for one in waiting:
            one.result()
    stored, zero = (one if limit > INT4 else (one.view(np.uint8) & 15).view(ml_dtypes.int4) for one in (values, zero))
    scale, zero = (one if group else one[:, 0] for one in (scale, zero))
    return Quantized(stored.reshape(value.shape), scale, zero if zero_points else None, group=group)


def _rounded(rows: Array, limit: int, kernel: int, zero_points: bool) -> tuple[Array, Array, Array]:
    """Integers [rows, values] up to a limit, each row's scale and zero point; `kernel`: values per channel of a filter."""
    lowest = -limit - (limit == INT4)  # uses all 16 integers; of 256, leaving out one makes no difference
    found, scales, zeros = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32), np.empty(len(rows), np.int8)
    height = max(1, CACHED // rows.shape[1])
    for start in range(0, len(rows), height):
        part = rows[start : start + height]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        step = (high - low) / (limit - lowest) if zero_points else np.maximum(-low, high) / limit
        step[step == 0] = 1
        zero = np.rint(lowest - low / step) if zero_points else np.zeros_like(step)
        best, least = step, np.full(len(part), np.inf, np.float32)
        scaled, nearest = np.empty_like(part), np.empty_like(part)
        for share in SHARES:
            scale = step * np.float32(share)
            np.multiply(part, (1 / scale)[:, None], out=scaled)
            if zero_points:
                scaled += zero[:, None]
            np.rint(scaled, out=nearest)
            np.clip(nearest, lowest, limit, out=nearest)
            nearest -= scaled
            error = np.einsum("ij,ij->i", nearest, nearest) * scale**2
            best, least = np.where(error < least, scale, best), np.minimum(error, least)
        np.divide(part, best[:, None], out=scaled)
        scaled += zero[:, None]
        scaled.clip(lowest, limit, out=scaled)  # clipping errors are not balanced
        np.rint(scaled, out=nearest)
        if kernel > 1:
            _balance(nearest.reshape(-1, kernel), scaled.reshape(-1, kernel), lowest, limit)
        _balance(nearest, scaled, lowest, limit)
        end = start + len(part)
        found[start:end], scales[start:end], zeros[start:end] = nearest, best, zero
    return found, scales, zeros


def _balance(rounded: Array, scaled: Array, lowest: int, limit: int) -> None:
    """Round some values [rows, values] the other way, in place, so that each row's errors sum to at most half a step."""
    error = rounded - scaled
    total = error.sum(1, keepdims=True)
    count = np.rint(np.abs(total))
    most = min(int(count.max()), rounded.shape[1])
    if not most:
        return
    back = -np.sign(total)
    error *= -back  # larger: closer to the rounding boundary
    error[(rounded + back < lowest) | (rounded + back > limit)] = -1
    chosen = np.argpartition(error, -most, 1)[:, -most:]
    near = np.take_along_axis(error, chosen, 1)
    order = np.argsort(-near, 1)
    chosen, near = np.take_along_axis(chosen, order, 1), np.take_along_axis(near, order, 1)
    turned = np.where((np.arange(most) < count) & (near > 0), back, 0)
    np.put_along_axis(rounded, chosen, np.take_along_axis(rounded, chosen, 1) + turned, 1)


def quantize_weights(
    network: Network, bits: int = 8, *, int8_layers: Collection[str] = (), group: int = 0, layers: Collection[str] | None = None
) -> Network:
    """A network with integer weights: symmetric, 8 bits, with a scale per output channel.

    A convolution with a signal-to-noise ratio below 35 dB, caused by a few large weights of one sign, also gets zero points.
    Linear layers don't: the native engine reads theirs in place.

    Args:
        network: with float parameters; weights may be of low rank.
        bits: of the linear layers; 4 has a scale for every 128 values of a row.
        int8_layers: linear layers with 8 bits although `bits` is 4, such as fc8.
        group: number of values in a row that share a scale, for 8 bits; 0 for the whole row.
        layers: the layers to quantize; all by default.

    Raises:
        ModelError: a weight is already quantized.
    """
    check_floats(network)
    parameters = dict(network.parameters)
    for layer in network.architecture.layers:
        value = parameters.get(f"{layer.name}.weight")
        if "weight" not in layer.parameters or value is None or (layers is not None and layer.name not in layers):
            continue
        int4 = bits == 4 and layer.operation == "linear" and layer.name not in int8_layers
        limit, size = (INT4, GROUP) if int4 else (INT8, group)
        if isinstance(value, LowRank):
            parameters[f"{layer.name}.weight"] = LowRank(*(integers(part, limit, size) for part in (value.left, value.right)))
        elif not isinstance(value, Quantized):
            stored = integers(value, limit, size)
            if layer.operation == "convolution" and noise(value, stored) < ENOUGH:
                stored = integers(value, limit, size, zero_points=True)
            parameters[f"{layer.name}.weight"] = stored
    return replace(network, parameters=parameters)


def linear_layers(architecture: Architecture) -> dict[str, str]:
    """The linear layers of a head in order, each with the layer output that it reads, batch normalisation apart."""
    found, value = {}, ""
    for layer in architecture.layers:
        if layer.operation == "linear":
            found[layer.name] = value
        value = layer.value if layer.value in architecture.values else value
    return found


def check_floats(network: Network) -> None:
    """Raise ModelError if a network has quantized parameters."""
    for name, value in network.parts().items():
        if isinstance(value, Quantized):
            raise ModelError(f"{name} is already quantized; use the original network with float parameters")


def noise(value: Parameter, stored: Parameter) -> float:
    """The signal-to-noise ratio of a stored parameter in decibels: 10 log10 of the squared values over the squared errors."""
    signal = lost = 0.0
    for one, other in zip(blocks(value, np.float32), blocks(stored, np.float32), strict=True):
        signal += float(np.vdot(one, one))
        difference = one - other
        lost += float(np.vdot(difference, difference))
    return decibels(signal, lost)


def decibels(signal: float, lost: float) -> float:
    """10 log10 of a ratio of squares; infinite if there is no error."""
    return 10 * math.log10(signal / lost) if lost and signal else math.inf
