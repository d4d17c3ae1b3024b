"""A network: an architecture, its parameters, the preprocessing it was trained with, its labels, and where it is from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from .architectures import Architecture
from .arrays import Array
from .errors import ModelError
from .labels import Labels
from .parameters import LowRank, Parameter, Part, Quantized, as_bytes, blocks, expanded
from .preprocessing import Preprocessing

# Where a fact about a network comes from: the user, the file itself, the file's published hash, or a guess by its format.
Source = Literal["given", "metadata", "known hash", "guess"]


@dataclass(frozen=True)
class Provenance:
    """Where a network's numbers come from, and how its preprocessing and its labels are known."""

    source: str = ""  # the name of the file that it was first read from
    format: str = ""  # of that file
    sha256: str = ""  # of that file
    published: str = ""  # the published model that the file's hash says it is
    preprocessing: Source = "guess"
    labels: Source = "guess"
    licence: str = ""  # of the numbers
    quantization: str = ""  # how the numbers were rounded, and what it was chosen for


@dataclass(frozen=True)
class Network:
    """A VGG network as a value; see the fields.

    Parameters bear the names and shapes of `Architecture.parameters`: float32, float16 or bfloat16 arrays, often mapped
    from a file and not yet read, or `Quantized`; a linear layer's weight may be `LowRank`.

    Raises:
        ModelError: a parameter is missing, too many, or of another shape; or the labels are not as many as the classes.
    """

    architecture: Architecture
    parameters: Mapping[str, Parameter]
    preprocessing: Preprocessing
    labels: Labels | None = None
    provenance: Provenance = Provenance()
    graph: Path | None = None  # the ONNX file that it was read from, when that quantizes activations too

    def __post_init__(self) -> None:
        expected = self.architecture.parameters
        for name in (*expected, *self.parameters):
            if name not in self.parameters:
                raise ModelError(f"parameter {name} {list(expected[name])} of {self.architecture.name} is missing")
            if name not in expected:
                raise ModelError(f"{self.architecture.name} has no parameter {name}")
            if self.parameters[name].shape != expected[name]:
                found, wanted = list(self.parameters[name].shape), list(expected[name])
                raise ModelError(f"parameter {name} of {self.architecture.name} is {found}; expected {wanted}")
        if self.labels is not None and len(self.labels) != self.architecture.classes:
            raise ModelError(f"{len(self.labels)} labels for a network of {self.architecture.classes} classes")

    @classmethod
    def read(cls, path: str | Path) -> "Network":
        """The network in a file of any format that `vgg.formats` reads. Raises ModelError where it can't be read."""
        from .formats import read  # formats stand above this file; a Network reads itself for its users' convenience

        return read(path)

    def write(
        self,
        path: str | Path,
        *,
        opset: int | None = None,
        outputs: Sequence[str] = (),
        softmax: bool = False,
        batch: int | None = None,
        dense: bool = False,
        bits: int = 32,
        names: Literal["paper", "zoo"] = "paper",
        preprocessing: bool = False,
    ) -> None:
        """Write the network whole or not at all: `.onnx` or `.safetensors`, by the path's suffix.

        Args:
            path: where to; a file that is there is replaced. All that follows is for ONNX files only.
            opset: 3 to the newest that the installed onnx package knows; 17 when not given.
            outputs: named values that the file gives besides `logits`, such as `fc7` or `conv5_3`.
            softmax: give `probabilities` instead of `logits`.
            batch: a fixed number of images; any number when not given.
            dense: take pictures of any size from `input_size` on, and give a score at each place where fc6 fits: the linear
                layers as convolutions, `logits` [batch, classes, rows, columns].
            bits: of the floats in the file, 32 or 16. Input and output stay float32.
            names: of the tensors, the paper's or those in the ONNX Model Zoo's files.
            preprocessing: take `image`, uint8 [batch, height, width, 3], RGB, 0..255, instead of `data`, and resize, crop and
                normalise it in the graph; needs opset 18, which is then the default.

        Raises:
            Error: the file can't be written; ModelError: the opset or an output is unknown, or the options contradict
                each other or the network.
        """
        from .formats import write
        from .formats.onnx_options import OnnxOptions

        options = OnnxOptions(opset, tuple(outputs), softmax, batch, dense, bits, names, preprocessing)
        write(self, path, options)

    def fold_batch_norm(self) -> "Network":
        """The same function without batch normalisation: `vgg16-bn` becomes `vgg16`, in float32.

        Folding is done in float64: weight * scale / sqrt(variance + epsilon), and the bias to match.
        """
        plain = self.architecture.without_batch_norm()
        parameters = {name: self.parameters[name] for name in plain.parameters}
        for name in self.architecture.parameters:
            if name.startswith("bn") and name.endswith(".scale"):
                place = name.removeprefix("bn").removesuffix(".scale")
                scale, bias, mean, variance = (
                    expanded(self.parameters[f"bn{place}.{role}"]).astype(np.float64)
                    for role in ("scale", "bias", "mean", "variance")
                )
                factor = scale / np.sqrt(variance + self.architecture.epsilon)
                weight = expanded(parameters[f"conv{place}.weight"]).astype(np.float64)
                offset = expanded(parameters[f"conv{place}.bias"]).astype(np.float64)
                parameters[f"conv{place}.weight"] = (weight * factor[:, None, None, None]).astype(np.float32)
                parameters[f"conv{place}.bias"] = ((offset - mean) * factor + bias).astype(np.float32)
        return replace(self, architecture=plain, parameters=parameters, graph=None)

    def expanded(self) -> "Network":
        """The same network with every quantized number as float32; weights of low rank stay such."""
        parameters = {
            name: LowRank(expanded(value.left), expanded(value.right)) if isinstance(value, LowRank) else expanded(value)
            for name, value in self.parameters.items()
        }
        return replace(self, parameters=parameters, graph=None)

    def parts(self) -> dict[str, Part]:
        """The parameters in the architecture's order; one of low rank as two, `NAME.left` and `NAME.right`."""
        found: dict[str, Part] = {}
        for name in self.architecture.parameters:
            value = self.parameters[name]
            if isinstance(value, LowRank):
                found |= {f"{name}.left": value.left, f"{name}.right": value.right}
            else:
                found[name] = value
        return found

    def tensors(self) -> dict[str, Array]:
        """The stored arrays of `parts` by name: a quantized one's scale is `NAME.scale`."""
        stored: dict[str, Array] = {}
        for name, value in self.parts().items():
            if isinstance(value, Quantized):
                stored[name], stored[f"{name}.scale"] = value.values, value.scale
                if value.zero_point is not None:
                    stored[f"{name}.zero_point"] = value.zero_point
            else:
                stored[name] = value
        return stored

    def sha256(self) -> str:
        """The hash of the parameters, whatever file they are in: see `ParametersHash`."""
        total = ParametersHash()
        for name, array in self.tensors().items():
            total.begin(name, array)
            for block in blocks(array):
                total.update(block)
        return total.hexdigest()


class ParametersHash:
    """SHA-256 over each stored array in the architecture's order: a line of JSON, [name, dtype, shape], then its bytes.

    Bytes are as `as_bytes` gives them, in C order. Two files with the same hash hold the same numbers under the same names.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, name: str, array: Array) -> None:
        self._hash.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")

    def update(self, block: Array) -> None:
        self._hash.update(as_bytes(block).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
