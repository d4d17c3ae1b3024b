"""The torch module of an architecture, for the torch engine, training and losses."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from .architectures import Architecture
from .errors import ModelError
from .heads import ACTIVATIONS
from .labels import Labels
from .module_layers import torch_layer
from .network import Network, Provenance
from .parameters import Parameter, contiguous
from .preprocessing import Preprocessing

BATCH_NORM = {"scale": "weight", "mean": "running_mean", "variance": "running_var"}  # torch's names for the same roles
LEARN = ("convolution", "linear")


class Module(nn.Sequential):
    """An architecture as a torch module. Layers have Caffe's names: conv1_1, bn1_1, relu1_1, pool1, fc6, drop6.

    Args:
        architecture: table of the layers.
        dropout: probability of dropout where the head gives none: after fc6 and fc7; with the `gap` head, before fc8.
    """

    def __init__(self, architecture: Architecture, dropout: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture
        self.frozen = 0  # number of first layers that don't learn
        self._values: list[str] = []  # that the layers compute, as in `Layer.value`
        for layer in architecture.layers:
            name = layer.name
            if layer.operation in ACTIVATIONS:
                name = name.replace("conv", layer.operation).replace("fc", layer.operation)
            self.add_module(name, torch_layer(layer, architecture, dropout))
            self._values.append(layer.value)

    @classmethod
    def of(cls, network: Network) -> "Module":
        """A network for inference, in evaluation mode, with batch normalisation folded into the convolutions.

        Its parameters are buffers outside the state dictionary: nothing trains or saves them. Contiguous float32 parameters
        are not copied, so a mapped file is read in place.
        """
        network = network.fold_batch_norm()
        with torch.device("meta"):  # allocates nothing
            module = cls(network.architecture)
        for layer, role, name in module._roles():
            value = tensor(network.parameters[name]).reshape(getattr(layer, role).shape)
            delattr(layer, role)
            layer.register_buffer(role, value, persistent=False)
        return module.eval()

    def forward(self, batch: torch.Tensor, outputs: Sequence[str] = (), start: int = 0) -> Any:
        """Logits, or named values; computes nothing after the last value that is needed.

        If the first linear layer reads a map, images larger than `input_size` give a map from there on: the linear layers at
        each position where the first fits, as in the paper's dense evaluation.

        Args:
            batch: normalised images [batch, 3, height, width]; with `start`, the value of the layer before it.
            outputs: names as in `Architecture.values`.
            start: index of the first layer to compute; see `end_of`.

        Returns:
            Logits [batch, classes]; with `outputs`, a dictionary of tensors by name.
        """
        found = {}
        wanted = set(outputs or ("logits",))
        # The children themselves: torch's tools copy them (DataParallel) or replace them (SyncBatchNorm, checkpointing).
        for value, layer in list(zip(self._values, self, strict=True))[start:]:
            batch = layer(batch)
            if value in wanted:
                found[value] = batch
                if len(found) == len(wanted):
                    break
        return found if outputs else batch

    def initialise(self, *, identity: bool = False) -> None:
        """Set random parameters: He's normal distribution, by fan-out in convolutions, by fan-in in linear layers; biases 0.

        Convolutions are initialised as by the zoo and torchvision. Both initialise linear layers with a standard deviation of
        0.01, which is nearly the same for the paper's fc6; He's fits layers of any width.

        With `identity`, each convolution but the first one passes on its input channels, in its first filters; only filters
        beyond the number of channels are random (Jordan, arXiv 2404.00498, section 3.3).
        """
        convolutions = [layer for layer in self if isinstance(layer, nn.Conv2d)]
        linear = [layer for layer in self if isinstance(layer, nn.Linear)]
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if identity and layer is not convolutions[0]:
                    nn.init.dirac_(layer.weight[: layer.in_channels])
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, math.sqrt((2 if layer is not linear[-1] else 1) / layer.in_features))
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def load(self, network: Network, names: Mapping[str, str] | None = None) -> None:
        """Copy a network's parameters; `names` restricts them to these layers, each with its name in the network."""
        with torch.no_grad():
            for layer, role, name in self._roles():
                own, _, kind = name.partition(".")
                if names is None or own in names:
                    target = getattr(layer, role)
                    target.copy_(tensor(network.parameters[f"{names[own] if names else own}.{kind}"]).reshape(target.shape))

    def load_matching(self, network: Network) -> set[str]:
        """Copy the parameters of another network that fit, as the paper initialised its deeper networks from its net A.

        From the same architecture, all layers of the same shape; from another, its first four convolutions and the layers of
        its head, if the shapes are the same. The last layer is not copied if the number of classes differs.

        Returns:
            The names of the layers that were copied.

        Raises:
            ModelError: no layer fits.
        """
        theirs, ours = network.architecture, self.architecture
        names = {
            layer.name
            for layer in ours.layers
            if layer.parameters
            and all(theirs.parameters.get(f"{layer.name}.{role}") == s for role, s in layer.parameters.items())
        }
        if theirs.name != ours.name:
            first = [layer.name for layer in theirs.layers if layer.operation == "convolution"][:4]
            trunk = {*first, *(name.replace("conv", "bn") for name in first)}
            names = {name for name in names if name in trunk or "_" not in name}
        if not names:
            raise ModelError(f"no layer of {theirs.name} fits {ours.name} of width {ours.width:g}")
        self.load(network, {name: name for name in names})
        return names

    def network(self, preprocessing: Preprocessing, labels: Labels | None, provenance: Provenance) -> Network:
        """The trained network, with a float32 copy of the parameters."""
        parameters = {
            name: getattr(layer, role).detach().cpu().numpy().reshape(self.architecture.parameters[name]).copy()
            for layer, role, name in self._roles()
        }
        return Network(self.architecture, parameters, preprocessing, labels, provenance)

    def _roles(self) -> Iterator[tuple[nn.Module, str, str]]:
        """Each parameter's layer, its name in that layer, and its name in a Network."""
        for layer in self.architecture.layers:
            for role in layer.parameters:
                renamed = BATCH_NORM.get(role, role) if layer.operation == "batch_norm" else role
                yield self.get_submodule(layer.name), renamed, f"{layer.name}.{role}"

    def freeze(self, end: int) -> None:
        """Stop the layers before index `end` from learning and from updating their batch normalisation."""
        self.frozen = end
        for layer in list(self)[:end]:
            layer.requires_grad_(False)

    def train(self, mode: bool = True) -> "Module":
        super().train(mode)
        for layer in list(self)[: self.frozen]:
            layer.eval()
        return self

    def index_of(self, value: str) -> int:
        """Index of the layer that computes a value. Raises ModelError if the value is unknown."""
        self.architecture.check_values([value])
        return self._values.index(value)

    def end_of(self, name: str) -> tuple[int, str]:
        """The end of a block (`conv4`) or layer (`conv4_2`, `fc6`), with the layers without parameters that follow it.

        Returns:
            Index of the next layer, and the name of the value before it, such as `pool4`.

        Raises:
            ModelError: the layer is unknown, or no layer with parameters follows it.
        """
        layers, last = self.architecture.layers, None
        for index, layer in enumerate(layers):
            if layer.name == name or layer.name.startswith(f"{name}_"):
                last = index
        if last is None:
            names = ", ".join(dict.fromkeys(layer.name.split("_")[0] for layer in layers if layer.operation in LEARN))
            raise ModelError(f"unknown layer {name!r} of {self.architecture.name}; choose from {names}")
        values: list[str] = []
        for layer in layers[last:]:
            if values and layer.operation in LEARN:
                break
            if layer.value in self.architecture.values or not values:
                values.append(layer.value)
        if values[-1] == layers[-1].value:
            raise ModelError(f"{name} is the last layer of {self.architecture.name}; no layer is left to train")
        return self.index_of(values[-1]) + 1, values[-1]

    def groups(self) -> list[tuple[str, nn.Module]]:
        """The layers that learn, each with its block: conv1 … conv5, fc6, fc7, …

        A batch normalisation belongs to the layer before it, one before the first linear layer to that.
        """
        learning = list(self.named_children())[self.frozen :]
        found = [(_block(name), layer) for name, layer in learning if any(True for _ in layer.parameters(recurse=False))]
        return [("fc6" if block == "fc5" else block, layer) for block, layer in found]


def _block(name: str) -> str:
    """The block of a layer: conv1 of conv1_2 and bn1_2, fc6 of fc6 and bn6."""
    return name.replace("bn", "conv" if "_" in name else "fc").split("_")[0]


class Normalisation(nn.Module):
    """The normalisation of a preprocessing for batches of RGB images [batch, 3, height, width].

    White is `maximum`, 255 or 1.
    """

    def __init__(self, preprocessing: Preprocessing, maximum: float = 255) -> None:
        super().__init__()
        self.reversed = preprocessing.channels == "BGR"
        scale = [preprocessing.scale * 255 / maximum] * 3
        for role, numbers in (("scale", scale), ("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(role, torch.tensor(numbers, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale, mean, std = map(self.get_buffer, ("scale", "mean", "std"))
        return ((images.flip(1) if self.reversed else images) * scale - mean) / std


def tensor(value: Parameter, dtype: type[np.generic] = np.float32) -> torch.Tensor:
    """A tensor that shares the memory of a contiguous array of this dtype; other parameters are converted.

    torch warns about read-only arrays, such as mapped ones, so the array is passed as writable. Never write to the tensor.
    """
    array = contiguous(value, dtype)
    writable = {**array.__array_interface__, "data": (array.ctypes.data, False)}
    return torch.from_numpy(np.asarray(SimpleNamespace(array=array, __array_interface__=writable)))
