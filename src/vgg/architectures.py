"""The VGG architectures as data: Table 1 of Simonyan & Zisserman, arXiv 1409.1556.

An `Architecture` gives the layers, the shape of each parameter, and the cost. Parameters and layer outputs have the names
that the paper's authors used in Caffe: `conv1_1` … `conv5_3`, `pool5`, `fc6`, `fc7`, `fc8`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Literal

from .errors import ModelError

Shape = tuple[int, ...]
Head = Literal["fc", "gap"]
Operation = Literal["convolution", "batch_norm", "lrn", "relu", "max_pool", "average_pool", "flatten", "linear"]

CHANNELS = (64, 128, 256, 512, 512)
HIDDEN = 4096
STRIDE = 32  # pixels of the input per position of pool5: five poolings of 2

# Local response normalisation of A-LRN, after Krizhevsky et al. 2012, where alpha is 1e-4 and multiplies the sum of squares.
# ONNX, Caffe and torch divide alpha by the size first, so theirs is 5 times as large.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 5e-4, 0.75, 2.0


@dataclass(frozen=True)
class Configuration:
    """A column of the paper's Table 1."""

    letter: str
    depths: tuple[int, int, int, int, int]  # convolutions in each of the five blocks
    pointwise: bool = False  # the last convolution of blocks 3, 4 and 5 is 1x1 (configuration C)
    lrn: bool = False  # local response normalisation after the first convolution (A-LRN)
    batch_norm: bool = False  # after each convolution; not in the paper


CONFIGURATIONS = {
    "vgg11": Configuration("A", (1, 1, 2, 2, 2)),
    "vgg11-lrn": Configuration("A-LRN", (1, 1, 2, 2, 2), lrn=True),
    "vgg13": Configuration("B", (2, 2, 2, 2, 2)),
    "vgg16-c": Configuration("C", (2, 2, 3, 3, 3), pointwise=True),
    "vgg16": Configuration("D", (2, 2, 3, 3, 3)),
    "vgg19": Configuration("E", (2, 2, 4, 4, 4)),
    "vgg11-bn": Configuration("A", (1, 1, 2, 2, 2), batch_norm=True),
    "vgg13-bn": Configuration("B", (2, 2, 2, 2, 2), batch_norm=True),
    "vgg16-bn": Configuration("D", (2, 2, 3, 3, 3), batch_norm=True),
    "vgg19-bn": Configuration("E", (2, 2, 4, 4, 4), batch_norm=True),
}


@dataclass(frozen=True)
class Layer:
    """One operation of a network, in the order of execution.

    `value` names the layer output. A layer's plain name means the output after the ReLU: `conv1_1` is the ReLU's output and
    `conv1_1.raw` the convolution's. `parameters` maps a role (weight, bias, scale, mean, variance) to its shape.
    """

    operation: Operation
    name: str
    value: str
    parameters: dict[str, Shape]


@dataclass(frozen=True)
class Architecture:
    """The architecture of a VGG network, without parameters. Raises ModelError if the fields are invalid."""

    name: str = "vgg16"  # a key of CONFIGURATIONS
    classes: int = 1000
    width: float = 1.0  # multiplies the channels of each layer and the 4096 units of fc6 and fc7
    input_size: int = 224  # pixels; fixed by the `fc` head; with the `gap` head, any size from 32 works
    head: Head = "fc"  # `fc`: the paper's fc6, fc7, fc8; `gap`: global average pooling, then fc8
    epsilon: float = 1e-5  # of batch normalisation

    def __post_init__(self) -> None:
        if self.name not in CONFIGURATIONS:
            raise ModelError(f"unknown architecture {self.name!r}; choose from {', '.join(CONFIGURATIONS)}")
        if self.classes < 1 or not 0 < self.width < 1000 or self.head not in ("fc", "gap") or not self.epsilon >= 0:
            raise ModelError(f"invalid architecture: {self!r}")
        if self.input_size < STRIDE:
            raise ModelError(f"input size of {self.input_size} pixels is too small; five poolings need at least {STRIDE}")

    @property
    def configuration(self) -> Configuration:
        return CONFIGURATIONS[self.name]

    @property
    def hidden(self) -> int:
        """Number of units of fc6 and of fc7."""
        return _scaled(HIDDEN, self.width)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer from the input `data` to the output `logits`, in order."""
        return tuple(self._layers())

    def _layers(self) -> Iterator[Layer]:
        made = self.configuration
        channels = 3
        for block, (depth, base) in enumerate(zip(made.depths, CHANNELS, strict=True), 1):
            for index in range(1, depth + 1):
                name, out = f"conv{block}_{index}", _scaled(base, self.width)
                kernel = 1 if made.pointwise and block >= 3 and index == depth else 3
                yield Layer("convolution", name, f"{name}.raw", {"weight": (out, channels, kernel, kernel), "bias": (out,)})
                if made.batch_norm:
                    norm = f"bn{block}_{index}"
                    yield Layer("batch_norm", norm, norm, dict.fromkeys(("scale", "bias", "mean", "variance"), (out,)))
                yield Layer("relu", name, name, {})
                if made.lrn and block == index == 1:
                    yield Layer("lrn", "norm1_1", "norm1_1", {})
                channels = out
            yield Layer("max_pool", f"pool{block}", f"pool{block}", {})
        if self.head == "gap":
            yield Layer("average_pool", "pool6", "pool6", {})
            yield Layer("flatten", "flatten", "flatten", {})
            yield Layer("linear", "fc8", "logits", {"weight": (self.classes, channels), "bias": (self.classes,)})
            return
        side = self.input_size // STRIDE
        yield Layer("flatten", "flatten", "flatten", {})
        yield Layer("linear", "fc6", "fc6.raw", {"weight": (self.hidden, channels, side, side), "bias": (self.hidden,)})
        yield Layer("relu", "fc6", "fc6", {})
        yield Layer("linear", "fc7", "fc7.raw", {"weight": (self.hidden, self.hidden), "bias": (self.hidden,)})
        yield Layer("relu", "fc7", "fc7", {})
        yield Layer("linear", "fc8", "logits", {"weight": (self.classes, self.hidden), "bias": (self.classes,)})

    @cached_property
    def parameters(self) -> dict[str, Shape]:
        """The shape of each parameter by name, in the order of the layers.

        `fc6.weight` is [units, channels, height, width], with the axes of `pool5`. Flattened from the second axis, it equals
        Caffe's and torchvision's [units, channels * height * width].
        """
        return {f"{layer.name}.{role}": shape for layer in self.layers for role, shape in layer.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters, without the running mean and variance of batch normalisation."""
        return sum(math.prod(shape) for name, shape in self.parameters.items() if not name.endswith((".mean", ".variance")))

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The names of the layer outputs that an engine can return, from `conv1_1` to `logits`."""
        hidden = ("batch_norm", "flatten")  # which an engine may fold into their neighbours
        return tuple(layer.value for layer in self.layers if "." not in layer.value and layer.operation not in hidden)

    def shape(self, value: str, batch: int, height: int, width: int) -> Shape:
        """The shape of a layer output for a batch of `height` x `width` pixels.

        With the `fc` head, images larger than `input_size` give maps [batch, units, rows, columns]: the linear layers at each
        position where fc6 fits, as in the paper's dense evaluation.

        Raises:
            ModelError: unknown layer output.
        """
        self.check_values([value])
        channels, head = 3, False
        for layer in self.layers:
            weight = layer.parameters.get("weight")
            if layer.operation == "max_pool":
                height, width = height // 2, width // 2
            elif layer.operation == "average_pool":
                height, width, head = 1, 1, value != "pool6"
            elif layer.operation == "linear" and weight:
                side = weight[-1] if len(weight) == 4 else 1
                height, width, head = height - side + 1, width - side + 1, True
            channels = weight[0] if weight else channels
            if layer.value == value:
                break
        return (batch, channels) if head and height == width == 1 else (batch, channels, height, width)

    def check_values(self, names: Iterable[str]) -> None:
        """Raise ModelError if a name is not in `values`."""
        for name in names:
            if name not in self.values:
                raise ModelError(f"{self.name} has no layer output {name!r}; choose from {', '.join(self.values)}")

    def multiply_adds(self, size: int | None = None) -> int:
        """Number of multiply-adds of the convolutions and linear layers for one image of `size` x `size` pixels."""
        side, total = size or self.input_size, 0
        for layer in self.layers:
            if layer.operation == "max_pool":
                side //= 2
            elif layer.operation in ("convolution", "linear"):
                total += math.prod(layer.parameters["weight"]) * (side * side if layer.operation == "convolution" else 1)
        return total

    def without_batch_norm(self) -> "Architecture":
        """The architecture after folding batch normalisation into the convolutions."""
        return replace(self, name=self.name.removesuffix("-bn"), epsilon=Architecture.epsilon)


def recognise(
    convolutions: Sequence[Shape], linear: Sequence[Shape], *, batch_norm: bool, epsilon: float, lrn: bool = False
) -> Architecture:
    """The architecture with parameters of these shapes, or the most similar one.

    Args:
        convolutions: shapes of the convolutions' weights in order, [out, in, height, width].
        linear: shapes of the linear layers' weights in order, [out, in].
        batch_norm: whether there is batch normalisation.
        epsilon: of batch normalisation.
        lrn: whether there is local response normalisation, which has no parameters.
    """
    head: Head = "gap" if len(linear) == 1 else "fc"
    input_size = Architecture.input_size
    if head == "fc" and linear and convolutions:
        side = math.isqrt(linear[0][1] // convolutions[-1][0])
        input_size = max(side, 1) * STRIDE
    # The widest layers give the width most precisely. If it fits no architecture, the paper's width is used.
    widths = {1.0, *(shape[0] / HIDDEN for shape in linear[:1] if head == "fc")}
    if convolutions:
        widths.add(max(shape[0] for shape in convolutions) / CHANNELS[-1])
    nearest = Architecture(
        classes=linear[-1][0] if linear else Architecture.classes,
        input_size=input_size,
        head=head,
        epsilon=epsilon if batch_norm else Architecture.epsilon,
    )
    names = [name for name, made in CONFIGURATIONS.items() if made.batch_norm == batch_norm and made.lrn == lrn]
    candidates = [replace(nearest, name=name, width=width) for name in names for width in sorted(widths)]

    def agreement(one: Architecture) -> tuple[float, ...]:
        """Leading convolutions that fit, difference in their number, whether the units of fc6 fit."""
        expected = [layer.parameters["weight"] for layer in one.layers if layer.operation == "convolution"]
        pairs = zip(expected, convolutions, strict=False)
        fits = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        units = linear[0][0] if linear else 0
        return fits, -abs(len(expected) - len(convolutions)), one.hidden == units, one.width == 1

    return max(candidates, key=agreement)


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))
