"""A network: an architecture, its parameters, the preprocessing it was trained with, its labels, and where it is from."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .architectures import Architecture, Shape
from .errors import ModelError
from .labels import Labels
from .preprocessing import Preprocessing

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_BYTES = 2 * 2**20

# Where a fact about a network comes from: the user, the file itself, the file's published hash, or a guess by its format.
Source = Literal["given", "metadata", "known hash", "guess"]


@dataclass(frozen=True)
class Quantized:
    """A parameter stored as integers: value = (values - zero_point) * scale.

    Scales run along `axis`, one each index, or, with a `group`, one for every `group` neighbours along `axis`.
    """

    values: Array  # int8 or uint8, the parameter's shape
    scale: Array  # float32: [n] along `axis`; with a group, the parameter's shape with `axis` divided by the group
    zero_point: Array | None = None  # of the values' dtype and the scale's shape; none means 0
    axis: int = 0
    group: int = 0  # 0: no groups

    def __post_init__(self) -> None:
        wanted: Shape = (self.values.shape[self.axis],)
        if self.group:
            wanted = tuple(-(-n // self.group) if d == self.axis else n for d, n in enumerate(self.shape))
        if self.scale.shape != wanted or (self.zero_point is not None and self.zero_point.shape != wanted):
            raise ModelError(f"a quantized parameter of shape {list(self.shape)} needs scales of shape {list(wanted)}")

    @property
    def shape(self) -> Shape:
        return tuple(self.values.shape)

    def dequantize(self) -> Array:
        """The parameter as float32."""
        return self._float(slice(None))

    def rows(self, start: int, stop: int) -> Array:
        """Some rows of the parameter as float32."""
        return self._float(slice(start, stop))

    def take(self, rows: Array) -> Array:
        """The rows of the parameter with these indices, as float32."""
        return self._float(rows)

    def _float(self, rows: slice | Array) -> Array:
        def spread(along: Array) -> Array:
            if not self.group:
                along = along.reshape([-1 if d == self.axis else 1 for d in range(self.values.ndim)])
                return along[rows] if self.axis == 0 else along
            if self.axis == 0:
                return along[np.arange(len(self.values))[rows] // self.group]
            return np.repeat(along[rows], self.group, self.axis).take(np.arange(self.shape[self.axis]), self.axis)

        result = self.values[rows].astype(np.float32)
        if self.zero_point is not None:
            result -= spread(self.zero_point).astype(np.float32)
        result *= spread(self.scale)
        return result


Parameter = Array | Quantized


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


@dataclass(frozen=True)
class Network:
    """A VGG network as a value; see the fields.

    Parameters bear the names and shapes of `Architecture.parameters`: float32, float16 or bfloat16 arrays, often mapped
    from a file and not yet read, or `Quantized`.

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
        """The same network with every quantized parameter as float32."""
        return replace(self, parameters={name: expanded(value) for name, value in self.parameters.items()}, graph=None)

    def tensors(self) -> dict[str, Array]:
        """The stored arrays by name, in the architecture's order: a quantized parameter's scale is `NAME.scale`."""
        stored: dict[str, Array] = {}
        for name in self.architecture.parameters:
            value = self.parameters[name]
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

    Bytes are little-endian, in C order. Two files with the same hash hold the same numbers under the same names.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, name: str, array: Array) -> None:
        self._hash.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")

    def update(self, block: Array) -> None:
        self._hash.update(block.view(np.uint8).reshape(-1).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def expanded(value: Parameter) -> Array:
    """A parameter as plain floats."""
    return value.dequantize() if isinstance(value, Quantized) else value


def blocks(value: Parameter, dtype: Any = None) -> Iterator[Array]:
    """A parameter in pieces of whole rows, each contiguous, little-endian and of a few MiB; `Quantized` as float32.

    Only a piece is in memory at a time, so a mapped parameter of any size and any strides can be written or hashed.
    """
    rows = max(1, BLOCK_BYTES // (4 * max(1, math.prod(value.shape[1:]))))
    for start in range(0, value.shape[0], rows):
        part = value.rows(start, start + rows) if isinstance(value, Quantized) else value[start : start + rows]
        kind = np.dtype(dtype or part.dtype).newbyteorder("<")
        if not part.flags.c_contiguous:
            part = part.copy(order="K")  # as it lies, which is fast to read; turning it is fast once it is in the cache
        yield np.ascontiguousarray(part, kind)


def contiguous(value: Parameter, dtype: Any = None) -> Array:
    """A parameter as one contiguous array: itself where it is one already, which copies nothing."""
    if isinstance(value, np.ndarray) and value.flags.c_contiguous and (dtype is None or value.dtype == dtype):
        return value
    return np.concatenate(list(blocks(value, dtype)))
