"""From another library's parameters to the paper's names.

A reader hands over a file's layers in order, each with its arrays turned to our orientation and the keys they have in the
file. Here the architecture is recognised from the shapes, and what doesn't fit is named by its key.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..architectures import Architecture, recognise
from ..arrays import Array
from ..errors import ModelError
from ..parameters import LowRank, Parameter, expanded, shaped

Bare = tuple[Architecture, dict[str, Parameter]]  # what another's file holds: no preprocessing, no labels


@dataclass(frozen=True)
class Found:
    """One array of a file: the key it has there, and its value, [out, in, height, width] or [out, in] or [out]."""

    key: str
    value: Parameter


Layer = dict[str, Found]  # by role: weight and bias, or scale, bias, mean and variance


def assemble(
    path: object, layers: Sequence[Layer], *, epsilon: float = 1e-5, channels_last: bool = False, lrn: bool = False
) -> Bare:
    """The architecture that a file's layers form, and its parameters under the paper's names.

    Args:
        path: the file, for errors.
        layers: in the order of execution.
        epsilon: of the batch normalisation.
        channels_last: fc6 reads its input flattened as height, width, channels.
        lrn: whether the first convolution's response is normalised, which no parameter shows.

    Raises:
        ModelError: naming the first key that doesn't fit, what was expected and what was found.
    """
    weights = [layer["weight"].value.shape for layer in layers if "weight" in layer]
    convolutions = [shape for shape in weights if len(shape) == 4]
    linear = [shape for shape in weights if len(shape) == 2]
    batch_norm = any("mean" in layer for layer in layers)
    architecture = recognise(convolutions, linear, batch_norm=batch_norm, epsilon=epsilon, lrn=lrn)
    wanted = [layer for layer in architecture.layers if layer.parameters]
    parameters: dict[str, Parameter] = {}
    for ours, theirs in zip(wanted, layers, strict=False):
        for role, shape in ours.parameters.items():
            name = f"{ours.name}.{role}"
            found = theirs.get(role)
            if found is None:
                if role == "bias" and batch_norm and ours.operation == "convolution" and "weight" in theirs:
                    parameters[name] = np.zeros(shape, np.float32)  # what the normalisation would take off again
                    continue
                first = next(iter(theirs.values()))
                raise misfit(path, first.key, first.value.shape, f"{name} {list(shape)}")
            parameters[name] = _fitted(path, found, name, shape, channels_last)
    if len(layers) < len(wanted):
        missing = wanted[len(layers)]
        raise ModelError(
            f"{path}: is not a whole VGG network: {len(layers)} of the {len(wanted)} layers of {architecture.name} are "
            f"there; {missing.name}.weight {list(missing.parameters['weight'])} is missing"
            if "weight" in missing.parameters
            else f"{path}: is not a whole VGG network: {missing.name} is missing"
        )
    if len(layers) > len(wanted):
        extra = next(iter(layers[len(wanted)].values()))
        raise misfit(path, extra.key, extra.value.shape, f"nothing after the last layer of {architecture.name}")
    return architecture, parameters


def misfit(path: object, key: str, shape: Sequence[int], expected: str) -> ModelError:
    """The error for a file that is no VGG network we know, by the first key that shows it."""
    return ModelError(f"{path}: is not a VGG network: expected {expected}, found {key} {list(shape)}")


def _mapped(value: Parameter, shape: tuple[int, ...]) -> Parameter:
    """fc6's weight, [units, inputs], as it sees a map."""
    if isinstance(value, LowRank):
        return LowRank(value.left, shaped(value.right, (value.right.shape[0], *shape[1:])))
    return shaped(value, shape)


def _fitted(path: object, found: Found, name: str, shape: tuple[int, ...], channels_last: bool) -> Parameter:
    value = found.value
    if name == "fc6.weight" and len(value.shape) == 2 and value.shape == (shape[0], math.prod(shape[1:])):
        units, channels, height, width = shape
        if channels_last:
            value = expanded(value).T.reshape(height, width, channels, units).transpose(3, 2, 0, 1)
        else:
            value = _mapped(value, shape)
    if value.shape != shape:
        raise misfit(path, found.key, found.value.shape, f"{name} {list(shape)}")
    if isinstance(value, np.ndarray) and value.dtype.name not in ("float32", "float16", "bfloat16"):
        if value.dtype != np.float64:
            raise ModelError(f"{path}: is not a VGG network: {found.key} holds {value.dtype.name}, not floats")
        return value.astype(np.float32)
    return value


# The keys of torchvision's and timm's state dictionaries. A layer's number is its place in the Sequential; timm's first
# two linear layers are convolutions over the whole map, 7x7 and 1x1.
_FEATURES = re.compile(r"features\.(\d+)\.(\w+)")
_HEADS = {"classifier.0": 0, "classifier.3": 1, "classifier.6": 2, "pre_logits.fc1": 0, "pre_logits.fc2": 1, "head.fc": 2}
_PAPER = re.compile(r"(conv|bn|fc)(\d)((?<!fc\d)_\d|(?<=fc\d))\.(\w+)")
_NORM_ROLES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
_WRAPPERS = ("module.", "model.", "_orig_mod.", "backbone.")


def from_state_dict(path: object, state: Mapping[str, Array]) -> Bare:
    """The network in a torch state dictionary with torchvision's, timm's or the paper's keys."""
    layers: dict[tuple[int, ...], Layer] = {}
    norms = {match[1] for key in state if (match := _FEATURES.fullmatch(_bare(key))) and match[2] == "running_mean"}
    for key, value in state.items():
        bare = _bare(key)
        if bare.endswith("num_batches_tracked"):
            continue
        if match := _FEATURES.fullmatch(bare):
            place: tuple[int, ...] = (0, int(match[1]))
            role = _NORM_ROLES.get(match[2]) if match[1] in norms else match[2]
        elif bare.rpartition(".")[0] in _HEADS:
            layer, _, role = bare.rpartition(".")
            place = (1, _HEADS[layer])
            value = value.reshape(len(value), -1) if role == "weight" else value
        elif match := _PAPER.fullmatch(bare):
            place = (match[1] == "fc", int(match[2]), int(match[3][1:] or 0), match[1] == "bn")
            role = match[4]
            value = value.reshape(len(value), -1) if match[1] == "fc" and role == "weight" else value
        else:
            role = None
        if role not in ("weight", "bias", "scale", "mean", "variance"):
            raise misfit(path, key, value.shape, "a key such as features.0.weight [64, 3, 3, 3]")
        layers.setdefault(place, {})[role] = Found(key, value)
    return assemble(path, [layers[place] for place in sorted(layers)])


def _bare(key: str) -> str:
    """A key without what a data-parallel or compiled module puts before it."""
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key
