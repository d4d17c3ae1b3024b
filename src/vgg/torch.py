"""Losses for training in torch: perceptual distance and difference of style, with gradients.

    loss = vgg.torch.PerceptualLoss()
    loss(generated, target).mean().backward()

Images are float tensors [batch, 3, height, width], RGB, 0..1, of 32x32 pixels or more; the losses apply the network's
preprocessing. The networks' parameters are buffers: they move with `.to(device)`, don't learn, and are not in the state
dictionary.
"""

from collections.abc import Sequence
from pathlib import Path

from .extras import require
from .network import Network
from .perceptual import EPSILON, parts

require("vgg.torch", "torch", "torch")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from .module import Module, Normalisation  # noqa: E402


class PerceptualLoss(nn.Module):
    """Perceptual distance of two images: `vgg.perceptual.PerceptualDistance` with gradients.

    Args:
        model: see `vgg.perceptual.PerceptualDistance`.
        weights: see `vgg.perceptual.PerceptualDistance`.
        layers: see `vgg.perceptual.PerceptualDistance`.
    """

    def __init__(
        self, model: str | Path | Network | None = None, weights: str | Path | None = None, layers: Sequence[str] = ()
    ) -> None:
        super().__init__()
        distance = parts(model, weights, layers)
        self.values = Values(distance.network, distance.taps)
        for tap, weight in zip(distance.taps, distance.weights, strict=True):
            self.register_buffer(tap, torch.tensor(weight)[:, None, None], persistent=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The distance of each pair, [batch], 0 or more, of images [batch, 3, height, width], 0..1."""
        total = first.new_zeros(len(first))
        for tap, value in self.values(torch.cat([first, second])).items():
            # The gradient of this norm is 0 where all channels are 0; that of a square root would be NaN.
            length = torch.linalg.vector_norm(value, dim=1, keepdim=True)
            one, other = (value / (length + EPSILON)).chunk(2)
            total = total + (getattr(self, tap) * (one - other).square()).sum(1).mean((1, 2))
        return total


class StyleLoss(nn.Module):
    """Difference of style of two images: the squared difference of the Gram matrices of their channels.

    L. Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016: the first convolution of each of
    the five blocks, after the ReLU, with equal weights; of a backbone, those that it has. The images' sizes may differ.

    Args:
        model: see `vgg.perceptual.PerceptualDistance`.
    """

    def __init__(self, model: str | Path | Network | None = None) -> None:
        super().__init__()
        network = parts(model).network
        names = (f"conv{block}_1" for block in range(1, 6))
        self.values = Values(network, tuple(name for name in names if name in network.architecture.values))

    def forward(self, images: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """The difference of each image, [batch], 0 or more; `style` has as many images, or one for all."""
        targets = self.values(style)
        total = images.new_zeros(len(images))
        for name, value in self.values(images).items():
            total = total + (gram(value) - gram(targets[name])).square().sum((1, 2)) / 4
        return total / len(targets)


def gram(value: torch.Tensor) -> torch.Tensor:
    """Gram matrices [batch, channels, channels] of [batch, channels, rows, columns], divided by channels * rows * columns."""
    flat = value.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


class Values(nn.Module):
    """Named values of a network, with gradients with respect to the images.

    Args:
        network: the network; its parameters are not copied where possible.
        names: as in `Architecture.values`.
    """

    def __init__(self, network: Network, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.normalisation = Normalisation(network.preprocessing, maximum=1)
        self.module = Module.of(network)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The values by name, [batch, channels, rows, columns], of images [batch, 3, height, width], 0..1."""
        return dict(self.module(self.normalisation(images), self.names))
