"""The work of a network, and the least time that this machine needs for it."""

import math
from dataclasses import dataclass

import numpy as np

from .architectures import BLOCK_POOLINGS
from .heads import ACTIVATIONS
from .network import Network
from .parameters import LowRank, Part, is_int4

MEMORY = 256 * 2**20  # bytes read to measure the bandwidth, many times the size of the caches
PEAK_SECONDS = 0.05  # duration of each measurement of the peak


@dataclass(frozen=True)
class Work:
    """The cost of a layer or a network."""

    multiply_adds: float  # per image
    weight_bytes: float  # read once per batch

    def __add__(self, other: "Work") -> "Work":
        return Work(self.multiply_adds + other.multiply_adds, self.weight_bytes + other.weight_bytes)


def work(network: Network) -> dict[str, Work]:
    """The work of each layer with weights at the network's input size, by the name of its output, `conv1_1` … `logits`.

    A 3x3 convolution is counted as Winograd's F(4x4,3x3): 36 multiply-adds for 4x4 pixels instead of 144, a quarter, and 36
    float32 for each nine weights. The first convolution, with too few channels to benefit from the transforms, 1x1 convolutions
    and linear layers are counted directly; linear weights have the size in which they are stored. Transforms, biases,
    activations and partial tiles at the edges of a map are not counted. Batch normalisation is folded.
    """
    architecture = network.architecture.without_batch_norm()
    side, found = architecture.input_size, {}
    for layer, following in zip(architecture.layers, (*architecture.layers[1:], None), strict=True):
        weight = layer.parameters.get("weight")
        if layer.operation in BLOCK_POOLINGS.values():
            side = architecture.pooled(side)
        elif weight:
            output = following if following and following.operation in ACTIVATIONS else layer
            numbers, name = math.prod(weight), output.value
            if layer.operation == "linear":
                stored = network.parameters[f"{layer.name}.weight"]
                parts = (stored.left, stored.right) if isinstance(stored, LowRank) else (stored,)
                found[name] = sum(map(_linear, parts), Work(0, 0))
            elif weight[2] == 3 and found:
                found[name] = Work(numbers * side * side / 4, numbers * 4 * 36 / 9)
            else:
                found[name] = Work(numbers * side * side, numbers * 4)
    return found


def _linear(weight: Part) -> Work:
    numbers = math.prod(weight.shape)
    if isinstance(weight, np.ndarray):
        return Work(numbers, weight.nbytes)
    return Work(numbers, numbers * (0.5 if is_int4(weight.values) else 1) + weight.scale.nbytes)


@dataclass(frozen=True)
class Machine:
    """The measured capacity of the machine with a number of threads."""

    flops: float  # floating-point operations per second on registers; a multiply-add is two
    bandwidth: float  # bytes per second read from memory

    def limit(self, work: Work, batch: int) -> float:
        """Seconds per batch at full use of the machine: 2 * multiply-adds * batch / flops + bytes / bandwidth.

        The terms are added because the convolutions are bound by the first, and then the linear layers by the second. It is an
        estimate, not a strict bound: larger tiles than F(4x4) need fewer multiply-adds, and the weights of a small network may
        stay in the caches.
        """
        return 2 * work.multiply_adds * batch / self.flops + work.weight_bytes / self.bandwidth


class Meter:
    """Measures the machine repeatedly; the best measurement counts, because other processes can only slow it down."""

    def __init__(self, threads: int, memory: int = MEMORY) -> None:
        self._threads = threads
        self._memory = np.ones(memory // 4, np.float32)  # written, so that it is allocated
        self._peak = self._bandwidth = 0.0

    def measure(self) -> None:
        from .engines import native_interface

        self._peak = max(self._peak, native_interface.peak(self._threads, PEAK_SECONDS))
        self._bandwidth = max(self._bandwidth, native_interface.bandwidth(self._threads, self._memory))

    @property
    def machine(self) -> Machine:
        """The best measurements; `measure` must be called first."""
        return Machine(2 * self._peak, self._bandwidth)
