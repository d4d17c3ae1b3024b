"""Comparisons of the layer outputs of images, for perceptual metrics: their checks, and their arithmetic in NumPy."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import Error, ModelError
from .guard import Guard

Kind = Literal["cosine", "l1", "l2"]
Area = tuple[int, int, int, int]  # top, left, bottom, right

EPSILON = np.float32(1e-10)  # added to a length, as in LPIPS
BLOCK = 2**20  # numbers of a layer output that are compared at once


class Comparing(ABC):
    """What `vgg.engines.Engine` has besides `run`, for engines whose layer outputs come as arrays: comparisons in NumPy."""

    _guard: Guard

    @abstractmethod
    def run(self, batch: Array, outputs: Sequence[str] = ("logits",)) -> Mapping[str, Array]: ...

    def logits(self, batch: Array) -> Array:
        return self.run(batch)["logits"]

    def differences(self, batch: Array, pairs: Array, layers: Mapping[str, Array], kind: Kind = "cosine") -> dict[str, Array]:
        self._guard.check(batch, [*layers])
        pairs = checked_pairs(batch, pairs)
        weights = checked_weights(self._guard.network.architecture, layers, kind)
        values = self.run(batch, [*layers])
        found = {name: np.empty((len(pairs), *values[name].shape[2:]), np.float32) for name in layers}
        for name, weight in weights.items():
            for rows in _blocks(values[name]):
                part = values[name][:, :, rows]
                if kind == "cosine":
                    part = part / (np.sqrt(np.einsum("nchw,nchw->nhw", part, part))[:, None] + EPSILON)
                for one, (a, b) in zip(found[name], pairs, strict=True):
                    apart = part[a] - part[b]
                    one[rows] = np.einsum("c,chw->hw", weight, np.abs(apart) if kind == "l1" else np.square(apart))
        return found

    def moments(
        self, batch: Array, pairs: Array, layers: Sequence[str], area: Mapping[str, Area] | None = None
    ) -> dict[str, Array]:
        self._guard.check(batch, layers)
        pairs = checked_pairs(batch, pairs)
        areas = checked_areas(self._guard.network.architecture, batch, layers, area or {})
        values = self.run(batch, layers)
        found = {name: np.zeros((len(pairs), 5, values[name].shape[1])) for name in layers}
        for name, (top, left, bottom, right) in areas.items():
            maps = values[name][:, :, top:bottom, left:right]
            for rows in _blocks(maps):
                part = maps[:, :, rows].astype(np.float64)
                sums, squares = part.sum((2, 3)), np.einsum("nchw,nchw->nc", part, part)
                for one, (a, b) in zip(found[name], pairs, strict=True):
                    one += [sums[a], sums[b], squares[a], squares[b], np.einsum("chw,chw->c", part[a], part[b])]
        return found


def checked_pairs(batch: Array, pairs: Array) -> Array:
    """The pairs as contiguous int32. Raises Error if they are no indices of images in the batch."""
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise Error(f"pairs are integers [pairs, 2], not {pairs.dtype} {list(pairs.shape)}")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < len(batch):
        raise Error(f"pairs name images {pairs.min()} to {pairs.max()}; the batch has {len(batch)}")
    return np.ascontiguousarray(pairs, np.int32)


def checked_weights(architecture: Architecture, layers: Mapping[str, Array], kind: str) -> dict[str, Array]:
    """The weights as contiguous float32. Raises ModelError or Error if they don't fit the layer outputs."""
    if kind not in get_args(Kind):
        raise Error(f"unknown kind of difference {kind!r}; choose from {', '.join(get_args(Kind))}")
    _check_maps(architecture, layers)
    weights = {name: np.ascontiguousarray(weight, np.float32) for name, weight in layers.items()}
    for name, weight in weights.items():
        channels = architecture.shape(name, 1, architecture.input_size, architecture.input_size)[1]
        if weight.shape != (channels,):
            raise Error(f"weights of {name} have the shape {list(weight.shape)}, not [{channels}]")
    return weights


def checked_areas(architecture: Architecture, batch: Array, layers: Sequence[str], area: Mapping[str, Area]) -> dict[str, Area]:
    """The area of each layer output. Raises ModelError or Error if it is not in the map."""
    _check_maps(architecture, layers)
    found = {}
    for name in layers:
        rows, columns = architecture.shape(name, *(batch.shape[axis] for axis in (0, 2, 3)))[2:]
        top, left, bottom, right = found[name] = area.get(name, (0, 0, rows, columns))
        if not (0 <= top <= bottom <= rows and 0 <= left <= right <= columns):
            raise Error(f"the area {found[name]} of {name} is not in its map of {rows}x{columns} positions")
    return found


def _check_maps(architecture: Architecture, names: Iterable[str]) -> None:
    """Raise ModelError for a layer output in the head."""
    trunk = [layer.value for layer in architecture.layers]
    trunk = trunk[: trunk.index("pool5") + 1] if "pool5" in trunk else trunk
    for name in names:
        if name not in trunk:
            raise ModelError(f"{name} belongs to the head; images are compared by layer outputs before it, such as {trunk[-1]}")


def _blocks(maps: Array) -> Iterator[slice]:
    """Rows of maps [batch, channels, rows, columns], as many as have BLOCK numbers, at least one."""
    images, channels, rows, columns = maps.shape
    step = max(1, BLOCK // max(1, images * channels * columns))
    return (slice(start, start + step) for start in range(0, rows, step))
