"""The torch modules of single layers."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd
from torch.nn import functional
from torch.nn.grad import conv2d_input

from .architectures import L2_EPSILON, LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Architecture, Layer, Shape

SMALL_MAP = 16  # positions of a map up to which `Convolution` computes the gradient of its weight itself

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
            return Convolution(shape[1], shape[0], shape[2], padding=shape[2] // 2)
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


@cache
def cpu_has(*instructions: str) -> bool:
    """Whether the CPU has one of these sets of instructions, by torch's names; False in releases that don't tell."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in instructions)


class Convolution(nn.Conv2d):
    """A convolution that keeps the size of maps.

    In bfloat16 on CPUs with AMX, the gradient of a 3x3 filter on maps of up to 4x4 positions is computed by `_OnSmallMaps`, a
    matrix product: oneDNN's kernel of torch 2.13 takes 3 to 20 times as long.
    """

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        small = self.training and self.kernel_size == (3, 3) and math.prod(value.shape[2:]) <= SMALL_MAP
        if small and value.device.type == "cpu" and torch.is_autocast_enabled("cpu") and cpu_has("amx_bf16"):
            found: torch.Tensor = _OnSmallMaps.apply(value, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return found
        return super().forward(value)


class _OnSmallMaps(torch.autograd.Function):
    """A 3x3 convolution, the gradient of whose weight is one matrix product over all positions of all images."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(value, weight)
        return functional.conv2d(value, weight, bias, padding=1)

    @staticmethod
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        value, weight = ctx.saved_tensors
        height, width = value.shape[2:]
        padded = functional.pad(value.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        shifted = [padded[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
        patches = torch.cat(shifted, -1).flatten(0, 2)  # [positions, 9 * channels]
        rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # [positions, filters]
        of_weight = (rows.T @ patches).view(-1, 3, 3, value.shape[1]).permute(0, 3, 1, 2)
        of_value = None
        if ctx.needs_input_grad[0]:
            of_value = conv2d_input(value.shape, weight, gradient, padding=1)  # type: ignore[no-untyped-call]
        return of_value, of_weight, rows.sum(0)


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
