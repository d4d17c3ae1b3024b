"""The torch modules of single layers."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .architectures import L2_EPSILON, LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Architecture, Layer, Shape

# Modules of activations by their number.
_ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda _: nn.ReLU(inplace=True),  # the value before it has no name in `Architecture.values`
    "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": lambda _: nn.GELU(), "gelu_tanh": lambda _: nn.GELU("tanh"),
    "silu": lambda _: nn.SiLU(), "tanh": lambda _: nn.Tanh(), "sigmoid": lambda _: nn.Sigmoid(),
}  # fmt: skip


def torch_layer(layer: Layer, architecture: Architecture, dropout: float) -> nn.Module:
    """The module of a layer. `dropout` is the probability where the layer gives none."""
    shape, number = layer.parameters.get("weight", ()), layer.number or 0.0
    match layer.operation:
        case "convolution":
            return nn.Conv2d(shape[1], shape[0], shape[2], padding=shape[2] // 2)
        case "batch_norm":
            return BatchNorm(layer.parameters["scale"][0], eps=architecture.epsilon)
        case "lrn":
            return LocalResponseNorm(LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K)
        case "max_pool":
            return nn.MaxPool2d(2)
        case "mean_pool":
            return nn.AvgPool2d(2)
        case "l2_pool":
            return L2Pool()
        case "average_pool":
            return nn.AdaptiveAvgPool2d(1)
        case "adaptive_pool":
            return nn.AdaptiveAvgPool2d(int(number))
        case "global_max_pool":
            return nn.AdaptiveMaxPool2d(1)
        case "flatten":
            return nn.Identity()  # which `Linear` does itself
        case "linear":
            return Linear(shape)
        case "dropout":
            return nn.Dropout(dropout if layer.number is None else layer.number)
        case _:
            return _ACTIVATIONS[layer.operation](number)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of the channels of maps, or of vectors; a map of fewer channels is flattened first."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 4 and value.shape[1] == self.num_features:
            return super().forward(value)
        return super().forward(value.flatten(1)[..., None, None]).flatten(1)


class LocalResponseNorm(nn.LocalResponseNorm):
    """Local response normalisation in float32 or better: float16 overflows on the squares."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return super().forward(value.to(torch.promote_types(value.dtype, torch.float32))).to(value.dtype)


class L2Pool(nn.Module):
    """The pooling `l2` of `Architecture.pooling`, in float32 or better: float16 has neither the squares nor the epsilon."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        squares = value.to(torch.promote_types(value.dtype, torch.float32)).square()
        # [1, 2, 1] / 4 is the mean of two neighbours twice.
        blurred = functional.avg_pool2d(functional.avg_pool2d(squares, 2, stride=1, padding=1), 2)
        return (blurred + L2_EPSILON).sqrt().to(value.dtype)


class Linear(nn.Linear):
    """A linear layer of weight [units, inputs] or [units, channels, rows, columns]; on larger maps, a convolution."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(math.prod(shape[1:]), shape[0])
        self.kernel = (*shape, 1, 1)[:4]

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if value.shape[2:] in ((), self.kernel[2:]):
            return super().forward(value.flatten(1))
        return functional.conv2d(value, self.weight.view(self.kernel), self.bias)
