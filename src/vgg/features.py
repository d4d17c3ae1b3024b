"""Pictures as vectors: what a layer says of a picture, averaged over places, views and scales.

The paper's Appendix B (arXiv 1409.1556): the last layer is taken off, the network is applied densely to the whole picture
at several scales, its values are averaged over all places and over the flip, the scales are averaged or stacked, and the
vector is brought to length 1. A linear classifier on top then learns other classes from few pictures.
"""

import os
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

from .arrays import Array
from .classifier import Classifier
from .errors import Error, ImageError
from .evaluation.run import BATCH_SIZE, VIEWS, check_views
from .files import replacing
from .images import Picture, open_image
from .parallel import ahead
from .views import ViewBatch, Views, batches

SUFFIXES = (".npz", ".parquet")  # of files that `write` makes
ROWS = 256  # of a Parquet file's row group


@dataclass(frozen=True)
class Descriptor:
    """How a picture becomes vectors; see the fields. Raises Error where they contradict each other."""

    layers: tuple[str, ...] = ()  # names as in `Architecture.values`; none: the last but one, `fc7` or `pool6`
    protocol: Views = field(default_factory=Views)  # the views of a picture, over which the values are averaged
    stack: bool = False  # the scales side by side, in a vector as many times as long, instead of their mean
    normalize: bool = False  # to length 1 (L2), when all else is done
    maps: bool = False  # keep a convolution's values [channels, rows, columns], instead of their mean over the places

    def __post_init__(self) -> None:
        if self.maps and (self.protocol.count > 1 or self.protocol.dense):
            raise Error("maps are kept of one crop only: without flip, several scales, or views of another size")
        if self.stack and len(self.protocol.sizes) < 2:
            raise Error("there is nothing to stack: give two scales or more")


@dataclass(frozen=True)
class Features:
    """What came of one picture: a vector for each layer, or else why there is none."""

    image: str
    values: Mapping[str, Array]  # float32 [length]; with `maps`, [channels, rows, columns]
    error: str | None = None


def extract(
    classifier: Classifier,
    pictures: Iterable[tuple[str, Picture]],
    descriptor: Descriptor | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> Iterator[Features]:
    """The features of each picture, in order, as they come; a picture that can't be read gives one with an error.

    Pictures are read and prepared by other threads while the engine works. Memory does not grow with their number.

    Args:
        classifier: whose network it is.
        pictures: with their names, as `vgg.sources.find` gives them.
        descriptor: what is wanted; the last layer but one of the centre crop when not given.
        batch_size: views that the engine gets at once; larger ones count for as many as their pixels.
        workers: threads that decode and prepare; as many as there are cores when not given.

    Raises:
        ModelError: there is no such layer, or the engine doesn't give it; Error: a scale or the engine doesn't fit.
    """
    descriptor = descriptor or Descriptor()
    architecture = classifier.network.architecture
    architecture.check_values(descriptor.layers)
    check_views(classifier, descriptor.protocol)
    descriptor = replace(descriptor, layers=descriptor.layers or architecture.values[-2:-1])
    return _extract(classifier, pictures, descriptor, batch_size, workers or os.cpu_count() or 1)


def gather(found: Iterable[Features]) -> dict[str, Array]:
    """The features of many pictures by layer, float32 [pictures, length]. Raises ImageError where one couldn't be read."""
    rows: dict[str, list[Array]] = {}
    for one in found:
        if one.error:
            raise ImageError(one.error)
        for layer, value in one.values.items():
            rows.setdefault(layer, []).append(value)
    return {layer: np.stack(values) for layer, values in rows.items()}


def write(found: Iterable[Features], path: str | Path) -> dict[str, tuple[int, ...]]:
    """Write features to a file, whole or not at all, as they come; those with an error are left out.

    `.npz` holds `names`, the pictures' names, and an array for each layer, float32 [pictures, length]. `.parquet` holds a
    column `image` and one for each layer, lists of float32 of fixed size; maps are flattened there.

    Returns:
        The arrays' shapes by layer.

    Raises:
        Error: the file can't be written, its suffix is another, pyarrow is missing, or there are no features.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with replacing(path) as file:
            return _write_npz(found, file, path)
    if path.suffix != ".parquet":
        raise Error(f"{path}: features are written to {' or '.join(SUFFIXES)}")
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise Error("a Parquet file needs pyarrow; `pip install 'vgg[parquet]'` brings it") from None
    with replacing(path) as file:
        return _write_parquet(found, file, path)


@dataclass(frozen=True)
class _Window:
    """Some pictures, decoded and cut into views. The views' owners are places: a picture's number times the scales."""

    names: list[str]
    errors: dict[int, str]  # of pictures that couldn't be read, by their place among the names
    batches: list[ViewBatch]


def _extract(
    classifier: Classifier, pictures: Iterable[tuple[str, Picture]], descriptor: Descriptor, batch_size: int, workers: int
) -> Iterator[Features]:
    recipe, protocol = classifier.network.preprocessing, descriptor.protocol
    # One scale at a time, so that each scale's mean is known.
    looks = [replace(protocol, sizes=(scale,)) for scale in protocol.sizes] or [protocol]
    size = max(1, min(batch_size, VIEWS // protocol.count))
    source = iter(pictures)

    def prepare(pairs: Sequence[tuple[str, Picture]]) -> _Window:
        views: list[tuple[int, float, Array]] = []
        errors: dict[int, str] = {}
        for place, (name, picture) in enumerate(pairs):
            try:
                image = open_image(picture, name)
                views += [
                    (place * len(looks) + index, weight, view)
                    for index, look in enumerate(looks)
                    for weight, view in look.of(image, recipe, name)
                ]
            except ImageError as error:
                errors[place] = str(error)
                views = [one for one in views if one[0] < place * len(looks)]
        return _Window([name for name, _ in pairs], errors, list(batches(views, batch_size * recipe.crop**2)))

    windows = iter(lambda: list(islice(source, size)), [])
    for window in ahead(prepare, windows, workers, workers + 1):
        values = _values(classifier, window, descriptor, len(looks))
        for place, name in enumerate(window.names):
            if place in window.errors:
                yield Features(name, {}, window.errors[place])
            else:
                yield Features(name, {layer: rows[place] for layer, rows in values.items()})


def _values(classifier: Classifier, window: _Window, descriptor: Descriptor, scales: int) -> dict[str, Array]:
    """The vectors of a window's pictures by layer, float32 [pictures, length]; rows of broken pictures are 0."""
    count = len(window.names)
    totals: dict[str, Array] = {}
    for batch in window.batches:
        for layer, value in classifier.engine.run(batch.inputs, descriptor.layers).items():
            if value.ndim == 4 and not descriptor.maps:
                value = value.mean((2, 3), np.float64)
            kind = np.float32 if descriptor.maps else np.float64
            total = totals.setdefault(layer, np.zeros((count * scales, *value.shape[1:]), kind))
            weights = batch.weights.reshape(-1, *[1] * (value.ndim - 1))
            np.add.at(total, batch.owners, (weights * value).astype(kind))
    found = {}
    for layer, total in totals.items():
        shape = total.shape[1:]
        rows = total.reshape(count, -1) if descriptor.stack else total.reshape(count, scales, *shape).mean(1)
        if descriptor.normalize:
            lengths = np.sqrt(np.square(rows, dtype=np.float64).reshape(count, -1).sum(1))
            rows = rows / np.where(lengths > 0, lengths, 1).reshape(-1, *[1] * (rows.ndim - 1))
        found[layer] = rows.astype(np.float32)
    return found


def columns(found: Sequence[Features], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The columns of a Parquet file: pictures' names, and their values by layer, null for those with an error."""
    import pyarrow

    made: dict[str, Any] = {"image": pyarrow.array([one.image for one in found], pyarrow.string())}
    broken = np.array([one.error is not None for one in found])
    for layer, shape in shapes.items():
        none = np.zeros(shape, np.float32)
        flat = np.concatenate([none.reshape(-1) if one.error else one.values[layer].reshape(-1) for one in found])
        mask = pyarrow.array(broken) if broken.any() else None
        made[layer] = pyarrow.FixedSizeListArray.from_arrays(flat, none.size, mask=mask)
    return made


def _write_npz(found: Iterable[Features], file: BinaryIO, path: Path) -> dict[str, tuple[int, ...]]:
    """Rows go to a temporary file for each layer first, since an array's header says how many there are."""
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
            with archive.open("names.npy", "w") as entry:
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
    """Those without an error. Raises Error when there are none."""
    count = total = 0
    for one in found:
        total += 1
        if not one.error:
            count += 1
            yield one
    if not count:
        raise Error(f"{path}: is not written: none of the {total} pictures could be read")
