"""The layer outputs that a loss compares."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..architectures import BLOCK_POOLINGS
from ..errors import ModelError
from ..heads import ACTIVATIONS
from ..module import Module, Normalisation
from ..network import Network
from ..perceptual import headless

RAW = ".raw"  # ends the name of a convolution's output before its activation, as in `conv5_4.raw`


class Values(nn.Module):
    """Named layer outputs of a network's convolutions, with gradients with respect to the images.

    Args:
        network: the network. Batch normalisation is folded into the convolutions, so the output before an activation is the
            one after batch normalisation.
        names: layer outputs, such as `conv3_4` or `pool4`, and `conv3_4.raw` before the ReLU.
        recompute: keep only the values at the ends of the blocks for the backward pass, and compute the others again.
    """

    def __init__(self, network: Network, names: Sequence[str], recompute: bool = False) -> None:
        super().__init__()
        self.names = tuple(dict.fromkeys(names))
        self.recompute = recompute
        network = trimmed(network, self.names).fold_batch_norm()
        self.normalisation = Normalisation(network.preprocessing, maximum=1)
        self.module = fixed(network)
        for layer in self.module:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # or it would replace the value before it

    def train(self, mode: bool = True) -> "Values":
        """Stays in evaluation mode, whatever the mode of the module that contains it."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The values by name, [batch, channels, rows, columns], of images [batch, 3, height, width], 0..1."""
        value = self.normalisation(images)
        if not (self.recompute and torch.is_grad_enabled()):
            return dict(self.module(value, self.names))
        found: dict[str, torch.Tensor] = {}
        layers, start = self.module.architecture.layers, 0
        for end, layer in enumerate(layers, 1):
            if layer.operation in BLOCK_POOLINGS.values() or end == len(layers):
                names = [one.value for one in layers[start:end] if one.value in self.names or one is layer]
                found |= checkpoint(self.module, value, names, start, use_reentrant=False)
                value, start = found[layer.value], end
        return {name: found[name] for name in self.names}


def fixed(network: Network) -> Module:
    """A network for inference with memory of its own: others, such as DistributedDataParallel, write to a module's buffers."""
    return copy.deepcopy(Module.of(network))


def trimmed(network: Network, names: Sequence[str]) -> Network:
    """A network without its head and the layers after the last of the named values.

    Raises:
        ModelError: the network has no such layer output, or it is no map.
    """
    network = headless(network)
    architecture = network.architecture
    values = [layer.value for layer in architecture.layers]
    for name in names:
        if name not in values:
            known = ", ".join(architecture.values)
            raise ModelError(
                f"{architecture.name} has no layer output {name!r}; choose from {known}; {RAW!r} is before the ReLU"
            )
    last = max(values.index(name) for name in names)
    ends = (*ACTIVATIONS, *BLOCK_POOLINGS.values(), "lrn")
    end = next(index for index in range(last, len(values)) if architecture.layers[index].operation in ends)
    return headless(network, values[end]) if end + 1 < len(values) else network
