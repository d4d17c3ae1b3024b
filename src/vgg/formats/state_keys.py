"""The keys of a network in a state dictionary: torchvision's, timm's or the paper's, for files that are written.

Keys and shapes from torchvision/models/vgg.py and timm/models/vgg.py, whose modules load the files strictly.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np

from ..architectures import CHANNELS, POOLINGS, Architecture, Shape
from ..arrays import Array
from ..errors import ModelError, Notice
from ..heads import FC
from ..network import Network
from ..parameters import LowRank, Quantized, expanded
from ..preprocessing import PRESETS
from . import metadata

Keys = Literal["torchvision", "timm", "paper"]
_NORM = {"scale": "weight", "mean": "running_mean", "variance": "running_var"}  # torch's names of the same roles
_TIMM = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
_SIDE = 7  # of the map that both libraries' heads read
_NORMALISATION = ("channels", "scale", "mean", "std")  # fields of `Preprocessing`


class Stored(NamedTuple):
    """An array under its key in a file, and its shape there; the numbers are in the same order."""

    key: str
    shape: Shape
    value: Array  # of another shape than that in the file, or [1] for a single number


def stored(network: Network, keys: Keys) -> Iterator[Stored]:
    """The arrays of a network as they are written, in the order of the layers.

    Args:
        network: as `prepared` returns it, or any network with the paper's keys.
        keys: batch normalisation has torch's counter `num_batches_tracked` too, except with the paper's keys.
    """
    if keys == "paper":
        for name, value in network.tensors().items():
            yield Stored(name, value.shape, value)
        return
    for key, name, shape in _keys(network.architecture, keys):
        yield Stored(key, shape, expanded(network.parameters[name]))
        if name.endswith(".variance"):
            yield Stored(f"{key.removesuffix('running_var')}num_batches_tracked", (), np.zeros(1, np.int64))


def restored(path: object, text: Mapping[str, str], tensors: Mapping[str, Array]) -> Mapping[str, Array]:
    """The arrays of a file with this metadata, under the paper's names."""
    keys = text.get(metadata.KEYS, "paper")
    if keys == "paper":
        return tensors
    if keys not in ("torchvision", "timm"):
        raise ModelError(f"{path}: damaged metadata entry {metadata.KEYS!r}")
    pairs = _keys(metadata.architecture(path, text), keys)
    return {name: tensors[key] for key, name, _ in pairs if key in tensors}


def prepared(path: object, network: Network, keys: Keys) -> Network:
    """The network in floats, with torch's epsilon; what changes and what a module must be like is a Notice.

    Raises:
        ModelError: the keys can't express the network.
    """
    architecture, notes = network.architecture, []
    if any(isinstance(value, Quantized | LowRank) for value in network.parameters.values()):
        notes.append("quantized and low-rank weights are written as float32 matrices")
        network = replace(network, parameters={name: expanded(value) for name, value in network.parameters.items()})
    if keys == "paper":
        _note(path, notes)
        return network
    if architecture.configuration.lrn:
        raise ModelError(f"{path}: {keys} has no local response normalisation, which {architecture.name} has; use --keys paper")
    head = architecture.classifier
    fits = head is not None and head.maps and architecture.parameters["fc6.weight"][2:] == (_SIDE, _SIDE)
    if keys == "timm" and not (
        fits and head and [s.operation for s in head.bare().steps] == [s.operation for s in FC.bare().steps]
    ):
        raise ModelError(
            f"{path}: timm's head is the paper's fc6, fc7 and fc8 over a map of 7x7, not {architecture.head!r} of "
            f"{architecture.input_size} pixels; use --keys torchvision"
        )
    if differences := _differences(architecture):
        notes.append(
            f"it has {' and '.join(differences)}, unlike {keys}'s networks; build such a module before loading the file"
        )
    if architecture.epsilon != Architecture.epsilon and any(name.endswith(".variance") for name in architecture.parameters):
        shift = architecture.epsilon - Architecture.epsilon
        notes.append(
            f"variances are changed by {shift:.3g}, since torch adds an epsilon of 1e-05, not {architecture.epsilon:.3g}"
        )
        changed = {
            name: (np.asarray(value, np.float64) + shift).astype(np.float32) if name.endswith(".variance") else value
            for name, value in network.parameters.items()
        }
        network = replace(network, architecture=replace(architecture, epsilon=Architecture.epsilon), parameters=changed)
    own, usual = network.preprocessing, PRESETS["torchvision"]
    if any(getattr(own, field) != getattr(usual, field) for field in _NORMALISATION):
        notes.append(f"its input is that of the preprocessing {own.name!r}, not {keys}'s")
    _note(path, notes)
    return network


def _note(path: object, notes: list[str]) -> None:
    if notes:
        warnings.warn(Notice(f"{path}: {'; '.join(notes)}"), stacklevel=4)


def _differences(architecture: Architecture) -> list[str]:
    """What a network has that the classes of torchvision and timm don't have."""
    found, head = [], architecture.classifier
    if architecture.configuration.pointwise:
        found.append("1x1 convolutions")
    if architecture.channels or architecture.width != 1:
        found.append(f"other channels than {', '.join(map(str, CHANNELS))}")
    if head is None:
        found.append(f"{architecture.values[-1]} as the last layer")
    elif architecture.head != "fc":
        found.append(f"the head {architecture.head!r}")
    elif architecture.parameters["fc6.weight"][-1] != _SIDE:
        found.append(f"a head for {architecture.input_size} pixels")
    return found


def _keys(architecture: Architecture, keys: str) -> Iterator[tuple[str, str, Shape]]:
    """The key and the shape in a file of each parameter, with its name in the paper.

    In torchvision's modules, each layer has its number in the Sequential `features` or `classifier`; a pooling between them
    is a module of its own.
    """
    part, number = "features", 0
    for layer in architecture.layers:
        if layer.operation == "flatten":
            part, number = "classifier", 0
        elif layer.operation not in POOLINGS:
            place, norm = f"{part}.{number}", layer.operation == "batch_norm"
            number += 1
            for role, shape in layer.parameters.items():
                name = _NORM.get(role, role) if norm else role
                flat = layer.operation == "linear" and role == "weight"
                if keys == "timm":
                    whole = (*shape, 1, 1)[:4] if flat and place != "classifier.6" else shape
                    yield f"{_TIMM.get(place, place)}.{name}", f"{layer.name}.{role}", whole
                else:
                    whole = (shape[0], int(np.prod(shape[1:]))) if flat else shape
                    yield f"{place}.{name}", f"{layer.name}.{role}", whole
