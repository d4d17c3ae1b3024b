"""Quantization schemes, and the `Quantizer` that applies them to a network."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..architectures import Architecture
from ..errors import Error
from ..extras import require
from ..formats import onnx_builder
from ..formats import write as write_network
from ..network import Network
from ..parameters import Quantized
from ..progress import Progress, silent
from ..sources import Dataset
from . import low_rank, static
from .calibration import RangeMethod, ranges
from .weights import GROUP, check_floats, linear_layers, quantize_weights

if TYPE_CHECKING:
    import onnx

Method = Literal["weights", "qdq", "qoperator"]
OVERHEAD = 100_000  # bytes of a file besides the parameters: the graph and the labels


@dataclass(frozen=True)
class Scheme:
    """What is quantized, and how. Raises Error if the fields contradict each other."""

    method: Method = "weights"  # weights only; or activations too, in one of ONNX Runtime's two formats
    bits: int = 8  # of the linear layers' weights, 8 or 4; 4 in groups
    int8_layers: tuple[str, ...] = ()  # linear layers with 8 bits although `bits` is 4
    group: int = 0  # values of a row that share a scale, for 8 bits; the whole row if 0
    rank: str = ""  # of the hidden linear layers: a number, the energy to keep (`90%`) or the size of the file (`45MB`)
    activations: static.Activations = "u8"
    calibration: RangeMethod = "minmax"
    reduce_range: bool = True  # static methods: weights from -64 to 64, whose sums overflow on no processor
    float_layers: tuple[str, ...] = ()  # static methods: layers that stay float32

    def __post_init__(self) -> None:
        if self.method == "weights":
            if (self.activations, self.calibration) != (Scheme.activations, Scheme.calibration):
                raise Error("the method weights leaves activations as they are, so it takes no --activations and --calibration")
        elif self.bits != Scheme.bits:
            raise Error(f"the method {self.method} has 8 bits; {self.bits} bits require the method weights")
        elif self.rank:
            raise Error("a low rank requires the method weights")

    def check_packages(self) -> None:
        """Raise Error if a package is missing that the scheme needs."""
        if self.method != "weights":
            require("quantization of activations", "quantize", *static.PACKAGES)
        if self.rank:
            require("--rank", "quantize", "scipy")

    def __str__(self) -> str:
        if self.method == "weights":
            parts = [f"weights int{self.bits}"]
            parts += [f"groups of {self.group}"] if self.group else []
            parts += [f"{' and '.join(self.int8_layers)} int8"] if self.int8_layers else []
        else:
            parts = [self.method, self.activations, self.calibration, *([] if self.reduce_range else ["full range"])]
            parts += [f"{' and '.join(self.float_layers)} float32"] if self.float_layers else []
        return ", ".join(parts + ([f"rank {self.rank}"] if self.rank else []))


def fallbacks(first: Scheme, architecture: Architecture) -> Iterator[Scheme]:
    """A scheme, followed by those to try if it loses too much accuracy, each larger and more accurate than the one before.

    The linear layers of the architecture's head that they name are the last one, `fc8` in the paper, or the last two.
    """
    last = tuple(linear_layers(architecture))[-2:]
    yield first
    if first.method == "weights":
        if first.bits == 4:
            yield replace(first, int8_layers=last)
            yield replace(first, bits=8)
        yield replace(first, bits=8, group=GROUP)
    else:
        yield replace(first, calibration="percentile" if first.calibration == "minmax" else "minmax")
        yield replace(first, float_layers=last[-1:])
        yield replace(first, float_layers=("conv1_1", "conv1_2", *last[-1:]))


class Quantizer:
    """Applies schemes to a network. What is computed from calibration images is reused by the following schemes.

    Args:
        network: with float parameters.
        images: for calibration; required by static methods, and recommended for low rank.
        fresh: calibrate again, instead of using the ranges in the cache folder.
        progress: called during calibration.

    Raises:
        ModelError: a parameter has values that are not finite numbers.
    """

    def __init__(
        self, network: Network, images: Dataset | None = None, *, fresh: bool = False, progress: Progress = silent
    ) -> None:
        network.check_finite()
        self.network, self.images, self._fresh, self._progress = network, images, fresh, progress
        self._directions: dict[str, low_rank.Directions] = {}
        self._ranges: dict[str, Any] = {}

    def quantize(self, scheme: Scheme) -> "Network | onnx.ModelProto":
        """The quantized network; for a static method, its ONNX model.

        Raises:
            Error: a package is missing, the method requires calibration images, or the rank is invalid or makes no layer
                smaller.
            ImageError: an image can't be read.
            ModelError: the network is already quantized.
        """
        scheme.check_packages()
        network = self.network
        check_floats(network)
        if scheme.method == "weights":
            network = self._factored(scheme) if scheme.rank else network
            return quantize_weights(network, scheme.bits, int8_layers=scheme.int8_layers, group=scheme.group)
        if self.images is None:
            raise Error(f"the method {scheme.method} requires calibration images; set --calibrate")
        if scheme.calibration not in self._ranges:
            self._ranges[scheme.calibration] = ranges(
                network, self.images, scheme.calibration, fresh=self._fresh, progress=self._progress
            )
        return static.quantize_static(
            network, self._ranges[scheme.calibration], scheme.method, activations=scheme.activations,
            reduce_range=scheme.reduce_range, float_layers=scheme.float_layers,
        )  # fmt: skip

    def write(self, quantized: "Network | onnx.ModelProto", path: Path, note: str) -> None:
        """Write a result of `quantize` as an ONNX file, whole or not at all, with a note in its provenance."""
        origin = replace(self.network.provenance, quantization=note)
        if isinstance(quantized, Network):
            grouped = any(isinstance(part, Quantized) and part.group for part in quantized.parts().values())
            write_network(replace(quantized, provenance=origin), path, opset=onnx_builder.BLOCKED if grouped else None)
        else:
            static.write(quantized, replace(self.network.fold_batch_norm(), provenance=origin), path)

    def _factored(self, scheme: Scheme) -> Network:
        """The network with linear layers of low rank; in a head, batch normalisation is folded, so that they are neighbours."""
        network = self.network
        if any(name.startswith("bn") and "_" not in name for name in network.parameters):
            network = network.fold_batch_norm()
        low_rank.check(network, scheme.rank)
        if not self._directions:
            self._directions = low_rank.directions(network, self.images, self._progress)

        def stored(ranks: Mapping[str, int]) -> int:
            """The approximate size of the file in bytes."""
            total = OVERHEAD
            for name, shape in network.architecture.parameters.items():
                layer, _, role = name.partition(".")
                matrix = shape[0], math.prod(shape[1:])
                int4 = role == "weight" and scheme.bits == 4 and layer.startswith("fc") and layer not in scheme.int8_layers
                parts = [matrix]
                if role == "weight" and layer in ranks and low_rank.saves(matrix, ranks[layer]):
                    parts = [(matrix[0], ranks[layer]), (ranks[layer], matrix[1])]
                for rows, inputs in parts:  # integers and float32 scales; biases are float32
                    total += 4 * rows * (-(-inputs // GROUP) if int4 else 1)
                    total += (rows * inputs // (2 if int4 else 1)) * (role == "weight")
            return total

        return low_rank.factored(network, self._directions, low_rank.ranks(self._directions, scheme.rank, stored))
