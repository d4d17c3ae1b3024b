"""The VGG architectures as data: Table 1 of Simonyan & Zisserman, arXiv 1409.1556.

An `Architecture` gives the layers, the shape of each parameter, and the cost. Parameters and layer outputs have the names
that the paper's authors used in Caffe: `conv1_1` … `conv5_3`, `pool5`, `fc6`, `fc7`, `fc8`. `vgg.heads` describes what follows
pool5.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from . import heads
from .errors import ModelError
from .heads import HIDDEN, Head

Shape = tuple[int, ...]
# The activation functions are those of `vgg.heads`. `max_pool`, `mean_pool` and `l2_pool` halve a map's sides; `average_pool`
# and `global_max_pool` pool the whole map; `adaptive_pool` averages it to `number` x `number` positions.
Operation = Literal[
    "convolution", "batch_norm", "lrn", "relu", "max_pool", "mean_pool", "l2_pool", "average_pool", "global_max_pool",
    "adaptive_pool", "flatten", "linear", "dropout", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid",
]  # fmt: skip
Pooling = Literal["max", "average", "l2"]

CHANNELS = (64, 128, 256, 512, 512)
POOLINGS = ("average_pool", "global_max_pool", "adaptive_pool")
# The operation of each `Architecture.pooling`.
BLOCK_POOLINGS: dict[Pooling, Operation] = {"max": "max_pool", "average": "mean_pool", "l2": "l2_pool"}
L2_EPSILON = 1e-12  # added under the root of `l2_pool`
NORM_ROLES = ("scale", "bias", "mean", "variance")
MOST = 2**16  # channels of a convolution
MAX_INPUT = 16_384  # pixels of a side of the input
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

    `value` names the layer output. A layer's plain name means the output after the activation: `conv1_1` is the ReLU's output
    and `conv1_1.raw` the convolution's. `parameters` maps a role (weight, bias, scale, mean, variance) to its shape.
    """

    operation: Operation
    name: str
    value: str
    parameters: dict[str, Shape]
    number: float | None = 0.0  # of an activation, dropout or `adaptive_pool`; see `vgg.heads.Step`


@dataclass(frozen=True)
class Architecture:
    """The architecture of a VGG network, without parameters. Raises ModelError if the fields are invalid."""

    name: str = "vgg16"  # a key of CONFIGURATIONS
    classes: int = 1000  # 0 without a head
    width: float = 1.0  # multiplies the channels of each layer and the 4096 units of fc6 and fc7
    input_size: int = 224  # pixels; fixed if the first linear layer reads a map; otherwise any size from 32 works
    # `fc`: the paper's fc6, fc7, fc8; `gap`: global average pooling, then fc8; `none`: a backbone; or a text as in `vgg.heads`.
    head: str = "fc"
    epsilon: float = 1e-5  # of batch normalisation
    channels: tuple[int, ...] = ()  # of each convolution, if they are not the paper's times the width
    last: str = ""  # of a backbone, its last layer output, `pool5` by default
    # How the blocks end: the paper's maximum of 2x2 positions, or for metrics and losses their mean, or DISTS's `l2`
    # (K. Ding et al., arXiv 2004.07728, section 3.1): sqrt(blur(x^2) + 1e-12) at every second position, with the 3x3 kernel
    # [1, 2, 1]^T [1, 2, 1] / 16, a Hann window, and zeros around the map, so that a side n becomes n / 2 rounded up.
    pooling: Pooling = "max"

    def __post_init__(self) -> None:
        if self.name not in CONFIGURATIONS:
            raise ModelError(f"unknown architecture {self.name!r}; choose from {', '.join(CONFIGURATIONS)}")
        sizes = (self.width, *self.channels)
        consistent = self.classes == 0 if self.head == heads.NONE else self.classes > 0 and not self.last
        if not consistent or not 0 < min(sizes) <= max(sizes) < MOST or not self.epsilon >= 0:
            raise ModelError(f"invalid architecture: {self!r}")
        if self.input_size < STRIDE:
            raise ModelError(f"input size of {self.input_size} pixels is too small; five poolings need at least {STRIDE}")
        if self.input_size > MAX_INPUT:
            raise ModelError(f"input size of {self.input_size} pixels is too large; the limit is {MAX_INPUT}")
        if self.pooling not in BLOCK_POOLINGS:
            raise ModelError(f"unknown pooling {self.pooling!r}; choose from {', '.join(BLOCK_POOLINGS)}")
        if self.channels and len(self.channels) != sum(self.configuration.depths):
            raise ModelError(f"{len(self.channels)} numbers of channels for {self.name}")
        for name, head in heads.NAMED.items():  # a text that means one of these becomes its name
            if self.classifier == (head.scaled(self.hidden) if name == "fc" else head):
                object.__setattr__(self, "head", name)
        if self.last and self.layers[-1].value != self.last:
            raise ModelError(f"{self.name} has no layer output {self.last!r}")

    @property
    def configuration(self) -> Configuration:
        return CONFIGURATIONS[self.name]

    @property
    def hidden(self) -> int:
        """Number of units of fc6 and of fc7 with the head `fc`."""
        return _scaled(HIDDEN, self.width)

    @cached_property
    def classifier(self) -> Head | None:
        """The head; None without one."""
        if self.head == heads.NONE:
            return None
        return heads.FC.scaled(self.hidden) if self.head == "fc" else heads.parse(self.head)

    @property
    def fixed_size(self) -> bool:
        """Whether the first linear layer reads a map. Larger images then give a map of logits; see `shape`."""
        return self.classifier is not None and self.classifier.maps

    @property
    def fixed_map(self) -> bool:
        """Whether the head reads several positions, so that a file or engine may fix the size of the input."""
        return self.fixed_size or (self.classifier is not None and self.classifier.side > 1)

    @property
    def output(self) -> heads.Output | None:
        """The meaning of the logits, see `vgg.heads.Head`; None without a head."""
        return self.classifier.output if self.classifier else None

    @property
    def units(self) -> int:
        """Number of logits: that of the classes, or 1 for two classes if the output is `binary`."""
        return 1 if self.output == "binary" else self.classes

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer from the input `data` to the output `logits`, or to `last`, in order."""
        layers, last = [], self.last or ("" if self.classifier else "pool5")
        for layer in (*self._trunk(), *(self._head(self.classifier) if self.classifier else ())):
            layers.append(layer)
            if layer.value == last:
                break
        return tuple(layers)

    @cached_property
    def _channels(self) -> tuple[int, ...]:
        """Number of channels of each convolution."""
        blocks = zip(self.configuration.depths, CHANNELS, strict=True)
        return self.channels or tuple(_scaled(base, self.width) for depth, base in blocks for _ in range(depth))

    def _trunk(self) -> Iterator[Layer]:
        made = self.configuration
        channels, outs = 3, iter(self._channels)
        for block, depth in enumerate(made.depths, 1):
            for index in range(1, depth + 1):
                name, out = f"conv{block}_{index}", next(outs)
                kernel = 1 if made.pointwise and block >= 3 and index == depth else 3
                yield Layer("convolution", name, f"{name}.raw", {"weight": (out, channels, kernel, kernel), "bias": (out,)})
                if made.batch_norm:
                    norm = f"bn{block}_{index}"
                    yield Layer("batch_norm", norm, norm, dict.fromkeys(NORM_ROLES, (out,)))
                yield Layer("relu", name, name, {})
                if made.lrn and block == index == 1:
                    yield Layer("lrn", "norm1_1", "norm1_1", {})
                channels = out
            yield Layer(BLOCK_POOLINGS[self.pooling], f"pool{block}", f"pool{block}", {})

    def _head(self, head: Head) -> Iterator[Layer]:
        """The layers after pool5. Linear layers are fc6, fc7, … in order; the only one of the head `gap` is fc8."""
        shape: Shape = (self._channels[-1],)
        if head.pooling == "flatten" or head.side > 1:
            side = head.side if head.side > 1 else self.pooled(self.input_size, len(CHANNELS))
            shape += (side, side)
        if head.pooling != "flatten":
            operation: Operation = "global_max_pool" if head.pooling == "max" else "average_pool"
            yield Layer("adaptive_pool" if head.side > 1 else operation, "pool6", "pool6", {}, head.side)
        yield Layer("flatten", "flatten", "flatten", {})
        for number, item in enumerate(head.items, 7 if self.head == "gap" else 5):
            operations = [step.operation for step in item]
            # The operation whose output has the plain name: the activation, or else the last one that computes.
            final = "batch_norm" if "batch_norm" in operations else "linear"
            final = next((one for one in operations if one in heads.ACTIVATIONS), final) if "linear" in operations else ""
            for step in item:
                name = f"{ {'batch_norm': 'bn', 'dropout': 'drop'}.get(step.operation, 'fc') }{number}"
                value = f"fc{number}" if step.operation == final else f"{name}.raw" if step.operation == "linear" else name
                parameters: dict[str, Shape] = {}
                if step.operation == "linear":
                    units = int(step.number or self.units)
                    parameters, shape = {"weight": (units, *shape), "bias": (units,)}, (units,)
                elif step.operation == "batch_norm":
                    parameters = dict.fromkeys(NORM_ROLES, (math.prod(shape),))
                value = "logits" if step is head.steps[-1] else value
                yield Layer(step.operation, name, value, parameters, step.number)  # type: ignore[arg-type]

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
        values = (layer.value for layer in self.layers if "." not in layer.value and layer.operation != "dropout")
        # An engine may fold a batch normalisation into its neighbours, and doesn't flatten.
        return tuple(value for value in values if value != "flatten" and not value.startswith("bn"))

    def pooled(self, side: int, times: int = 1) -> int:
        """The side of a map after the poolings of some blocks."""
        return -(-side >> times) if self.pooling == "l2" else side >> times

    def shape(self, value: str, batch: int, height: int, width: int) -> Shape:
        """The shape of a layer output for a batch of `height` x `width` pixels.

        If the first linear layer reads a map, images larger than `input_size` give maps [batch, units, rows, columns]: the
        linear layers at each position where the first fits, as in the paper's dense evaluation.

        Raises:
            ModelError: unknown layer output.
        """
        self.check_values([value])
        channels, head = 3, False
        for layer in self.layers:
            weight = layer.parameters.get("weight")
            if layer.operation in BLOCK_POOLINGS.values():
                height, width = self.pooled(height), self.pooled(width)
            elif layer.operation in POOLINGS:
                height = width = int(layer.number or 1)
                head = value != "pool6"
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
            if name == "logits" and not self.classifier:
                raise ModelError(
                    f"this {self.name} has no head, so it can't classify; its features are {self.values[-1]} (`vgg features`); "
                    "`vgg train --from` trains a head"
                )
            if name not in self.values:
                raise ModelError(f"{self.name} has no layer output {name!r}; choose from {', '.join(self.values)}")

    def multiply_adds(self, size: int | None = None) -> int:
        """Number of multiply-adds of the convolutions and linear layers for one image of `size` x `size` pixels."""
        side, total = size or self.input_size, 0
        for layer in self.layers:
            if layer.operation in BLOCK_POOLINGS.values():
                side = self.pooled(side)
            elif layer.operation in ("convolution", "linear"):
                total += math.prod(layer.parameters["weight"]) * (side * side if layer.operation == "convolution" else 1)
        return total

    def without_batch_norm(self) -> "Architecture":
        """The architecture after folding batch normalisation into the convolutions and linear layers."""
        head = self.head
        if self.classifier and any(step.operation == "batch_norm" for step in self.classifier.steps):
            steps = tuple(step for step in self.classifier.steps if step.operation != "batch_norm")
            head = replace(self.classifier, steps=steps).text
        return replace(self, name=self.name.removesuffix("-bn"), head=head, epsilon=Architecture.epsilon)


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))
