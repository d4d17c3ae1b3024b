"""Feature vectors: a layer's output for an image, averaged over positions, views and sizes.

The paper's Appendix B (arXiv 1409.1556): without its last layer, the network is applied densely to the whole image at several
sizes; its output is averaged over positions and the flip, averaged or stacked over the sizes, and scaled to length 1. A
linear classifier on these vectors then learns other classes from few images.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from .architectures import Architecture
from .arrays import Array
from .engines import Model, takes_pixels
from .errors import Error, ImageError, utf8
from .extras import require
from .files import replacing
from .images import ImageLike, open_image
from .parallel import ahead, cores
from .views import BATCH_SIZE, ViewBatch, Views, batches, check_views

SUFFIXES = (".npz", ".parquet")  # of the files that `write` supports
ROWS = 256  # per row group of a Parquet file


@dataclass(frozen=True)
class Descriptor:
    """How vectors are computed from an image. Raises Error if the fields contradict each other."""

    layers: tuple[str, ...] = ()  # names in `Architecture.values`; if empty, `default_layer`
    views: Views = field(default_factory=Views)  # of an image, over which the layer output is averaged
    stack: bool = False  # concatenate the sizes' vectors instead of averaging them
    normalize: bool = False  # scale each vector to length 1 (L2)
    maps: bool = False  # keep feature maps [channels, rows, columns] instead of averaging over positions

    def __post_init__(self) -> None:
        if self.maps and (self.views.count > 1 or self.views.dense):
            raise Error("feature maps require a single crop: protocol `center` without flip and with at most one size")
        if self.stack and len(self.views.sizes) < 2:
            raise Error("stacking requires two sizes or more")


@dataclass(frozen=True)
class Features:
    """The result for one image: a vector for each layer, or an error."""

    image: str
    values: Mapping[str, Array]  # float32 [length]; with `maps`, [channels, rows, columns]
    error: str | None = None


def extract(
    model: Model,
    images: Iterable[tuple[str, ImageLike]],
    descriptor: Descriptor | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> Iterator[Features]:
    """The features of each image, in order, as they are computed; an unreadable image gives `Features` with an error.

    Other threads read and preprocess images while the engine computes. Memory does not grow with the number of images.

    Args:
        model: a network on an engine, such as a `Classifier`.
        images: pairs of a name and an image, as `vgg.sources.find` returns them.
        descriptor: what to compute; by default the layer `default_layer`, of the centre crop.
        batch_size: number of views per engine batch; larger views count by their pixels.
        workers: number of threads that decode and preprocess; the number of cores by default.

    Raises:
        ModelError: the layer is unknown, or the engine doesn't return it.
        Error: a size or the engine doesn't support the views.
    """
    descriptor = descriptor or Descriptor()
    architecture = model.network.architecture
    architecture.check_values(descriptor.layers)
    check_views(model, descriptor.views)
    descriptor = replace(descriptor, layers=descriptor.layers or (default_layer(architecture),))
    return _extract(model, images, descriptor, batch_size, workers or cores())


def default_layer(architecture: Architecture) -> str:
    """The layer output that describes an image: the last but one, `fc7` or `pool6`; without a head, the last."""
    return architecture.values[-2 if architecture.classifier else -1]


def gather(found: Iterable[Features]) -> dict[str, Array]:
    """The features of many images by layer, float32 [images, length]. Raises ImageError if one couldn't be read."""
    rows: dict[str, list[Array]] = {}
    for one in found:
        if one.error:
            raise ImageError(one.error)
        for layer, value in one.values.items():
            rows.setdefault(layer, []).append(value)
    return {layer: np.stack(values) for layer, values in rows.items()}


def write(found: Iterable[Features], path: str | Path) -> dict[str, tuple[int, ...]]:
    """Write features to a file as they are computed, without those that have an error. The file is replaced as a whole.

    `.npz` has `names`, the images' names, and an array for each layer, float32 [images, length]. `.parquet` has a column
    `image` and one for each layer, fixed-size lists of float32; feature maps are flattened.

    Returns:
        The arrays' shapes by layer.

    Raises:
        Error: the file can't be written, the suffix is unsupported, pyarrow is missing, or there are no features.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with replacing(path) as file:
            return _write_npz(found, file, path)
    if path.suffix != ".parquet":
        raise Error(f"{path}: unsupported suffix; features are written to {' or '.join(SUFFIXES)}")
    require("a Parquet file", "parquet", "pyarrow")
    with replacing(path) as file:
        return _write_parquet(found, file, path)


@dataclass(frozen=True)
class _Window:
    """Some images, decoded and cut into views. A view's owner is its image's index times the sizes, plus its size's index."""

    names: list[str]
    errors: dict[int, str]  # of unreadable images, by index
    batches: list[ViewBatch]


def _extract(
    model: Model, images: Iterable[tuple[str, ImageLike]], descriptor: Descriptor, batch_size: int, workers: int
) -> Iterator[Features]:
    preprocessing, views, pixels = model.network.preprocessing, descriptor.views, takes_pixels(model.engine)
    # One size at a time, so that each size has its own mean.
    by_size = [replace(views, sizes=(size,)) for size in views.sizes] or [views]
    count = views.together(batch_size)
    source = iter(images)

    def prepare(pairs: Sequence[tuple[str, ImageLike]]) -> _Window:
        found: list[tuple[int, float, Array]] = []
        errors: dict[int, str] = {}
        for index, (name, source) in enumerate(pairs):
            try:
                image = open_image(source, name)
                found += [
                    (index * len(by_size) + number, weight, view)
                    for number, one in enumerate(by_size)
                    for weight, view in one.of(image, preprocessing, name, pixels=pixels)
                ]
            except ImageError as error:
                errors[index] = str(error)
                found = [one for one in found if one[0] < index * len(by_size)]
        return _Window([name for name, _ in pairs], errors, list(batches(found, batch_size * preprocessing.crop**2)))

    windows = iter(lambda: list(islice(source, count)), [])
    for window in ahead(prepare, windows, workers, workers + 1):
        vectors = _vectors(model, window, descriptor, len(by_size))
        for index, name in enumerate(window.names):
            if index in window.errors:
                yield Features(name, {}, window.errors[index])
            else:
                yield Features(name, {layer: rows[index] for layer, rows in vectors.items()})


def _vectors(model: Model, window: _Window, descriptor: Descriptor, sizes: int) -> dict[str, Array]:
    """The vectors of a window's images by layer, float32 [images, length]; rows of unreadable images are 0."""
    count = len(window.names)
    totals: dict[str, Array] = {}
    for batch in window.batches:
        for layer, value in model.engine.run(batch.inputs, descriptor.layers).items():
            if value.ndim == 4 and not descriptor.maps:
                value = value.mean((2, 3), np.float64)
            kind = np.float32 if descriptor.maps else np.float64
            total = totals.setdefault(layer, np.zeros((count * sizes, *value.shape[1:]), kind))
            weights = batch.weights.reshape(-1, *[1] * (value.ndim - 1))
            np.add.at(total, batch.owners, (weights * value).astype(kind))
    found = {}
    for layer, total in totals.items():
        shape = total.shape[1:]
        rows = total.reshape(count, -1) if descriptor.stack else total.reshape(count, sizes, *shape).mean(1)
        if descriptor.normalize:
            lengths = np.sqrt(np.square(rows, dtype=np.float64).reshape(count, -1).sum(1))
            rows = rows / np.where(lengths > 0, lengths, 1).reshape(-1, *[1] * (rows.ndim - 1))
        found[layer] = rows.astype(np.float32)
    return found


def columns(found: Sequence[Features], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The columns of a Parquet file: the images' names, and their vectors by layer, null for those with an error."""
    import pyarrow

    made: dict[str, Any] = {"image": pyarrow.array([utf8(one.image) for one in found], pyarrow.string())}
    broken = np.array([one.error is not None for one in found])
    for layer, shape in shapes.items():
        none = np.zeros(shape, np.float32)
        flat = np.concatenate([none.reshape(-1) if one.error else one.values[layer].reshape(-1) for one in found])
        mask = pyarrow.array(broken) if broken.any() else None
        made[layer] = pyarrow.FixedSizeListArray.from_arrays(flat, none.size, mask=mask)
    return made


def _write_npz(found: Iterable[Features], file: BinaryIO, path: Path) -> dict[str, tuple[int, ...]]:
    """Rows first go to a temporary file per layer, since an array's header has their number."""
    names: list[str] = []
    rows: dict[str, IO[bytes]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    with ExitStack() as held:
        for one in _good(found, path):
            names.append(one.image)
            for layer, value in one.values.items():
                if layer not in rows:
                    rows[layer] = held.enter_context(tempfile.TemporaryFile(dir=path.parent))
                rows[layer].write(value.astype("<f4").tobytes())
                shapes[layer] = (len(names), *value.shape)
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("names.npy", "w", force_zip64=True) as entry:  # else an error after all work beyond 2 GiB
                np.lib.format.write_array(entry, np.array(names))
            for layer, written in rows.items():
                header = {"descr": "<f4", "fortran_order": False, "shape": shapes[layer]}
                with archive.open(f"{layer}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array_header_1_0(entry, header)
                    written.seek(0)
                    shutil.copyfileobj(written, entry, 2**20)
    return shapes


def _write_parquet(found: Iterable[Features], file: BinaryIO, path: Path) -> dict[str, tuple[int, ...]]:
    import pyarrow
    from pyarrow import parquet

    source, writer, shapes, count = _good(found, path), None, {}, 0
    while group := list(islice(source, ROWS)):
        shapes = {layer: value.shape for layer, value in group[0].values.items()}
        table = pyarrow.table(columns(group, shapes))
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
        count += len(group)
    assert writer is not None
    writer.close()
    return {layer: (count, *shape) for layer, shape in shapes.items()}


def _good(found: Iterable[Features], path: Path) -> Iterator[Features]:
    """Those without an error. Raises Error if there are none."""
    count = total = 0
    for one in found:
        total += 1
        if not one.error:
            count += 1
            yield one
    if not count:
        raise Error(f"{path}: not written: none of the {total} images could be read")
