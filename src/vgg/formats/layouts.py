"""From another library's parameters to the paper's names.

A reader passes a file's layers in order, each with its arrays in our orientation and their keys in the file. This module
recognises the architecture from the shapes, and reports an array that doesn't fit by its key.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import ModelError, one_line
from ..heads import Head
from ..labels import Labels
from ..parameters import LowRank, Parameter, expanded, shaped
from ..preprocessing import Preprocessing
from .recognition import Shapes, recognise


class Bare(NamedTuple):
    """The content of a file that vgg did not write."""

    architecture: Architecture
    parameters: dict[str, Parameter]
    preprocessing: Preprocessing | None = None  # if the file describes it
    labels: Labels | None = None  # if the file has them
    assumed: str = ""  # what the file doesn't say of its head, and the convention that is used: "ReLU between …"


@dataclass(frozen=True)
class Found:
    """An array of a file: its key there, and its value, [out, in, height, width], [out, in] or [out]."""

    key: str
    value: Parameter


Layer = dict[str, Found]  # by role: weight and bias, or scale, bias, mean and variance


class Forbidden(Exception):
    """A pickle names something other than containers, numbers, text and arrays."""


@contextmanager
def reading(path: object, format: str) -> Iterator[None]:
    """Report whatever a damaged file makes a reader raise as a ModelError."""
    try:
        yield
    except ModelError:
        raise
    except Forbidden as error:
        raise ModelError(
            f"{path}: contains {str(error)[:80]!r}, which is not loaded, because pickles can run code; save arrays alone, in "
            "torch a state_dict"
        ) from None
    except Exception as error:  # h5py, zipfile and pickle raise nearly anything
        raise ModelError(f"{path}: damaged or truncated {format} file ({one_line(error)})") from error


def assemble(
    path: object,
    layers: Sequence[Layer],
    *,
    epsilon: float = 1e-5,
    channels_last: bool = False,
    lrn: bool = False,
    depths: Sequence[int] = (),
    head: Head | None = None,
    input_size: int = 0,
) -> Bare:
    """The architecture of a file's layers, and its parameters under the paper's names.

    Args:
        path: the file, for errors.
        layers: in the order of execution.
        epsilon: of the batch normalisation.
        channels_last: whether the first linear layer reads its input flattened as height, width, channels.
        lrn: whether the first convolution is followed by response normalisation, which has no parameters.
        depths: see `recognition.Shapes`.
        head: the head, if the file shows its activations.
        input_size: side of the input in pixels, if the file shows it.

    Raises:
        ModelError: the layers form no VGG network; the message names the first key that doesn't fit and what was expected.
    """
    weights = [layer["weight"].value.shape for layer in layers if "weight" in layer]
    convolutions = [shape for shape in weights if len(shape) == 4]
    linear = [shape for shape in weights if len(shape) == 2]
    kinds = [
        "norm" if "mean" in layer else len(layer["weight"].value.shape) for layer in layers if {"mean", "weight"} & {*layer}
    ]
    batch_norm = kinds[1:2] == ["norm"]  # after each convolution
    norms = [
        sum(kind == 2 for kind in kinds[:place])
        for place, kind in enumerate(kinds)
        if kind == "norm" and (2 in kinds[:place] or not batch_norm or kinds[place - 1] == "norm")
    ]
    architecture = recognise(Shapes(convolutions, linear, batch_norm, lrn, depths, head, norms, input_size, epsilon))
    wanted = [layer for layer in architecture.layers if layer.parameters]
    parameters: dict[str, Parameter] = {}
    for ours, theirs in zip(wanted, layers, strict=False):
        for role, shape in ours.parameters.items():
            name = f"{ours.name}.{role}"
            found = theirs.get(role)
            if found is None:
                neutral = _neutral(role, theirs)
                if neutral is None:
                    first = next(iter(theirs.values()))
                    raise misfit(path, first.key, first.value.shape, f"{name} {list(shape)}")
                parameters[name] = np.full(shape, neutral, np.float32)
                continue
            parameters[name] = _fitted(path, found, name, shape, channels_last, architecture)
    if len(layers) < len(wanted):
        name, (role, shape) = wanted[len(layers)].name, next(iter(wanted[len(layers)].parameters.items()))
        count = f"it has {len(layers)} of the {len(wanted)} layers of {architecture.name}"
        raise ModelError(f"{path}: not a complete VGG network: {count}; {name}.{role} {list(shape)} is missing")
    if len(layers) > len(wanted):
        extra = next(iter(layers[len(wanted)].values()))
        raise misfit(path, extra.key, extra.value.shape, f"nothing after the last layer of {architecture.name}")
    return Bare(architecture, parameters)


def _neutral(role: str, layer: Layer) -> float | None:
    """The value of a parameter that a layer doesn't have and that then changes nothing; None if it must have it."""
    if role == "bias" and {"weight", "mean"} & {*layer}:
        return 0.0
    return 1.0 if role == "scale" and "mean" in layer else None


def misfit(path: object, key: str, shape: Sequence[int], expected: str) -> ModelError:
    """The error for a file that contains no VGG network, by the first key that shows it."""
    return ModelError(f"{path}: not a VGG network: expected {expected}, found {key} {list(shape)}")


def _mapped(value: Parameter, shape: tuple[int, ...]) -> Parameter:
    """The first linear layer's weight, [units, inputs], as [units, channels, height, width]."""
    if isinstance(value, LowRank):
        return LowRank(value.left, shaped(value.right, (value.right.shape[0], *shape[1:])))
    return shaped(value, shape)


def _fitted(
    path: object, found: Found, name: str, shape: tuple[int, ...], channels_last: bool, architecture: Architecture
) -> Parameter:
    value = found.value
    if len(shape) == 4 and len(value.shape) == 2 and value.shape == (shape[0], math.prod(shape[1:])):
        units, channels, height, width = shape
        if channels_last:
            value = expanded(value).T.reshape(height, width, channels, units).transpose(3, 2, 0, 1)
        else:
            value = _mapped(value, shape)
    if channels_last and name.startswith("bn5.") and value.shape == shape:  # of the elements of a map
        channels = architecture.parameters["fc6.weight"][1]
        value = expanded(value).reshape(-1, channels).T.reshape(-1)
    if value.shape != shape:
        raise misfit(path, found.key, found.value.shape, f"{name} {list(shape)}")
    if isinstance(value, np.ndarray) and value.dtype.name not in ("float32", "float16", "bfloat16"):
        if value.dtype != np.float64:
            raise ModelError(f"{path}: not a VGG network: {found.key} has {value.dtype.name} numbers, not floats")
        return value.astype(np.float32)
    return value


# The keys of torchvision's and timm's state dictionaries. A layer's number is its index in the Sequential; timm's first two
# linear layers are convolutions, 7x7 and 1x1.
_FEATURES = re.compile(r"features\.(\d+)\.(\w+)")
_HEADS = {"classifier.0": 0, "classifier.3": 1, "classifier.6": 2, "pre_logits.fc1": 0, "pre_logits.fc2": 1, "head.fc": 2}
_PAPER = re.compile(r"(conv|bn|fc)(\d)((?<!fc\d)_\d|(?<=fc\d))\.(\w+)")
_NORM_ROLES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
_WRAPPERS = ("module.", "model.", "_orig_mod.", "backbone.")


def from_names(
    path: object, arrays: Mapping[str, Array], parse: Callable[[str], tuple[tuple[int, ...], str | None]], example: str
) -> Bare:
    """The network in arrays whose names show their layers.

    `parse` returns the place of an array's layer, which orders the layers, and the array's role, None if its name is unknown.
    """
    layers: dict[tuple[int, ...], Layer] = {}
    for name, value in arrays.items():
        place, role = parse(name)
        if role not in ("weight", "bias", "scale", "mean", "variance"):
            raise misfit(path, name, value.shape, example)
        # timm's linear layers are convolutions, and fc6 reads a map: both become matrices here, [out, in].
        matrix = role == "weight" and place[0] == 1
        layers.setdefault(place, {})[role] = Found(name, value.reshape(len(value), -1) if matrix else value)
    return assemble(path, [layers[place] for place in sorted(layers)])


def from_state_dict(path: object, state: Mapping[str, Array]) -> Bare:
    """The network in a state dictionary with torchvision's, timm's or the paper's keys."""
    arrays = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    norms = {match[1] for key in arrays if (match := _FEATURES.fullmatch(_bare(key))) and match[2] == "running_mean"}

    def parse(key: str) -> tuple[tuple[int, ...], str | None]:
        key = _bare(key)
        layer, _, role = key.rpartition(".")
        if match := _FEATURES.fullmatch(key):
            return (0, int(match[1])), _NORM_ROLES.get(role) if match[1] in norms else role
        if layer in _HEADS:
            return (1, _HEADS[layer]), role
        if match := _PAPER.fullmatch(key):
            return (int(match[1] == "fc"), int(match[2]), int(match[3][1:] or 0), int(match[1] == "bn")), role
        return (), None

    return from_names(path, arrays, parse, "a key such as features.0.weight [64, 3, 3, 3]")


def _bare(key: str) -> str:
    """A key without the prefixes of data-parallel and compiled modules."""
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key
