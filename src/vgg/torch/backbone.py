"""The multi-scale feature maps of a VGG as a torch module, for segmentation, detection and the like."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..module import Module, Normalisation
from ..network import Network
from ..perceptual import network_of
from .values import fixed, trimmed


class Backbone(nn.Module):
    """Feature maps of a VGG at several scales; `vgg.torch.backbone` makes one.

    Attributes:
        names: the layer outputs, in the order of the network.
        channels: number of channels of each.
        strides: pixels of the image for each position: 1, 2, 4, 8, 16 or 32.
        trunk: the convolutions, with the layers' names in the paper.
    """

    def __init__(self, network: Network, names: tuple[str, ...], trainable: bool, freeze: str, normalise: bool) -> None:
        super().__init__()
        architecture = network.architecture
        shapes = [architecture.shape(name, 1, 32, 32) for name in names]
        self.names = names
        self.channels = tuple(shape[1] for shape in shapes)
        self.strides = tuple(32 // shape[2] for shape in shapes)
        self.normalisation = Normalisation(network.preprocessing, maximum=1) if normalise else nn.Identity()
        self.trainable = trainable
        if trainable:
            self.trunk = Module(architecture)
            self.trunk.load(network)
            if freeze:
                self.trunk.freeze(self.trunk.end_of(freeze)[0])
        else:
            self.trunk = fixed(network)

    def train(self, mode: bool = True) -> "Backbone":
        """Layers that don't learn stay in evaluation mode."""
        super().train(mode)
        if not self.trainable:
            self.trunk.train(False)
        return self

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The feature maps [batch, channels, height / stride, width / stride] in the order of `names`.

        Heights and widths are rounded down.

        Args:
            images: float [batch, 3, height, width], RGB, 0..1, of 32x32 pixels or more; with `normalise=False`, as the
                network's preprocessing returns them.
        """
        found = self.trunk(self.normalisation(images), self.names)
        return [found[name] for name in self.names]


def backbone(
    model: str | Path | Network,
    layers: Sequence[str] = (),
    *,
    trainable: bool = True,
    freeze: str = "",
    normalise: bool = True,
) -> Backbone:
    """The feature maps of any VGG as a torch module.

        encoder = vgg.torch.backbone("torchvision/vgg16-bn", ["pool3", "pool4", "pool5"])
        eighth, sixteenth, last = encoder(images)

    Args:
        model: a file or name as in `vgg.load`, or a Network; with any head, which is not used, or without one.
        layers: layer outputs such as `conv4_3`, after its ReLU, or `pool5`. By default, the last convolution of each block,
            as an encoder of a U-Net.
        trainable: the convolutions learn, and batch normalisation has its own layers. Otherwise they are fixed, as in a loss.
        freeze: last block (`conv2`) or layer (`conv2_2`) of those that don't learn, from the first on.
        normalise: apply the network's preprocessing to images of 0..1.

    Raises:
        ModelError: the file can't be read, or the network has no such layer output.
    """
    network = network_of(model)
    architecture = network.architecture
    if not layers:
        layers = list({name[:5]: name for name in architecture.values if name.startswith("conv")}.values())
    network = trimmed(network, layers)
    network.architecture.check_values(layers)  # without those before a ReLU
    order = network.architecture.values
    names = tuple(sorted(dict.fromkeys(layers), key=order.index))
    return Backbone(network, names, trainable, freeze, normalise)
