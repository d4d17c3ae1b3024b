"""The layer outputs that a loss compares."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ModelError
from ..heads import ACTIVATIONS, NONE
from ..module import Module, Normalisation
from ..network import Network

RAW = ".raw"  # ends the name of a convolution's output before its activation, as in `conv5_4.raw`


class Values(nn.Module):
    """Named layer outputs of a network's convolutions, with gradients with respect to the images.

    Args:
        network: the network; its parameters are not copied where possible. Batch normalisation is folded into the
            convolutions, so the output before an activation is the one after batch normalisation.
        names: layer outputs, such as `conv3_4` or `pool4`, and `conv3_4.raw` before the ReLU.
        recompute: keep only the values at the ends of the blocks for the backward pass, and compute the others again.
    """

    def __init__(self, network: Network, names: Sequence[str], recompute: bool = False) -> None:
        super().__init__()
        self.names = tuple(dict.fromkeys(names))
        self.recompute = recompute
        network = trimmed(network, self.names).fold_batch_norm()
        self.normalisation = Normalisation(network.preprocessing, maximum=1)
        self.module = Module.of(network)
        for layer in self.module:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # or it would replace the value before it

    def train(self, mode: bool = True) -> "Values":
        """Stays in evaluation mode, whatever the mode of the module that contains it."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The values by name, [batch, channels, rows, columns], of images [batch, 3, height, width], 0..1."""
        value = self.normalisation(images)
        found: dict[str, torch.Tensor] = {}
        for start, end in self._blocks():
            if self.recompute and torch.is_grad_enabled():
                value, part = checkpoint(self._run, value, start, end, use_reentrant=False)
            else:
                value, part = self._run(value, start, end)
            found |= part
        return {name: found[name] for name in self.names}

    def _run(self, value: torch.Tensor, start: int, end: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The value after the layers start to end, and the named ones among them."""
        found: dict[str, torch.Tensor] = {}
        for index, layer in zip(range(start, end), list(self.module)[start:end], strict=True):
            value = layer(value)
            if (name := self._value(index)) in self.names:
                found[name] = value
        return value, found

    def _value(self, index: int) -> str:
        return self.module.architecture.layers[index].value

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """The first layer and the end of each block."""
        start, layers = 0, self.module.architecture.layers
        for index, layer in enumerate(layers, 1):
            if layer.operation == "max_pool" or index == len(layers):
                yield start, index
                start = index


def trimmed(network: Network, names: Sequence[str]) -> Network:
    """A network without its head and the layers after the last of the named values.

    Raises:
        ModelError: the network has no such layer output, or it is no map.
    """
    architecture = replace(network.architecture, head=NONE, classes=0, last="")
    values = [layer.value for layer in architecture.layers]
    for name in names:
        if name not in values:
            known = ", ".join(value for value in architecture.values)
            raise ModelError(
                f"{architecture.name} has no layer output {name!r}; choose from {known}, or {values[0]!r} and alike"
            )
    last = max(values.index(name) for name in names)
    end = next(
        index for index in range(last, len(values)) if architecture.layers[index].operation in (*ACTIVATIONS, "max_pool", "lrn")
    )
    architecture = replace(architecture, last=values[end] if end + 1 < len(values) else "")
    parameters = {name: network.parameters[name] for name in architecture.parameters}
    return replace(network, architecture=architecture, parameters=parameters, labels=None)
