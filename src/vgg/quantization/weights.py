"""Weights as integers, found from the weights alone: a scale for each row, or for each group of neighbours in a row."""

import math
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import ml_dtypes
import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..network import Network
from ..parameters import LowRank, Parameter, Part, Quantized, blocks

INT8, INT4 = 127, 7  # the largest integers
ENOUGH = 35.0  # decibels that a convolution's weight has above its rounding; where it hasn't, its rows get zero points
GROUP = 128  # neighbours in a row that share a scale where there are 4 bits
# Of these shares of the largest number, the best becomes the largest that can be told apart: rounding all others finer is
# worth cutting a few short.
SHARES = np.linspace(0.4, 1, 31)
CACHED = 2**15  # numbers that are worked on at once, few enough to stay in a core's cache


def integers(value: Part, limit: int = INT8, group: int = 0, *, zero_points: bool = False) -> Quantized:
    """A parameter in integers; of 31 scales, each row or group takes the one with the least squared error.

    Then the errors are balanced, as SQuant does (Guo et al., arXiv 2202.07471): what a layer gets, behind a ReLU, has a mean
    above zero and changes little from pixel to pixel, so that the sum of a filter's errors weighs more than their squares. The
    numbers that are nearest to being rounded the other way are, until the errors of each filter's channel, and of each row or
    group, sum to half a step or less.

    Args:
        value: floats, [rows, ...]; of a mapped file, a few MiB are read at a time.
        limit: the largest integer; up to 7, they are stored in 4 bits; 7 goes with -8.
        group: how many neighbours in a row share a scale; all when 0.
        zero_points: each row or group has a zero point, so that the integers reach from its least number to its largest; else
            they lie around zero.
    """
    rows, inputs = value.shape[0], math.prod(value.shape[1:])
    size, kernel = group or inputs, 0 if group else math.prod(value.shape[2:])
    values = np.empty((rows, inputs), np.int8)
    scale = np.empty((rows, -(-inputs // size)), np.float32)
    zero = np.zeros(scale.shape, np.int8)

    def work(start: int, block: Array) -> None:
        whole = inputs // size * size
        stop = start + len(block)
        for begin, end in ((0, whole), (whole, inputs)):  # whole groups, and what is left of the row
            if begin < end:
                parts = block[:, begin:end].reshape(-1, min(size, end - begin))
                groups = np.s_[start:stop, begin // size : -(-end // size)]
                found, scales, zeros = _rounded(parts, limit, kernel, zero_points)
                values[start:stop, begin:end] = found.reshape(len(block), -1)
                scale[groups], zero[groups] = scales.reshape(len(block), -1), zeros.reshape(len(block), -1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        start, waiting = 0, []
        for block in blocks(value, np.float32):
            waiting.append(pool.submit(work, start, block.reshape(len(block), -1)))
            start += len(block)
            if len(waiting) > 2 * (os.cpu_count() or 1):
                waiting.pop(0).result()
        for one in waiting:
            one.result()
    stored, zero = (one if limit > INT4 else (one.view(np.uint8) & 15).view(ml_dtypes.int4) for one in (values, zero))
    scale, zero = (one if group else one[:, 0] for one in (scale, zero))
    return Quantized(stored.reshape(value.shape), scale, zero if zero_points else None, group=group)


def _rounded(rows: Array, limit: int, kernel: int, zero_points: bool) -> tuple[Array, Array, Array]:
    """Integers [rows, numbers] up to a limit, and each row's scale and zero point; `kernel` numbers are a filter's channel."""
    lowest = -limit - (limit == INT4)  # of 16 integers none is wasted; of 256, one matters nothing
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
        scaled.clip(lowest, limit, out=scaled)  # what is cut short is lost, and not to be made up for by others
        np.rint(scaled, out=nearest)
        if kernel > 1:
            _balance(nearest.reshape(-1, kernel), scaled.reshape(-1, kernel), lowest, limit)
        _balance(nearest, scaled, lowest, limit)
        end = start + len(part)
        found[start:end], scales[start:end], zeros[start:end] = nearest, best, zero
    return found, scales, zeros


def _balance(rounded: Array, scaled: Array, lowest: int, limit: int) -> None:
    """Round some numbers [rows, numbers] the other way, in place, so that each row's errors sum to half a step or less."""
    error = rounded - scaled
    total = error.sum(1, keepdims=True)
    count = np.rint(np.abs(total))
    most = min(int(count.max()), rounded.shape[1])
    if not most:
        return
    back = -np.sign(total)
    error *= -back  # the larger, the nearer to being rounded the other way
    error[(rounded + back < lowest) | (rounded + back > limit)] = -1
    chosen = np.argpartition(error, -most, 1)[:, -most:]
    near = np.take_along_axis(error, chosen, 1)
    order = np.argsort(-near, 1)
    chosen, near = np.take_along_axis(chosen, order, 1), np.take_along_axis(near, order, 1)
    turned = np.where((np.arange(most) < count) & (near > 0), back, 0)
    np.put_along_axis(rounded, chosen, np.take_along_axis(rounded, chosen, 1) + turned, 1)


def quantize_weights(
    network: Network, bits: int = 8, *, fine: Collection[str] = (), group: int = 0, only: Collection[str] | None = None
) -> Network:
    """A network whose weights are integers: 8 bits around zero with a scale for each output channel.

    A convolution of which that leaves too little, as a few far larger numbers of one sign do, has zero points as well; linear
    layers don't, since the native engine reads theirs as they lie.

    Args:
        network: in floats; a weight may be of low rank.
        bits: 4 stores the linear layers in 4 bits, with a scale for every 128 neighbours in a row.
        fine: linear layers that are stored in 8 bits all the same, such as fc8.
        group: neighbours in a row that share a scale where there are 8 bits; the whole row when 0.
        only: the layers to quantize; all when not given.

    Raises:
        ModelError: a weight is quantized already.
    """
    check_floats(network)
    parameters = dict(network.parameters)
    for layer in network.architecture.layers:
        value = parameters.get(f"{layer.name}.weight")
        if "weight" not in layer.parameters or value is None or (only is not None and layer.name not in only):
            continue
        few = bits == 4 and layer.operation == "linear" and layer.name not in fine
        limit, size = (INT4, GROUP) if few else (INT8, group)
        if isinstance(value, LowRank):
            parameters[f"{layer.name}.weight"] = LowRank(*(integers(part, limit, size) for part in (value.left, value.right)))
        elif not isinstance(value, Quantized):
            stored = integers(value, limit, size)
            if layer.operation == "convolution" and noise(value, stored) < ENOUGH:
                stored = integers(value, limit, size, zero_points=True)
            parameters[f"{layer.name}.weight"] = stored
    return replace(network, parameters=parameters)


def check_floats(network: Network) -> None:
    """Raises ModelError where a network has quantized parameters."""
    for name, value in network.parts().items():
        if isinstance(value, Quantized):
            raise ModelError(f"{name} is quantized already; begin with the network in floats")


def noise(value: Parameter, stored: Parameter) -> float:
    """The ratio of signal to quantization noise in decibels: 10 log10 of a parameter's squares by those of what it lost."""
    signal = lost = 0.0
    for one, other in zip(blocks(value, np.float32), blocks(stored, np.float32), strict=True):
        signal += float(np.vdot(one, one))
        difference = one - other
        lost += float(np.vdot(difference, difference))
    return decibels(signal, lost)


def decibels(signal: float, lost: float) -> float:
    """10 log10 of a ratio of squares; infinite where nothing is lost."""
    return 10 * math.log10(signal / lost) if lost and signal else math.inf
