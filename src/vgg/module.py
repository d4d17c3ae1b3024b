"""A network as a torch module that learns, made from the architecture's own table."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from .architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Architecture, Layer
from .errors import ModelError
from .labels import Labels
from .network import Network, Provenance
from .parameters import contiguous
from .preprocessing import Preprocessing

BATCH_NORM = {"scale": "weight", "mean": "running_mean", "variance": "running_var"}  # torch's names of its parameters


class Module(nn.Sequential):
    """A network's layers as torch's own, under the names that Caffe gave them: conv1_1, bn1_1, relu1_1, pool1, fc6, drop6.

    Args:
        architecture: what to build.
        dropout: the share of fc6's and fc7's units that a step leaves out; with the `gap` head, of what fc8 gets.
    """

    def __init__(self, architecture: Architecture, dropout: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture
        self.frozen = 0  # so many of the first layers don't learn
        self._values: list[str] = []  # what each layer computes, as in `Architecture.values`
        for layer in architecture.layers:
            name = layer.name.replace("conv", "relu").replace("fc", "relu") if layer.operation == "relu" else layer.name
            if layer.name == "fc8" and architecture.head == "gap":
                self._add("drop7", "", nn.Dropout(dropout))
            self._add(name, layer.value, _made(layer, architecture.epsilon))
            if name in ("relu6", "relu7"):
                self._add(name.replace("relu", "drop"), "", nn.Dropout(dropout))

    def _add(self, name: str, value: str, layer: nn.Module) -> None:
        self.add_module(name, layer)
        self._values.append(value)

    def forward(self, batch: torch.Tensor, also: tuple[str, ...] = (), start: int = 0) -> Any:
        """Logits [batch, classes] of a batch [batch, 3, height, width].

        Args:
            batch: normalised pictures, or, where `start` is not 0, the value of the layer before it.
            also: further values that are wanted: the result is then a list, the logits first.
            start: the place of the first layer that computes; see `end_of`.
        """
        found = {}
        for value, layer in list(zip(self._values, self, strict=True))[start:]:
            batch = layer(batch)
            if value in also:
                found[value] = batch
        return [batch, *(found[name] for name in also)] if also else batch

    def initialise(self) -> None:
        """Random parameters: He's normal distribution, by fan-out in convolutions, by fan-in in linear layers; biases of 0.

        The zoo's and torchvision's convolutions begin so. Both begin linear layers with a deviation of 0.01, which for the
        paper's fc6 is nearly the same; this one fits layers of any width.
        """
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, math.sqrt((2 if layer is not self[-1] else 1) / layer.in_features))
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def load(self, network: Network, names: set[str] | None = None) -> None:
        """Take over a network's parameters; of these layers only, where they are given."""
        with torch.no_grad():
            for layer, name, tensor in self._tensors():
                if names is None or layer in names:
                    value = contiguous(network.parameters[name], np.float32)
                    tensor.copy_(torch.from_numpy(np.array(value)).reshape(tensor.shape))

    def network(self, preprocessing: Preprocessing, labels: Labels | None, provenance: Provenance) -> Network:
        """The network that has been learnt, its parameters copied, float32."""
        shapes = self.architecture.parameters
        parameters = {name: tensor.detach().cpu().numpy().reshape(shapes[name]).copy() for _, name, tensor in self._tensors()}
        return Network(self.architecture, parameters, preprocessing, labels, provenance)

    def _tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Each parameter's layer, name in a Network, and tensor."""
        for layer in self.architecture.layers:
            for role in layer.parameters:
                renamed = BATCH_NORM.get(role, role) if layer.operation == "batch_norm" else role
                yield layer.name, f"{layer.name}.{role}", getattr(self.get_submodule(layer.name), renamed)

    def freeze(self, end: int) -> None:
        """Let the layers before a place be as they are: they neither learn nor update their batch normalisation."""
        self.frozen = end
        for layer in list(self)[:end]:
            layer.requires_grad_(False)

    def train(self, mode: bool = True) -> "Module":
        super().train(mode)
        for layer in list(self)[: self.frozen]:
            layer.eval()
        return self

    def place_of(self, value: str) -> int:
        """The place of the layer that computes a value. Raises ModelError where there is no such value."""
        self.architecture.check_values([value])
        return self._values.index(value)

    def end_of(self, name: str) -> tuple[int, str]:
        """The place after a block (`conv4`) or layer (`conv4_2`, `fc6`), and the value that is complete there (`pool4`).

        What follows without parameters, such as the block's pooling, belongs to it. Raises ModelError where there is no such
        layer, or nothing after it that could learn.
        """
        layers, found = self.architecture.layers, None
        for place, layer in enumerate(layers):
            if layer.name == name or layer.name.startswith(f"{name}_"):
                found = place
        if found is None:
            names = ", ".join(dict.fromkeys(layer.name.split("_")[0] for layer in layers if layer.operation in LEARN))
            raise ModelError(f"{self.architecture.name} has no layers called {name!r}; it has {names}")
        values: list[str] = []
        for layer in layers[found:]:
            if values and layer.operation in LEARN:
                break
            if layer.value in self.architecture.values or not values:
                values.append(layer.value)
        if values[-1] == layers[-1].value:
            raise ModelError(f"{name} is the last layer of {self.architecture.name}; something has to be left to learn")
        return self.place_of(values[-1]) + 1, values[-1]

    def groups(self) -> list[tuple[str, nn.Module]]:
        """The layers that learn, each with its block: conv1 … conv5, fc6, fc7, fc8."""
        return [
            (name.replace("bn", "conv").split("_")[0], layer)
            for name, layer in list(self.named_children())[self.frozen :]
            if any(True for _ in layer.parameters(recurse=False))
        ]


def results(module: Any, inputs: torch.Tensor, also: tuple[str, ...], start: int = 0) -> list[torch.Tensor]:
    """A module's logits, and the further values that are wanted."""
    found = module(inputs, also, start)
    return found if also else [found]


LEARN = ("convolution", "linear")


def _made(layer: Layer, epsilon: float) -> nn.Module:
    shape = layer.parameters.get("weight", ())
    match layer.operation:
        case "convolution":
            return nn.Conv2d(shape[1], shape[0], shape[2], padding=shape[2] // 2)
        case "batch_norm":
            return nn.BatchNorm2d(layer.parameters["scale"][0], eps=epsilon)
        case "relu":
            return nn.ReLU(inplace=True)  # nobody can ask for what it was before
        case "lrn":
            return nn.LocalResponseNorm(LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K)
        case "max_pool":
            return nn.MaxPool2d(2)
        case "average_pool":
            return nn.AdaptiveAvgPool2d(1)
        case "flatten":
            return nn.Flatten()
        case "linear":
            return nn.Linear(math.prod(shape[1:]), shape[0])


def started(module: Module, network: Network) -> None:
    """Begin with another network's parameters, as the paper began its deeper networks with its shallowest, A.

    From one of the same architecture, all layers; from another one, its first four convolutions and its linear layers, those
    that have the same name and shapes. The number of classes need not be the same; fc8 then begins at random.

    Raises ModelError where nothing fits.
    """
    theirs, ours = network.architecture, module.architecture
    fits = {
        layer.name
        for layer in ours.layers
        if layer.parameters and all(theirs.parameters.get(f"{layer.name}.{role}") == s for role, s in layer.parameters.items())
    }
    if theirs.name != ours.name:
        first = [layer.name for layer in theirs.layers if layer.operation == "convolution"][:4]
        fits &= {*first, *(name.replace("conv", "bn") for name in first), "fc6", "fc7", "fc8"}
    if not fits:
        raise ModelError(f"no layer of {theirs.name} fits into {ours.name} of width {ours.width:g}")
    module.load(network, fits)
