"""Precision and recall of a set of generated images: how realistic they are, and how many of the real ones they cover.

T. Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS 2019, arXiv 1904.06991:
each set is described by balls around the feature vectors of its images, which reach to the k-th nearest neighbour of the same
set. Precision is the share of the generated images that are in a ball of the real ones, recall the reverse.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..engines import Model
from ..errors import Error, ImageError
from ..images import ImageLike, open_image
from ..parallel import ahead, cores
from ..progress import Progress, silent

NEIGHBOURS = 3  # k, as in the paper
BLOCK = 1024  # vectors of each set whose distances are computed at once
BATCH = 16  # images
ROUNDING = 1e-9  # of a squared distance, relative to the vectors' squared lengths


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of generated images, shares of 0..1."""

    precision: float
    recall: float

    @property
    def f_score(self) -> float:
        """The harmonic mean of both; 0 if both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def precision_recall(generated: Array, real: Array, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Precision and recall of generated images by their feature vectors.

    Distances are computed in blocks of 1024 x 1024, in float64, so beside the vectors this takes 100 MB for any number of them.

    Args:
        generated: float [images, length].
        real: float [images, length].
        neighbours: k, the nearest neighbour of an image that its ball reaches to, in its own set without the image itself.

    Raises:
        Error: a set has too few images, the lengths differ, or a value is not finite.
    """
    for name, vectors in (("generated", generated), ("real", real)):
        if vectors.ndim != 2 or vectors.shape[1] != real.shape[-1]:
            raise Error(f"features must be [images, length] of one length, not {list(generated.shape)} and {list(real.shape)}")
        check_count(name, len(vectors), neighbours)
        if not all(np.isfinite(block).all() for _, block in _blocks(vectors)):
            raise Error(f"the features of the {name} images are not finite")
    return PrecisionRecall(
        precision=_covered(generated, real, _radii(real, neighbours)),
        recall=_covered(real, generated, _radii(generated, neighbours)),
    )


def check_count(name: str, count: int, neighbours: int = NEIGHBOURS) -> None:
    """Raise Error if a set, such as the `generated` images, has too few for this number of neighbours."""
    if count <= neighbours:
        raise Error(f"{count} {name} images are too few for {neighbours} neighbours; give {neighbours + 1} or more")


def feature_layer(architecture: Architecture) -> str:
    """The layer output that sets of images are compared by: fc7, else the last but one; without a head, the last."""
    return "fc7" if "fc7" in architecture.values else architecture.values[-2 if architecture.classifier else -1]


def set_features(
    model: Model,
    images: Sequence[tuple[str, ImageLike]],
    layer: str = "",
    *,
    failures: list[str] | None = None,
    progress: Progress = silent,
) -> Array:
    """The feature vectors of a set of images, float32 [images, length].

    Images are resized to the network's input size regardless of their shape, by linear interpolation without smoothing as in
    TensorFlow 1, and not cropped; maps are averaged over positions.

    Args:
        model: a network on an engine, such as a `vgg.Classifier`.
        images: pairs of a name and an image, as `vgg.sources.find` returns them.
        layer: by default that of `feature_layer`.
        failures: the errors of unreadable images are appended to it, and these images left out; by default, the first one
            is raised.
        progress: called with the number of images.

    Raises:
        ImageError: an image can't be read; with `failures`, none can.
        ModelError: the layer is unknown.
    """
    network = model.network
    layer = layer or feature_layer(network.architecture)
    side, found, done = network.architecture.input_size, [], 0

    def prepare(some: Sequence[tuple[str, ImageLike]]) -> tuple[Array, list[str]]:
        inputs, errors = [], []
        for name, image in some:
            try:
                inputs.append(network.preprocessing.normalise(_resized(open_image(image, name), side)))
            except ImageError as error:
                if failures is None:
                    raise
                errors.append(str(error))
        return np.array(inputs), errors

    source = iter(images)
    groups = iter(lambda: list(islice(source, BATCH)), [])
    for batch, errors in ahead(prepare, groups, cores(), 2):
        if len(batch):
            value = model.engine.run(batch, [layer])[layer]
            found.append(value.reshape(*value.shape[:2], -1).mean(-1) if value.ndim == 4 else value)
        if failures is not None:
            failures += errors
        done += len(batch) + len(errors)
        progress("Extracting", done, len(images))
    if not found:
        raise ImageError(f"none of the {len(images):,} images could be read")
    return np.concatenate(found)


def _resized(image: Any, side: int) -> Array:
    """Linear interpolation to a square as TensorFlow 1's: pixel i is at i * length / side; float32 [side, side, 3]."""
    pixels = np.asarray(image)
    for axis in (1, 0):
        position = np.arange(side, dtype=np.float32) * np.float32(pixels.shape[axis] / side)
        low = position.astype(np.intp)
        share = (position - low).reshape((-1, 1) if axis == 1 else (-1, 1, 1))
        high = np.minimum(low + 1, pixels.shape[axis] - 1)
        first = pixels.take(low, axis).astype(np.float32)
        pixels = first + (pixels.take(high, axis) - first) * share
    return pixels


def _blocks(vectors: Array) -> Iterator[tuple[int, Array]]:
    """Parts of a set with their start, float64."""
    for start in range(0, len(vectors), BLOCK):
        yield start, vectors[start : start + BLOCK].astype(np.float64)


def _squared(one: Array, other: Array) -> Array:
    """Squared distances of two blocks, [one, other]; exactly 0 for equal vectors."""
    lengths = np.square(one).sum(1)[:, None] + np.square(other).sum(1)
    distances = lengths - 2 * one @ other.T
    return np.where(distances < ROUNDING * lengths, 0, distances)


def _radii(vectors: Array, neighbours: int) -> Array:
    """The squared distance of each vector from its nearest neighbour number `neighbours`, [images]."""
    radii = np.empty(len(vectors))
    for start, block in _blocks(vectors):
        nearest = np.full((len(block), neighbours + 1), np.inf)  # with the vector itself
        for _, other in _blocks(vectors):
            nearest = np.partition(np.concatenate([nearest, _squared(block, other)], 1), neighbours, 1)[:, : neighbours + 1]
        radii[start : start + len(block)] = nearest[:, neighbours]
    return radii


def _covered(vectors: Array, centres: Array, radii: Array) -> float:
    """The share of vectors that are within the radius of a centre."""
    inside = 0
    for _, block in _blocks(vectors):
        found = np.zeros(len(block), bool)
        for start, other in _blocks(centres):
            found |= (_squared(block, other) <= radii[start : start + len(other)]).any(1)
        inside += int(found.sum())
    return inside / len(vectors)
