"""The terms of a loss: how the layer outputs of two images are compared.

Each term returns a number for each image, float32 [batch]. Terms compute in float32, also of half-precision layer outputs and
under autocast, since sums over a map overflow in float16.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch

from ..errors import Error

Norm = Literal["l1", "l2"]
Found = Mapping[str, torch.Tensor]  # layer outputs by name, [batch, channels, rows, columns]
IMAGE = "image"  # the name of the image itself among the layer outputs
EPSILON = 1e-5  # of a variance and of a relative distance


class Term(Protocol):
    """A part of a loss."""

    @property
    def layers(self) -> Mapping[str, float]:
        """The layer outputs that it compares, each with its weight."""

    def __call__(self, images: Found, targets: Found) -> torch.Tensor:
        """The weighted sum over the layers, float32 [batch], 0 or more. Targets may have a batch of 1."""


@dataclass(frozen=True)
class Difference:
    """The mean absolute (`l1`) or squared (`l2`) difference of layer outputs. Raises Error for another norm."""

    layers: Mapping[str, float]
    norm: Norm = "l2"

    def __post_init__(self) -> None:
        _check(self.norm)

    def __call__(self, images: Found, targets: Found) -> torch.Tensor:
        return _summed(self.layers, images, targets, lambda one, other: _size(one - other, self.norm).mean((1, 2, 3)))


@dataclass(frozen=True)
class Gram:
    """The squared difference of the Gram matrices of the channels, a difference of style; sizes may differ.

    L. Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, and J. Johnson et al., "Perceptual
    Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016, equation 3. The matrices are divided by channels *
    rows * columns.
    """

    layers: Mapping[str, float]

    def __call__(self, images: Found, targets: Found) -> torch.Tensor:
        return _summed(self.layers, images, targets, lambda one, other: (gram(one) - gram(other)).square().sum((1, 2)))


@dataclass(frozen=True)
class MeanVariance:
    """The squared differences of the channels' means and standard deviations, a difference of style; sizes may differ.

    X. Huang and S. Belongie, "Arbitrary Style Transfer in Real-Time with Adaptive Instance Normalization", ICCV 2017,
    equation 13. The squares are averaged over the channels; 1e-5 is added to a variance.
    """

    layers: Mapping[str, float]

    def __call__(self, images: Found, targets: Found) -> torch.Tensor:
        def difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            means, deviations = zip(*map(_statistics, (one, other)), strict=True)
            distance: torch.Tensor = (means[0] - means[1]).square() + (deviations[0] - deviations[1]).square()
            return distance.mean(1)

        return _summed(self.layers, images, targets, difference)


@dataclass(frozen=True)
class Contextual:
    """The contextual loss: how well each position of a target has a position of the image with similar channels.

    R. Mechrez et al., "The Contextual Loss for Image Transformation with Non-Aligned Data", ECCV 2018, equations 2 to 5:
    cosine distances of the channels, centred by the target's mean, relative to the smallest of each position of the image.
    Sizes may differ. The memory grows with the product of the numbers of positions; use layers of at most 64x64 of them.
    """

    layers: Mapping[str, float]
    bandwidth: float = 0.5

    def __call__(self, images: Found, targets: Found) -> torch.Tensor:
        def difference(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            centre = other.mean((2, 3), keepdim=True)
            ours, theirs = (torch.nn.functional.normalize((value - centre).flatten(2), dim=1) for value in (one, other))
            distance = 1 - ours.transpose(1, 2) @ theirs  # [batch, positions of the image, positions of the target]
            relative = distance / (distance.amin(2, keepdim=True) + EPSILON)
            similarity: torch.Tensor = ((1 - relative) / self.bandwidth).softmax(2)
            return -similarity.amax(1).mean(1).log()

        return _summed(self.layers, images, targets, difference)


@dataclass(frozen=True)
class TotalVariation:
    """The mean absolute (`l1`) or squared (`l2`) difference of neighbouring pixels of the image; the target is not used.

    Raises Error for another norm.
    """

    weight: float = 1.0
    norm: Norm = "l1"
    layers: Mapping[str, float] = field(init=False)

    def __post_init__(self) -> None:
        _check(self.norm)
        object.__setattr__(self, "layers", {IMAGE: self.weight})

    def __call__(self, images: Found, targets: Found) -> torch.Tensor:
        image = wide(images[IMAGE])
        down, across = image[:, :, 1:] - image[:, :, :-1], image[..., 1:] - image[..., :-1]
        return self.weight * (_size(down, self.norm).mean((1, 2, 3)) + _size(across, self.norm).mean((1, 2, 3)))


def gram(value: torch.Tensor) -> torch.Tensor:
    """Gram matrices [batch, channels, channels] of [batch, channels, rows, columns], divided by channels * rows * columns."""
    flat = value.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def wide(value: torch.Tensor) -> torch.Tensor:
    """A tensor in float32 or better."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _statistics(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = torch.var_mean(value, (2, 3), correction=0)
    return mean, (variance + EPSILON).sqrt()


def _check(norm: str) -> None:
    if norm not in get_args(Norm):
        raise Error(f"unknown norm {norm!r}; choose from {', '.join(get_args(Norm))}")


def _size(difference: torch.Tensor, norm: Norm) -> torch.Tensor:
    return difference.abs() if norm == "l1" else difference.square()


def _summed(
    layers: Mapping[str, float], images: Found, targets: Found, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    parts = [weight * compare(wide(images[name]), wide(targets[name])) for name, weight in layers.items()]
    return torch.stack(parts).sum(0)
