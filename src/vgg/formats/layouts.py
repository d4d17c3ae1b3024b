"""From another library's parameters to the paper's names.

A reader passes a file's layers in order, each with its arrays in our orientation and their keys in the file. This module
recognises the architecture from the shapes, and reports an array that doesn't fit by its key.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import Error, ModelError, one_line
from ..heads import Head
from ..labels import Labels
from ..parameters import LowRank, Parameter, expanded, shaped
from ..preprocessing import Preprocessing
from .recognition import Shapes, recognise

# Kernels of fc6 and fc7 of the reduced VGG (DeepLab, ParseNet, SSD), where fc6 is dilated, which its weight doesn't show.
REDUCED = ((3, 3), (1, 1))


class Bare(NamedTuple):
    """The content of a file that vgg did not write."""

    architecture: Architecture
    parameters: dict[str, Parameter]
    preprocessing: Preprocessing | None = None  # if the file describes it
    labels: Labels | None = None  # if the file has them
    assumed: str = ""  # what the file doesn't say of its head, and the convention that is used: "ReLU between …"
    preset: str = ""  # the usual preprocessing of such files, if it is not that of their format
    part: str = ""  # which of a file's weights these are, if it has others: "reading 'ema', the average of …"
    sized: bool = True  # whether the file shows the size of the input, or takes any


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
    except Error:
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
    try:
        architecture = recognise(Shapes(convolutions, linear, batch_norm, lrn, depths, head, norms, input_size, epsilon))
    except ModelError as error:  # sizes that no network has
        raise ModelError(f"{path}: not a VGG network: {error}") from None
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


def from_names(
    path: object,
    arrays: Mapping[str, Array],
    parse: Callable[[str], tuple[tuple[int, ...], str | None]],
    example: str,
    epsilon: float,
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
    return assemble(path, [layers[place] for place in sorted(layers)], epsilon=epsilon)
