"""Losses for training in torch: how different pictures look, and how different their style is, with gradients.

    loss = vgg.torch.PerceptualLoss()
    loss(made, wanted).mean().backward()

Pictures are float tensors [batch, 3, height, width], RGB, 0..1, of any size from 32 on; the networks' own preprocessing is
done inside. Their parameters are buffers: they move with `.to(device)`, learn nothing, and are not in the state dictionary.
"""

from pathlib import Path

from .errors import Error
from .network import Network
from .perceptual import EPSILON, parts

try:
    import torch
    from torch import nn

    from .engines.torch import apply, tensor
except ModuleNotFoundError:
    raise Error("vgg.torch needs torch; `pip install 'vgg[torch]'` brings it") from None


class PerceptualLoss(nn.Module):
    """How different two pictures look: `vgg.perceptual.PerceptualDistance` with gradients.

    Args:
        model, weights: see there.
    """

    def __init__(self, model: str | Path | Network | None = None, weights: str | Path | None = None) -> None:
        super().__init__()
        made = parts(model, weights)
        self.taps = made.taps
        self.values = Values(made.network, made.taps)
        for tap, weight in zip(made.taps, made.weights, strict=True):
            self.register_buffer(tap, torch.tensor(weight)[:, None, None], persistent=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The distance of each pair, [batch], 0 or more, of pictures [batch, 3, height, width], 0..1."""
        total = first.new_zeros(len(first))
        for tap, value in self.values(torch.cat([first, second])).items():
            # Where all channels are 0, this norm's gradient is 0; a square root's would be no number.
            length = torch.linalg.vector_norm(value, dim=1, keepdim=True)
            one, other = (value / (length + EPSILON)).chunk(2)
            total = total + (getattr(self, tap) * (one - other).square()).sum(1).mean((1, 2))
        return total


class StyleLoss(nn.Module):
    """How different two pictures' style is: the squared difference of their channels' correlations (Gram matrices).

    L. Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016: the first convolution of each of
    the five blocks, after the ReLU, a fifth each. The pictures' sizes may differ.

    Args:
        model: see `vgg.perceptual.PerceptualDistance`.
    """

    def __init__(self, model: str | Path | Network | None = None) -> None:
        super().__init__()
        self.values = Values(parts(model).network, tuple(f"conv{block}_1" for block in range(1, 6)))

    def forward(self, picture: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """The difference for each picture, [batch], 0 or more; `style` are as many pictures, or one for all."""
        theirs = self.values(style)
        total = picture.new_zeros(len(picture))
        for name, value in self.values(picture).items():
            total = total + (gram(value) - gram(theirs[name])).square().sum((1, 2)) / 4
        return total / len(theirs)


def gram(value: torch.Tensor) -> torch.Tensor:
    """The Gram matrices [batch, channels, channels] of [batch, channels, rows, columns], divided by the size of one value."""
    flat = value.flatten(2)
    return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


class Values(nn.Module):
    """Some of a network's values, with gradients.

    Args:
        network: without batch normalisation.
        names: of the values, as in `Architecture.values`.
    """

    def __init__(self, network: Network, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, recipe = names, network.preprocessing
        last = max(place for place, layer in enumerate(network.architecture.layers) if layer.value in names)
        self.layers = network.architecture.layers[: last + 1]
        self.reversed = recipe.channels == "BGR"
        for role, numbers in (("scale", [255 * recipe.scale] * 3), ("mean", recipe.mean), ("std", recipe.std)):
            self.register_buffer(role, torch.tensor(numbers, dtype=torch.float32)[:, None, None], persistent=False)
        for layer in self.layers:
            for role in layer.parameters:
                self.register_buffer(
                    f"{layer.name}_{role}", tensor(network.parameters[f"{layer.name}.{role}"]), persistent=False
                )

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """The values by name, [batch, channels, rows, columns], of pictures [batch, 3, height, width], 0..1."""
        value = pictures.flip(1) if self.reversed else pictures
        scale, mean, std = (getattr(self, role) for role in ("scale", "mean", "std"))
        value = (value * scale - mean) / std
        found = {}
        for layer in self.layers:
            value = apply(layer, value, *(getattr(self, f"{layer.name}_{role}") for role in layer.parameters))
            if layer.value in self.names:
                found[layer.value] = value
        return found
