"""The VGG networks as data: Table 1 of Simonyan & Zisserman, arXiv 1409.1556, and what follows from it.

An `Architecture` knows its layers, the shape of each parameter, and its cost. Parameters and values bear the names that
the paper's authors gave them in Caffe: `conv1_1` … `conv5_3`, `pool5`, `fc6`, `fc7`, `fc8`.
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
STRIDE = 32  # five poolings of two

# Local response normalisation as in the paper's A-LRN. It follows Krizhevsky et al. 2012, whose alpha of 1e-4 multiplies
# the plain sum of squares; ONNX, Caffe and torch divide alpha by the size first.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 5e-4, 0.75, 2.0


@dataclass(frozen=True)
class Configuration:
    """A column of the paper's Table 1."""

    letter: str
    depths: tuple[int, int, int, int, int]  # convolutions in each of the five blocks
    pointwise: bool = False  # the last convolution of blocks 3, 4 and 5 is 1x1 (configuration C)
    lrn: bool = False  # response normalisation after the first convolution (A-LRN)
    batch_norm: bool = False  # after each convolution; younger than the paper


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

    `value` names what it computes: activations mean the value after the ReLU, so `conv1_1` is the ReLU's value and
    `conv1_1.raw` the convolution's own. `parameters` maps a role (weight, bias, scale, mean, variance) to its shape.
    """

    operation: Operation
    name: str
    value: str
    parameters: dict[str, Shape]


@dataclass(frozen=True)
class Architecture:
    """A VGG network without its numbers."""

    name: str = "vgg16"  # a key of CONFIGURATIONS
    classes: int = 1000
    width: float = 1.0  # multiplies the channels of each layer and the 4096 of fc6 and fc7
    input_size: int = 224  # pixels; the `fc` head is built for it, the `gap` head takes any size from 32 on
    head: Head = "fc"  # `fc`: the paper's fc6, fc7, fc8; `gap`: global average pooling, then fc8
    epsilon: float = 1e-5  # of the batch normalisation

    def __post_init__(self) -> None:
        if self.name not in CONFIGURATIONS:
            raise ModelError(f"no architecture is called {self.name!r}; there are {', '.join(CONFIGURATIONS)}")
        if self.classes < 1 or not 0 < self.width < 1000 or self.head not in ("fc", "gap") or not self.epsilon >= 0:
            raise ModelError(f"no network can be built like this: {self!r}")
        if self.input_size < STRIDE:
            raise ModelError(f"an input of {self.input_size} pixels is too small: five poolings need at least {STRIDE}")

    @property
    def configuration(self) -> Configuration:
        return CONFIGURATIONS[self.name]

    @property
    def hidden(self) -> int:
        """Units of fc6 and of fc7."""
        return _scaled(HIDDEN, self.width)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every operation from the input `data` to the output `logits`, in order."""
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

        `fc6.weight` is [units, channels, height, width], as the layer sees `pool5`; flattened from the second axis on,
        it is Caffe's and torchvision's [units, channels * height * width], number for number.
        """
        return {f"{layer.name}.{role}": shape for layer in self.layers for role, shape in layer.parameters.items()}

    @property
    def parameter_count(self) -> int:
        """How many numbers training finds; the running mean and variance of batch normalisation are not among them."""
        return sum(math.prod(shape) for name, shape in self.parameters.items() if not name.endswith((".mean", ".variance")))

    @cached_property
    def values(self) -> tuple[str, ...]:
        """The names of what can be asked for as an output, from `conv1_1` to `logits`."""
        hidden = ("batch_norm", "flatten")  # what an engine may fold into its neighbours
        return tuple(layer.value for layer in self.layers if "." not in layer.value and layer.operation not in hidden)

    def shape(self, value: str, batch: int, height: int, width: int) -> Shape:
        """The shape of a named value for a batch of `height` x `width` pixels.

        With the `fc` head, pictures larger than `input_size` give maps: the linear layers at each place where fc6 fits, as
        in the paper's dense evaluation, [batch, units, rows, columns].

        Raises:
            ModelError: there is no such value.
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
        """Raises ModelError when one of the names is none of `values`."""
        for name in names:
            if name not in self.values:
                raise ModelError(f"no value of {self.name} is called {name!r}; there are {', '.join(self.values)}")

    def multiply_adds(self, size: int | None = None) -> int:
        """Multiply-adds of the convolutions and linear layers for one image of `size` x `size` pixels."""
        side, total = size or self.input_size, 0
        for layer in self.layers:
            if layer.operation == "max_pool":
                side //= 2
            elif layer.operation in ("convolution", "linear"):
                total += math.prod(layer.parameters["weight"]) * (side * side if layer.operation == "convolution" else 1)
        return total

    def without_batch_norm(self) -> "Architecture":
        """The architecture that remains when the batch normalisation has been folded into the convolutions."""
        return replace(self, name=self.name.removesuffix("-bn"), epsilon=Architecture.epsilon)


def recognise(
    convolutions: Sequence[Shape], linear: Sequence[Shape], *, batch_norm: bool, epsilon: float, lrn: bool = False
) -> Architecture:
    """The architecture that parameters of these shapes belong to, or else the one that they come nearest to.

    `convolutions` are the weights' shapes [out, in, height, width] in order, `linear` those of the layers after them,
    [out, in]. Response normalisation has no parameters: without `lrn`, `vgg11-lrn` can't be told from `vgg11`.
    """
    head: Head = "gap" if len(linear) == 1 else "fc"
    input_size = Architecture.input_size
    if head == "fc" and linear and convolutions:
        side = math.isqrt(linear[0][1] // convolutions[-1][0])
        input_size = max(side, 1) * STRIDE
    # The width is read off the widest layers, where rounding hides least of it; what fits none is held against the paper's.
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
        """How many convolutions fit from the first on, how little their number differs, whether fc6's units fit."""
        expected = [layer.parameters["weight"] for layer in one.layers if layer.operation == "convolution"]
        pairs = zip(expected, convolutions, strict=False)
        fits = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        units = linear[0][0] if linear else 0
        return fits, -abs(len(expected) - len(convolutions)), one.hidden == units, one.width == 1

    return max(candidates, key=agreement)


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))
