"""A network as a value: an architecture, its parameters, preprocessing, labels and provenance."""

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from . import heads, json_output
from .architectures import NORM_ROLES, STRIDE, Architecture, Layer
from .arrays import Array
from .errors import ModelError, Notice
from .labels import BINARY, Labels, mismatch
from .parameters import LowRank, Parameter, Part, Quantized, as_bytes, blocks, expanded, is_finite, shaped
from .preprocessing import Preprocessing

# The source of a fact about a network: the user, the file itself, the file's published hash, or a guess by its format.
Source = Literal["given", "metadata", "known hash", "guess"]


@dataclass(frozen=True)
class Provenance:
    """The origin of a network's numbers, preprocessing and labels."""

    source: str = ""  # the name of the file that it was first read from
    format: str = ""  # of that file
    sha256: str = ""  # of that file
    published: str = ""  # name of the published model with this hash
    preprocessing: Source = "guess"
    labels: Source = "guess"
    licence: str = ""  # of the numbers
    quantization: str = ""  # the method, and the reason for its choice
    assumed: str = ""  # what the file didn't say of the head, and what was taken for it
    part: str = ""  # which of that file's weights these are, if it has others


@dataclass(frozen=True)
class Network:
    """A VGG network as a value.

    Parameters have the names and shapes of `Architecture.parameters`. They are float32, float16 or bfloat16 arrays, often
    mapped from a file and not yet read, or `Quantized`; a linear layer's weight may be `LowRank`.

    Raises:
        ModelError: a parameter is missing, unknown or of the wrong shape, or the number of labels is not that of the classes.
    """

    architecture: Architecture
    parameters: Mapping[str, Parameter]
    preprocessing: Preprocessing
    labels: Labels | None = None
    provenance: Provenance = Provenance()

    def __post_init__(self) -> None:
        expected = self.architecture.parameters
        for name in (*expected, *self.parameters):
            if name not in self.parameters:
                raise ModelError(f"parameter {name} {list(expected[name])} of {self.architecture.name} is missing")
            if name not in expected:
                raise ModelError(f"{self.architecture.name} has no parameter {name}")
            if self.parameters[name].shape != expected[name]:
                shape, wanted = list(self.parameters[name].shape), list(expected[name])
                raise ModelError(f"parameter {name} of {self.architecture.name} has the shape {shape}; expected {wanted}")
        if self.labels is not None and len(self.labels) != self.architecture.classes:
            raise ModelError(mismatch(self.labels, self.architecture.classes))

    @property
    def class_names(self) -> Labels | None:
        """The labels; without them, those of two classes with one logit are `negative` and `positive`."""
        return BINARY if self.labels is None and self.architecture.output == "binary" else self.labels

    if TYPE_CHECKING:  # `vgg.formats` attaches both

        @staticmethod
        def read(path: str | Path) -> "Network":
            """Read the network in a file; see `vgg.formats.read`."""
            raise NotImplementedError

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
            layout: Literal["file", "triton"] = "file",
            keys: Literal["torchvision", "timm", "paper"] | None = None,
        ) -> None:
            """Write the network to `.onnx`, `.safetensors` or `.pth`, or to a model repository; see `vgg.formats.write`."""

    def faults(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, str]]:
        """Those of these parameters, by default all, with which nothing can be computed: name, and `values that are …`.

        All values are read, in 40 ms for a VGG-16 of 553 MB in memory.
        """
        for name in self.parameters if names is None else names:
            value = self.parameters[name]
            if not is_finite(value):
                yield name, "values that are not finite numbers"
            elif name.endswith(".variance") and (expanded(value).astype(np.float64) + self.architecture.epsilon <= 0).any():
                yield name, "negative values"

    def check_finite(self, names: Iterable[str] | None = None) -> None:
        """Raise ModelError if one of these parameters has a fault; see `faults`."""
        for name, fault in self.faults(names):
            raise ModelError(f"parameter {name} has {fault}, so the network can't be used")

    def check_values(self, names: Iterable[str]) -> None:
        """Raise ModelError if a name is not in `Architecture.values`, with the reason if the file's head was left aside."""
        try:
            self.architecture.check_values(names)
        except ModelError as error:
            if self.architecture.classifier or not self.provenance.assumed:
                raise
            raise ModelError(f"{error} (assumed {self.provenance.assumed})") from None

    def read_as(self, head: str = "", output: heads.Output | None = None, input_size: int = 0) -> "Network":
        """The same parameters in another head: another pooling, activations, dropout, output, or size of the input.

        Args:
            head: a text as in `vgg.heads`; by default the network's own. Its linear layers and batch normalisations are those
                of the network, in order.
            output: the meaning of the logits, instead of the head's.
            input_size: side of the input in pixels; by default that of the network, or the one that the head requires. Crop
                and size of the preprocessing follow. If the head reads a map of another size, adaptive average pooling to
                that size is assumed before it, as in torchvision's VGG, and a `Notice` states this.

        Raises:
            ModelError: the parameters don't fit the head, or the head doesn't fit the size.
        """
        old = self.architecture
        self.check_values(["logits"])
        if head == heads.NONE:
            raise ModelError("head 'none' has no layers for those of the file; for features, use `vgg features --layer pool5`")
        wanted = replace(old, head=head or old.head).classifier
        assert wanted is not None
        if output == "softmax" and old.units == 1:
            raise ModelError("one logit has no softmax; its output is binary")
        output = "binary" if old.units == 1 else output or wanted.output
        if output == "binary" and old.units > 1:
            raise ModelError(f"a binary output is one logit; the file has {old.units}; use softmax or sigmoid")
        weights = [layer.parameters["weight"] for layer in _layers(old) if layer.operation == "linear"]
        side = math.isqrt(math.prod(weights[0][2:]))
        if wanted.maps and not head and input_size and input_size // STRIDE != side:
            wanted = replace(wanted, pooling="average", side=side)
            map = f"{side} x {side} positions"
            text = f"the head reads {map}; assumed adaptive average pooling to them at {input_size} pixels. Set with --head"
            warnings.warn(Notice(text), stacklevel=2)
        text = replace(wanted, output=output).text
        if not input_size:
            fits = not wanted.maps or old.input_size // STRIDE == side
            input_size = old.input_size if fits else side * STRIDE
        new = replace(old, head=text, classes=2 if output == "binary" else old.units, input_size=input_size)
        pairs = list(zip(_layers(old), _layers(new), strict=False))
        same = all(a.operation == b.operation and _sizes(a) == _sizes(b) for a, b in pairs)
        if not same or len(_layers(old)) != len(_layers(new)):
            raise ModelError(f"head {text!r} of {input_size} pixels doesn't fit the file's layers, {_described(old)}")
        titles = {f"{b.name}.{role}": f"{a.name}.{role}" for a, b in pairs for role in a.parameters}
        parameters = {name: _reshaped(self.parameters[titles.get(name, name)], shape) for name, shape in new.parameters.items()}
        preprocessing = self.preprocessing
        if input_size != old.input_size:
            preprocessing = preprocessing.for_crop(input_size)
        labels = self.labels if self.labels is not None and len(self.labels) == new.classes else None
        origin = replace(self.provenance, assumed="")
        return Network(new, parameters, preprocessing, labels, origin)

    @np.errstate(invalid="ignore", divide="ignore", over="ignore")  # of broken parameters, which `check_finite` finds
    def fold_batch_norm(self) -> "Network":
        """The same function without batch normalisation: `vgg16-bn` becomes `vgg16`, in float32.

        Computed in float64: the weight is multiplied by scale / sqrt(variance + epsilon), and the bias is adjusted to match.
        A normalisation that follows an activation or the pooling goes into the next linear layer.
        """
        plain = self.architecture.without_batch_norm()
        parameters = {name: self.parameters[name] for name in plain.parameters}
        layers = [layer for layer in self.architecture.layers if layer.operation not in ("flatten", "dropout")]
        for before, layer, after in zip([None, *layers], layers, [*layers[1:], None], strict=False):
            if layer.operation != "batch_norm":
                continue
            scale, bias, mean, variance = (
                expanded(self.parameters[f"{layer.name}.{role}"]).astype(np.float64) for role in NORM_ROLES
            )
            factor = scale / np.sqrt(variance + self.architecture.epsilon)
            follows = before is not None and before.operation in ("convolution", "linear")
            target = before if follows else after  # a linear layer can also be after it
            assert target is not None
            weight = expanded(parameters[f"{target.name}.weight"])
            offset = expanded(parameters[f"{target.name}.bias"]).astype(np.float64)
            matrix = weight.reshape(len(weight), -1).astype(np.float64)
            if follows:
                matrix, offset = matrix * factor[:, None], (offset - mean) * factor + bias
            else:
                matrix, offset = matrix * factor, offset + matrix @ (bias - mean * factor)
            parameters[f"{target.name}.weight"] = matrix.reshape(weight.shape).astype(np.float32)
            parameters[f"{target.name}.bias"] = offset.astype(np.float32)
        return replace(self, architecture=plain, parameters=parameters)

    def expanded(self) -> "Network":
        """The same network with quantized parameters as float32; weights of low rank stay products."""
        parameters = {
            name: LowRank(expanded(value.left), expanded(value.right)) if isinstance(value, LowRank) else expanded(value)
            for name, value in self.parameters.items()
        }
        return replace(self, parameters=parameters)

    def parts(self) -> dict[str, Part]:
        """The parameters in the architecture's order; a weight of low rank as two, `NAME.right` and `NAME.left`."""
        found: dict[str, Part] = {}
        for name in self.architecture.parameters:
            value = self.parameters[name]
            if isinstance(value, LowRank):
                found |= {f"{name}.right": value.right, f"{name}.left": value.left}  # in the order of an ONNX file
            else:
                found[name] = value
        return found

    def tensors(self) -> dict[str, Array]:
        """The stored arrays of `parts` by name, with `NAME.scale` and `NAME.zero_point` of quantized ones."""
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
        """The hash of the parameters, which doesn't depend on the file's format; see `ParametersHash`."""
        total = ParametersHash()
        for name, array in self.tensors().items():
            total.begin(name, array)
            for block in blocks(array):
                total.update(block)
        return total.hexdigest()


def _layers(architecture: Architecture) -> list[Layer]:
    """The layers of a head that have parameters."""
    operations = [layer.operation for layer in architecture.layers]
    return [layer for layer in architecture.layers[operations.index("flatten") :] if layer.parameters]


def _sizes(layer: Layer) -> list[tuple[int, ...]]:
    """The shapes of a layer's parameters as matrices and vectors."""
    return [shape if len(shape) == 1 else (shape[0], math.prod(shape[1:])) for shape in layer.parameters.values()]


def _described(architecture: Architecture) -> str:
    """The units of a head's layers as text: `512x7x7, 4096, batch-norm, 1000`."""
    layers = _layers(architecture)
    shape = next(layer.parameters["weight"] for layer in layers if layer.operation == "linear")
    units = [f"{layer.parameters['weight'][0]}" if layer.operation == "linear" else "batch-norm" for layer in layers]
    return ", ".join(["x".join(map(str, shape[1:])), *units])


def _reshaped(value: Parameter, shape: tuple[int, ...]) -> Parameter:
    if value.shape == shape:
        return value
    if isinstance(value, LowRank):
        return LowRank(value.left, shaped(value.right, (value.right.shape[0], *shape[1:])))
    return shaped(value, shape)


class ParametersHash:
    """SHA-256 of the stored arrays in the architecture's order: a line of JSON, [name, dtype, shape], then `as_bytes`.

    Two files with the same hash have the same numbers under the same names.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def begin(self, name: str, array: Array) -> None:
        self._hash.update(json_output.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")

    def update(self, block: Array) -> None:
        self._hash.update(as_bytes(block).data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
