"""torch's operations, with torch's arguments, as a chain: for modules and TorchScript."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..architectures import POOLINGS, STRIDE
from ..arrays import Array
from ..heads import ACTIVATIONS
from .chain import Chain
from .layouts import Bare, Found, Layer

BLOCKS = 5  # of convolutions, each followed by a pooling
USUAL = 7  # positions a side of torchvision's adaptive pooling, which changes nothing at 224 pixels, the size without a trace


def pair(value: Any) -> tuple[Any, ...]:
    """The two numbers of an argument that may be one."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return values * 2 if len(values) == 1 else values


class Operations(Chain):
    """The operations of a module or TorchScript so far.

    Args:
        path: the file, for errors.
        traced: side in pixels of the images that a module was traced with, 0 if that is not known.
    """

    def __init__(self, path: object, traced: int = 0) -> None:
        super().__init__(path)
        self.input_size = self._traced = traced
        self._dense = False  # a convolution reads the whole map, so what follows has one position

    def require(self, name: str, **attributes: tuple[Any, Any]) -> None:
        """Raises ModelError if an attribute, given with its expected value, has another one."""
        for key, (found, expected) in attributes.items():
            if pair(found) != pair(expected):
                raise self.error(f"{name} has {key} {found}")

    def _after_pool5(self) -> bool:
        return self.count("max_pool") == BLOCKS

    def conv2d(
        self,
        name: str,
        weight: Array,
        bias: Array | None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
    ) -> None:
        """A convolution; `name` is that of its weight. After pool5 it is a linear layer over the whole map."""
        self.require(name, stride=(stride, 1), dilation=(dilation, 1), groups=(groups, 1))
        kernel = weight.shape[-1]
        if self._after_pool5():
            self.require(name, padding=(padding, 0))
            if not self.count("linear"):
                self.input_size = self.input_size or kernel * STRIDE
                self._dense = True
            self.linear(name, weight.reshape(len(weight), -1), bias)
            return
        self.require(name, padding=(0 if padding == "valid" else padding, padding if padding == "same" else kernel // 2))
        self.convolution(name, weight, bias)

    def normalise(self, name: str, arrays: Mapping[str, Array | None], epsilon: Any) -> None:
        """Batch normalisation, with its arrays by role; `name` is that of the layer."""
        if arrays["mean"] is None or arrays["variance"] is None:
            raise self.error(f"{name} normalises with the statistics of each batch")
        layer: Layer = {role: Found(f"{name}.{role}", array) for role, array in arrays.items() if array is not None}
        self.batch_norm(layer, float(epsilon))

    def max_pool2d(
        self, name: str, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False
    ) -> None:
        self.require(name, padding=(padding, 0), dilation=(dilation, 1), ceil_mode=(ceil_mode, False))
        if self._after_pool5():
            self._pooled(name, "global_max_pool", kernel)
            return
        self.require(name, kernel_size=(kernel, 2), stride=(stride or kernel, 2))
        self.add("max_pool")

    def avg_pool2d(self, name: str, kernel: Any, stride: Any = None, padding: Any = 0, *_: Any) -> None:
        self.require(name, padding=(padding, 0))
        if pair(kernel) != (1, 1):
            self._pooled(name, "average_pool", kernel)
        else:
            self.require(name, stride=(stride or 1, 1))

    def _pooled(self, name: str, operation: str, kernel: Any) -> None:
        """A pooling with a window of the whole map, at one size of the input."""
        side, other = pair(kernel)
        if side != other or not self._after_pool5():
            raise self.error(f"{name} has kernel_size {kernel}")
        self.pool(operation)
        self.input_size = self.input_size or side * STRIDE

    def pool(self, operation: str, side: int = 1) -> None:
        """Pooling of the whole map, to `side` x `side` positions."""
        if self.ends_in("dropout"):  # which has no effect at inference
            self.operations.pop()
        if not self._dense:
            self.add(operation, side)

    def adaptive_avg_pool2d(self, name: str, size: Any) -> None:
        side, other = pair(size)
        if side != other or not self._after_pool5():
            if side is None and other is None:
                return
            raise self.error(f"{name} has output_size {size}" if self._after_pool5() else f"{name} is not behind five poolings")
        if side == 1:
            self.pool("average_pool")
        elif side == USUAL and self._traced // STRIDE in (0, USUAL):
            self.input_size = self._traced or USUAL * STRIDE
        elif side:
            self.pool("adaptive_pool", side)

    def adaptive_max_pool2d(self, name: str, size: Any) -> None:
        self.require(name, output_size=(size, 1))
        self.pool("global_max_pool")

    def activation(self, operation: str, number: Any = None) -> None:
        """One of `heads.ACTIVATIONS`, with its number if it has one."""
        self.add(operation, ACTIVATIONS[operation] if number is None else round(float(number), 8))

    def gelu(self, approximate: Any = "none") -> None:
        self.activation("gelu_tanh" if approximate == "tanh" else "gelu")

    def softmax(self, name: str, dim: Any, operation: str = "softmax") -> None:
        if dim not in (1, -1, None):
            raise self.error(f"{name} has dim {dim}")
        self.add(operation)

    def dropout(self, probability: Any) -> None:
        """Dropout, kept in the head, where training may use it."""
        if self._after_pool5():
            self.add("dropout", round(float(probability), 8))

    def bare(self) -> Bare:
        """The network."""
        if not self.count("linear"):
            while self.ends_in(*POOLINGS, "dropout"):
                if not self.ends_in("dropout"):
                    self.assumed.append("pool5 as its output, without the average or maximum behind it")
                self.operations.pop()
        architecture, parameters, _ = self.network()
        sized = not architecture.classifier or architecture.input_size == self._traced
        return Bare(architecture, parameters, assumed=", ".join(dict.fromkeys(self.assumed)), sized=sized)
