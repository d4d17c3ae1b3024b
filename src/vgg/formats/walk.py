"""From a graph of operators to the paper's layers, for ONNX, Caffe and Caffe2 files.

The graph is followed from its input to its output. Each operator on the way must be one of VGG's, with VGG's attributes, or
change nothing at inference; its other inputs must be constant. Operators have ONNX's names.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, POOLINGS, Architecture, Operation
from ..errors import ModelError
from ..heads import Step
from ..parameters import Parameter, Part
from .activations import Activations
from .dimensions import OPEN, Dimensions
from .frontier import BLOCKS
from .functions import LARGEST
from .layouts import Found
from .nodes import Node, axes_of, few
from .pixels import Pixels
from .products import MATRICES, Products

MAP = Dimensions(("N", "C", "H", "W"), {"C": 3, **OPEN}, "HW")


@dataclass(frozen=True)
class Walked:
    """The VGG network that a graph computes."""

    architecture: Architecture
    parameters: dict[str, Parameter]  # under the paper's names
    output: str  # the graph's output that is the network's
    ending: str  # the operation at its end that makes scores of logits: `softmax`, `log_softmax`, `sigmoid`; "" for none
    activations: Activations  # their quantization
    obstacle: str  # why integers can't compute them as the graph does; "" if they can
    ignored: str  # an operator after the network's output, such as ArgMax
    pixels: Pixels  # what precedes the first convolution
    assumed: str = ""  # what the graph doesn't say


def follow(
    path: object,
    nodes: Sequence[Node],
    outputs: Sequence[str],
    constants: Mapping[str, Part],
    start: str,
    dimensions: Dimensions = MAP,
) -> Walked:
    """The VGG network that a graph computes.

    Args:
        path: the file, for errors.
        nodes: in the order of execution; each value has a name of its own.
        outputs: the graph's outputs; the one of them that the most operators precede is the network's.
        constants: the graph's constants by name.
        start: the graph's input.
        dimensions: of the input.

    Raises:
        ModelError: the graph computes something else; the message names the first operator that shows it.
    """
    if not outputs:
        raise ModelError(f"{path}: not a VGG network: a graph without output")
    walk = _Walk(path, constants, start, dimensions)
    height, width = (dimensions.sizes[axis] for axis in "HW")
    if height == width:
        walk.input_size = height
    elif not {*dimensions.free} & {*"HW"}:
        raise ModelError(f"{path}: its input has {height}x{width} pixels, which is not a square")
    output = walk.follow(nodes, outputs)
    if walk.partial or walk.padding:
        raise walk.error(f"its output {output} is that of a pooling or padding alone")
    sides = [walk.dimensions.sizes[axis] for axis in "HW" if axis not in walk.dimensions.free]
    if walk.count("linear") and max(sides, default=1) > 1:
        raise walk.error(f"its output is a map of {' x '.join(map(str, sides))} positions")
    ignored = walk.ignored
    walk.settle()
    if not walk.count("linear") and walk.ends_in(*POOLINGS):
        ignored = f"the {walk.operations.pop().operation.replace('_', ' ')}"
    architecture, parameters, softmax = walk.network()
    ending = walk.operations[-1].operation if softmax or walk.ends_in("sigmoid") else ""
    activations = walk.recorder.assigned(walk.operations, architecture)
    return Walked(
        architecture, parameters, output, ending, activations, walk.recorder.obstacle, ignored, walk.pixels,
        ", ".join(walk.assumed),
    )  # fmt: skip


class _Walk(Products):
    """The operators of layers, and of shapes."""

    def settle(self) -> None:
        """A ReLU that a zero point shows is the last operation of a backbone; the output of a head has none."""
        if self.count("linear"):
            self.withdraw()
        self._implied = False

    def operator(self, node: Node) -> None:
        step = getattr(self, f"on_{node.operator.lower()}", None)
        if step is None or self.value not in node.inputs[: 2 if node.operator in MATRICES else 1]:
            raise self.error(f"unsupported operator {node}")
        # Those that ONNX Runtime made for a map with the channels last.
        last = bool(node.attributes.get("channels_last")) or node.operator.startswith("Nhwc")
        if last:
            self.dimensions = self.dimensions.transposed([0, 3, 1, 2])
        step(node)
        if last:
            self.dimensions = self.dimensions.transposed([0, 2, 3, 1])

    # One method per operator: `on_` and its name in lower case.

    def on_batchnormalization(self, node: Node) -> None:
        self.expect(node, training_mode=0)
        roles = ("scale", "bias", "mean", "variance")
        layer = {role: Found(node.inputs[place], self.array(node, place)) for place, role in enumerate(roles, 1)}
        if self.dimensions.channel != 1:
            raise self.error(f"{node} reads a value of the dimensions {self.dimensions}")
        held, count = self.dimensions.axes[1], self.dimensions.shape[1]
        most = LARGEST if {*held} & {*self.dimensions.free} else count
        for found in layer.values():  # before a copy is made
            if math.prod(found.value.shape) > most:
                raise self.error(f"{node} reads {found.key} {list(found.value.shape)} for {count} channels")
        self.batch_norm(layer, float(np.float32(node.attributes.get("epsilon", 1e-5))))

    def on_lrn(self, node: Node) -> None:
        defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}  # ONNX's
        complete = replace(node, attributes={**defaults, **node.attributes})
        self.expect(complete, size=LRN_SIZE, alpha=LRN_ALPHA, beta=LRN_BETA, bias=LRN_K)
        self.add("lrn")

    def on_pad(self, node: Node) -> None:
        """One pixel of zeros around a map, which the next convolution then needn't add."""
        given = node.attributes.get("pads") or self.optional(node, 1)
        pads = [] if given is None else [int(pad) for pad in few(given)]
        value = self.optional(node, 2)
        zero = not node.attributes.get("value") and (value is None or not value.any()) and self.optional(node, 3) is None
        wanted = [int(held in ("H", "W")) for held in self.dimensions.axes] * 2
        if sum(wanted) != 4 or pads != wanted or not zero or node.attributes.get("mode", "constant") != "constant":
            raise self.error(f"unsupported operator {node}: its pads are {pads}")
        self.padding = 1

    def on_maxpool(self, node: Node) -> None:
        sides = self.sides(node)
        kernel = node.attributes.get("kernel_shape")
        if self.count("max_pool") == BLOCKS and kernel == sides:
            self.expect(node, pads=0, dilations=1)
            self.pooled(node, "global_max_pool")
            return
        if self.count("max_pool") == BLOCKS:
            raise self.error(f"unsupported operator {node}: it follows five other poolings")
        complete = replace(node, attributes={"strides": 1, **node.attributes})
        self.expect(complete, kernel_shape=2, strides=2, pads=0, dilations=1)
        rounds = node.attributes.get("ceil_mode") or str(node.attributes.get("auto_pad")).startswith("SAME")
        if rounds and any(side % 2 for side in sides):
            raise self.error(f"{node} rounds up a map of {sides[0]} x {sides[1]}")
        self.add("max_pool")
        self.dimensions = self.dimensions.scaled(lambda side: side // 2)

    on_nhwcmaxpool = on_maxpool

    def on_averagepool(self, node: Node) -> None:
        sides, kernel = self.sides(node), node.attributes.get("kernel_shape", [])
        self.expect(node, pads=0, dilations=1)
        strides = node.attributes.get("strides") or [1] * len(kernel)
        if kernel == strides == [1, 1]:  # torch's export of an adaptive pooling that changes nothing
            return
        if self.count("max_pool") != BLOCKS or len(kernel) != 2:
            raise self.error(f"{node} has kernel_shape {kernel}")
        if self.dimensions.free:
            raise self.error(f"{node} has kernel_shape {kernel} for an input of any size; export it with a fixed size")
        if kernel == sides:
            self.pooled(node, "average_pool")
        elif kernel == strides and kernel[0] == kernel[1] and sides[0] == sides[1] and sides[0] % kernel[0] == 0:
            self.pooled(node, "adaptive_pool", sides[0] // kernel[0])
        else:
            raise self.error(f"{node} has kernel_shape {kernel} and strides {strides} for a map of {sides[0]} x {sides[1]}")

    def on_globalaveragepool(self, node: Node) -> None:
        self.sides(node)
        self.pooled(node, "average_pool")

    def on_qlinearglobalaveragepool(self, node: Node) -> None:
        self.integers_read(node, 1)
        self.on_globalaveragepool(node)
        self.integers_written(node, 3)

    def on_globalmaxpool(self, node: Node) -> None:
        self.sides(node)
        self.pooled(node, "global_max_pool")

    def on_reducemean(self, node: Node) -> None:
        self.reduce(node, "average_pool")

    def on_reducemax(self, node: Node) -> None:
        self.reduce(node, "global_max_pool")

    def reduce(self, node: Node, operation: Operation) -> None:
        """The mean or maximum over a map, or over one of its sides."""
        axes = axes_of(node.attributes, self.optional(node, 1))
        before = self.dimensions
        if axes is None:
            raise self.error(f"{node} has no axes")
        self.dimensions, gone = before.reduced(axes, bool(node.attributes.get("keepdims", 1)))
        wide = {axis for axis in "HW" if before.sizes[axis] != 1}
        if not set(gone) <= {"H", "W"} or self.partial not in ("", operation):
            raise self.error(f"{node} has axes {axes.tolist()} of {before}")
        if not wide <= set(gone):  # the other side must be next
            self.partial = operation
        elif gone:
            self.partial = ""
            self.pooled(node, operation)

    def pooled(self, node: Node, operation: Operation, positions: int = 1) -> None:
        """Append a pooling to `positions` x `positions` positions."""
        since = self.since_pooling()
        if self.as_map:
            self.pool_dense(node, operation)
        elif since == ["batch_norm"] and operation == "average_pool":  # which it may follow or precede
            self.operations.insert(-1, Step(operation, positions))
        elif set(since) <= {"relu"} or self.count("max_pool") < BLOCKS:
            self.add(operation, positions)
        else:
            raise self.error(f"unsupported operator {node}")
        self.resize(positions, positions)

    def on_flatten(self, node: Node) -> None:
        self.dimensions = self.dimensions.flattened(int(node.attributes.get("axis", 1)))

    def on_reshape(self, node: Node) -> None:
        target = node.attributes.get("shape") if len(node.inputs) < 2 else few(self.array(node, 1))
        self.dimensions = self.dimensions.reshaped(target or [], not node.attributes.get("allowzero"))

    def on_gather(self, node: Node) -> None:
        """All elements of a vector, in order, in another shape: torch's export of strides."""
        places = self.array(node, 1)
        if places.size != self.dimensions.shape[0] or (places.reshape(-1) != np.arange(places.size)).any():
            raise self.error(f"unsupported operator {node}")
        self.dimensions = self.dimensions.reshaped(places.shape)

    def on_squeeze(self, node: Node) -> None:
        self.dimensions = self.dimensions.squeezed(axes_of(node.attributes, self.optional(node, 1)))

    def on_unsqueeze(self, node: Node) -> None:
        axes = axes_of(node.attributes, self.optional(node, 1))
        self.dimensions = self.dimensions.unsqueezed(np.zeros(0, np.int64) if axes is None else axes)

    def on_transpose(self, node: Node) -> None:
        self.dimensions = self.dimensions.transposed(node.attributes.get("perm") or [])

    def on_softmax(self, node: Node) -> None:
        self.over_classes(node)
        self.add("softmax")

    def on_qlinearsoftmax(self, node: Node) -> None:
        self.integers_read(node, 1)
        self.on_softmax(node)
        self.integers_written(node, 3)

    def on_logsoftmax(self, node: Node) -> None:
        self.over_classes(node)
        self.add("log_softmax")

    def over_classes(self, node: Node) -> None:
        """Raises ModelError unless a softmax is over the classes."""
        held = self.dimensions.significant
        axis = node.attributes.get("axis")
        place = self.dimensions.channel if axis is None else self.dimensions.places([axis])[0]
        if self.dimensions.channel is None or place is None or "N" in "".join(held[place:]) or "C" not in "".join(held[place:]):
            raise self.error(f"{node} has axis {axis} of {self.dimensions}")

    def on_log(self, node: Node) -> None:
        if not self.ends_in("softmax"):
            raise self.error(f"unsupported operator {node}")
        self.operations[-1] = Step("log_softmax")
