"""The ways to make a network smaller, and what makes it so."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import Error
from ..formats import onnx_builder
from ..formats import write as write_network
from ..network import Network
from ..parameters import Quantized
from . import low_rank, static
from .calibration import Method, Pictures, ranges
from .weights import GROUP, check_floats, quantize_weights

if TYPE_CHECKING:
    import onnx

Format = Literal["weights", "qdq", "qoperator"]
Progress = Callable[[str, int, int], object]  # what is being done, how many pictures of it are done, of how many
OVERHEAD = 100_000  # bytes of a file that aren't numbers: the graph and the labels


def silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Configuration:
    """A way to make a network smaller."""

    format: Format = "weights"  # weights as integers; or activations too, in one of ONNX Runtime's two formats
    bits: int = 8  # of the linear layers' weights, 8 or 4; 4 in groups
    fine: tuple[str, ...] = ()  # linear layers with 8 bits all the same
    group: int = 0  # neighbours that share a scale where there are 8 bits; a whole row when 0
    rank: str = ""  # of fc6 and fc7: a number, the energy kept (`90%`) or the file's size (`45MB`)
    activations: static.Activations = "u8"
    calibration: Method = "minmax"
    reduced: bool = True  # static weights from -64 to 64, which no processor's sums overflow on
    floats: tuple[str, ...] = ()  # layers of a static format that stay float32

    def __str__(self) -> str:
        if self.format == "weights":
            said = [f"weights int{self.bits}"]
            said += [f"groups of {self.group}"] if self.group else []
            said += [f"{' and '.join(self.fine)} int8"] if self.fine else []
        else:
            said = [self.format, self.activations, self.calibration, *([] if self.reduced else ["full range"])]
            said += [f"{' and '.join(self.floats)} float32"] if self.floats else []
        return ", ".join(said + ([f"rank {self.rank}"] if self.rank else []))


def ladder(first: Configuration) -> Iterator[Configuration]:
    """Configurations from `first` on, each costlier and nearer to float32 than the one before it."""
    yield first
    if first.format == "weights":
        if first.bits == 4:
            yield replace(first, fine=("fc7", "fc8"))
            yield replace(first, bits=8)
        yield replace(first, bits=8, group=GROUP)
    else:
        yield replace(first, calibration="percentile" if first.calibration == "minmax" else "minmax")
        yield replace(first, floats=("fc8",))
        yield replace(first, floats=("conv1_1", "conv1_2", "fc8"))


class Quantizer:
    """Makes smaller files of a network, and keeps what it learns from the pictures on the way."""

    def __init__(self, network: Network, pictures: Pictures | None = None, progress: Progress = silent) -> None:
        """Args:
        network: in floats.
        pictures: for calibration; a static format needs them, a rank is better with them.
        progress: called while pictures are looked at.
        """
        self.network, self.pictures, self._progress = network, pictures, progress
        self._directions: dict[str, low_rank.Directions] = {}

    def make(self, configuration: Configuration) -> "Network | onnx.ModelProto":
        """The network in a configuration: a Network, or of a static format the ONNX model.

        Raises:
            Error: the format needs pictures, or the rank can't be; ImageError: a picture can't be read; ModelError: the
                network is quantized already.
        """
        network = self.network
        check_floats(network)
        if configuration.format != "weights":
            if configuration.rank:
                raise Error("a low rank goes with the format weights")
            if self.pictures is None:
                raise Error(f"the format {configuration.format} needs pictures for calibration; give --calibrate")
            found = ranges(network, self.pictures, configuration.calibration, self._looking)
            return static.quantize_static(
                network, found, configuration.format, activations=configuration.activations,
                reduced=configuration.reduced, floats=configuration.floats,
            )  # fmt: skip
        if configuration.rank:
            network = self._factored(configuration)
        return quantize_weights(network, configuration.bits, fine=configuration.fine, group=configuration.group)

    def write(self, made: "Network | onnx.ModelProto", path: Path, note: str) -> None:
        """Write what was made as an ONNX file, whole or not at all; the note goes into its provenance."""
        origin = replace(self.network.provenance, quantization=note)
        if isinstance(made, Network):
            grouped = any(isinstance(part, Quantized) and part.group for part in made.parts().values())
            write_network(replace(made, provenance=origin), path, opset=onnx_builder.BLOCKED if grouped else None)
        else:
            static.write(made, replace(self.network.fold_batch_norm(), provenance=origin), path)

    def _factored(self, configuration: Configuration) -> Network:
        if not self._directions:
            self._directions = low_rank.directions(self.network, self.pictures, self._looking)

        def stored(ranks: Mapping[str, int]) -> int:
            """About as many bytes as the file will have."""
            total = OVERHEAD
            for name, shape in self.network.architecture.parameters.items():
                layer, _, role = name.partition(".")
                matrix = shape[0], math.prod(shape[1:])
                few = configuration.bits == 4 and layer.startswith("fc") and layer not in configuration.fine
                parts = [matrix]
                if role == "weight" and layer in ranks and low_rank.saves(matrix, ranks[layer]):
                    parts = [(matrix[0], ranks[layer]), (ranks[layer], matrix[1])]
                for rows, inputs in parts:
                    if role != "weight":
                        total += 4 * rows
                    elif few:
                        total += rows * inputs // 2 + 4 * rows * -(-inputs // GROUP)
                    else:
                        total += rows * inputs + 4 * rows
            return total

        return low_rank.factored(self.network, self._directions, low_rank.ranks(self._directions, configuration.rank, stored))

    def _looking(self, done: int) -> None:
        self._progress("calibration", done, len(self.pictures) if self.pictures else 0)
