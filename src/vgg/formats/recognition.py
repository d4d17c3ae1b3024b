"""The architecture of a file's layers, from the shapes of their weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile

from .. import heads
from ..architectures import CHANNELS, CONFIGURATIONS, STRIDE, Architecture, Configuration, Shape
from ..errors import ModelError
from ..heads import HIDDEN, Head, Step


@dataclass(frozen=True)
class Shapes:
    """What a file shows of its architecture."""

    convolutions: Sequence[Shape]  # of the weights in order, [out, in, height, width]
    linear: Sequence[Shape]  # of the weights in order, [out, in]
    batch_norm: bool = False  # after each convolution
    lrn: bool = False  # local response normalisation, which has no parameters
    depths: Sequence[int] = ()  # number of convolutions before each max pooling, and after the last, if that is known
    head: Head | None = None  # if it is known; otherwise it has the usual activations
    norms: Sequence[int] = ()  # numbers of the linear layers, from 1 on, that batch normalisation follows; 0: precedes all
    input_size: int = 0  # pixels, if it is known
    epsilon: float = Architecture.epsilon  # of batch normalisation


def recognise(shapes: Shapes) -> Architecture:
    """The architecture with these shapes, or the most similar one."""
    for name in ("vgg16", "vgg16-bn", *CONFIGURATIONS):  # a backbone may be the beginning of several
        made = CONFIGURATIONS[name]
        if made.batch_norm == shapes.batch_norm and made.lrn == shapes.lrn:
            try:
                found = _fitted(name, made, shapes)
            except ModelError:
                continue
            if found:
                return found
    return _nearest(shapes)


def _fitted(name: str, made: Configuration, shapes: Shapes) -> Architecture | None:
    """The architecture of this configuration with these shapes; None if they don't fit."""
    count = len(shapes.convolutions)
    kernels = [
        1 if made.pointwise and block >= 3 and index == depth else 3
        for block, depth in enumerate(made.depths, 1)
        for index in range(1, depth + 1)
    ]
    outs = tuple(shape[0] for shape in shapes.convolutions)
    expected = [(out, before, k, k) for out, before, k in zip(outs, (3, *outs), kernels, strict=False)]
    whole = count == len(kernels) and tuple(depth for depth in shapes.depths if depth) in ((), made.depths)
    if not count or expected != list(shapes.convolutions):
        return None
    if not whole and (shapes.linear or not _begins(made, shapes.depths, count)):
        return None
    width, channels = _width(outs, made, shapes)
    common = Architecture(name, 0, width, head=heads.NONE, channels=channels)
    common = replace(common, epsilon=shapes.epsilon if made.batch_norm or shapes.norms else Architecture.epsilon)
    if not shapes.linear:
        return replace(common, last=_last(made, shapes.depths, count), input_size=shapes.input_size or common.input_size)
    head, size = shapes.head, shapes.input_size or Architecture.input_size
    side = math.isqrt(shapes.linear[0][1] // outs[-1])
    if head is None:
        head = _usual_head(shapes, side)
    if head.pooling == "flatten":
        size = size if shapes.input_size and size // STRIDE == side else max(side, 1) * STRIDE
    classes = 2 if head.output == "binary" else shapes.linear[-1][0]
    hidden = Architecture(name, 1, width).hidden
    text = head.text
    if head.bare() in (heads.FC.scaled(hidden).bare(), heads.GAP.bare()):
        text = "gap" if head.bare() == heads.GAP.bare() else "fc"
    found = replace(common, head=text, classes=classes, input_size=size)
    wanted = [layer.parameters["weight"] for layer in found.layers if layer.operation == "linear"]
    fits = [(shape[0], math.prod(shape[1:])) for shape in wanted] == list(shapes.linear)
    return found if fits else None


def _begins(made: Configuration, depths: Sequence[int], count: int) -> bool:
    """Whether an architecture begins with this number of convolutions in each block."""
    return (
        bool(depths)
        and sum(depths) == count
        and tuple(depths[:-1]) == made.depths[: len(depths) - 1]
        and depths[-1] <= made.depths[min(len(depths), len(made.depths)) - 1]
    )


def _last(made: Configuration, depths: Sequence[int], count: int) -> str:
    """The last layer output of a backbone, `pool5` if that is not known."""
    if not depths:
        return ""
    ends = list(accumulate(made.depths))
    block = next(block for block, end in enumerate(ends, 1) if count <= end)
    if not depths[-1]:  # a pooling ends it
        return "" if block == len(ends) else f"pool{block}"
    return f"conv{block}_{count - (ends[block - 2] if block > 1 else 0)}"


def _width(outs: Sequence[int], made: Configuration, shapes: Shapes) -> tuple[float, tuple[int, ...]]:
    """The width that gives these numbers of channels, or 1 and the numbers."""
    bases = [base for depth, base in zip(made.depths, CHANNELS, strict=True) for _ in range(depth)][: len(outs)]
    # The widest layers give the width most precisely.
    widths = {1.0, max(outs) / max(bases), *(shape[0] / HIDDEN for shape in shapes.linear[:1])}
    hidden = shapes.linear[0][0] if shapes.linear else 0
    fits = [width for width in sorted(widths) if [max(1, round(base * width)) for base in bases] == list(outs)]
    if fits:
        return max(fits, key=lambda width: (round(HIDDEN * width) == hidden, width == 1)), ()
    return 1.0, (*outs, *[outs[-1]] * (sum(made.depths) - len(outs)))  # layers that the network doesn't have


def _usual_head(shapes: Shapes, side: int) -> Head:
    """The head that files without a description of it usually have: ReLU and dropout after each linear layer but the last.

    A first layer with one input per channel follows global average pooling, which changes nothing for inputs of 32 pixels,
    unless the layers are those of the paper.
    """
    steps: list[Step] = [Step("batch_norm")] if 0 in shapes.norms else []
    for number, shape in enumerate(shapes.linear, 1):
        last = number == len(shapes.linear)
        steps.append(Step("linear", 0 if last else shape[0]))
        steps += [Step("batch_norm")] if number in shapes.norms else []
        steps += [] if last else [Step("relu"), heads.DROPOUT]
    paper = len(shapes.linear) == 3 and shapes.linear[0][0] == shapes.linear[1][0]
    pools = side == 1 and not paper
    return Head(tuple(steps), "average" if pools else "flatten", 1, "binary" if shapes.linear[-1][0] == 1 else "softmax")


def _nearest(shapes: Shapes) -> Architecture:
    """The most similar architecture of the paper, for the error that names what doesn't fit."""
    convolutions, linear = shapes.convolutions, shapes.linear
    head = "gap" if len(linear) == 1 else "fc"
    input_size = Architecture.input_size
    if head == "fc" and linear and convolutions:
        side = math.isqrt(linear[0][1] // convolutions[-1][0])
        input_size = max(side, 1) * STRIDE
    widths = {1.0, *(shape[0] / HIDDEN for shape in linear[:1] if head == "fc")}
    if convolutions:
        widths.add(max(shape[0] for shape in convolutions) / CHANNELS[-1])
    nearest = Architecture(
        classes=linear[-1][0] if linear else Architecture.classes,
        input_size=input_size,
        head=head,
        epsilon=shapes.epsilon if shapes.batch_norm else Architecture.epsilon,
    )
    names = [name for name, made in CONFIGURATIONS.items() if made.batch_norm == shapes.batch_norm and made.lrn == shapes.lrn]
    candidates = [replace(nearest, name=name, width=width) for name in names for width in sorted(widths)]

    def agreement(one: Architecture) -> tuple[float, ...]:
        """Leading convolutions that fit, difference in their number, whether the units of fc6 fit."""
        expected = [layer.parameters["weight"] for layer in one.layers if layer.operation == "convolution"]
        pairs = zip(expected, convolutions, strict=False)
        fits = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        units = linear[0][0] if linear else 0
        return fits, -abs(len(expected) - len(convolutions)), one.hidden == units, one.width == 1

    return max(candidates, key=agreement)
