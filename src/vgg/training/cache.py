"""Values of a network for fixed views of images, kept on disk: scores of a teacher, or outputs of frozen layers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..engines import Engine, identity, takes_pixels
from ..network import Network
from ..parallel import ahead
from ..progress import Progress
from ..store import Work, digest_of, key_of
from .loader import Batch, Indices, Loader

BATCH = 16  # images in a batch of the engine
READERS = 2  # threads that read batches ahead of their use


class Cache:
    """One value of a network for some views of images, float16; batches of it replace those of the loader.

    Runs on the same dataset share a cache, whichever of the images they use: the folds of a cross-validation, for example.

    Args:
        folder: parent of the cache's folder, which is named by the value and a digest of the key.
        loader: loads the images.
        views: numbers of random crops; None is the crop of evaluation.
        network: computes the value; its input must have the loader's size.
        engine: the network on an engine, which is part of the key.
        value: as in `Architecture.values`.
    """

    def __init__(
        self,
        folder: Path,
        loader: Loader,
        views: Sequence[int | None],
        network: Network,
        engine: Engine,
        value: str,
    ) -> None:
        network.architecture.check_values([value])
        self._loader, self._views, self._network, self._value = loader, list(views), network, value
        key = key_of(
            value=value,
            network=network.sha256(),
            architecture=asdict(network.architecture),
            preprocessing=asdict(network.preprocessing),
            loader=loader.key(),
            views=list(views),
            engine=identity(engine),
        )
        work = Work(folder / f"{value}-{digest_of(key)[:16]}", key)
        shape = network.architecture.shape(value, 1, loader.side, loader.side)[1:]
        self._values = work.array("values", np.float16, (len(views), len(loader.dataset), *shape))
        self._known = work.array("known", np.bool_, (len(views), len(loader.dataset)))

    def fill(self, indices: Array, engine: Engine, progress: Progress) -> None:
        """Compute the values of images that are missing; an interrupted run keeps those that it computed."""
        task = f"Computing {self._value} of {self._network.architecture.name}"
        for number, view in enumerate(self._views):
            missing = indices[~self._known[number, indices]]
            parts = [missing[start : start + BATCH] for start in range(0, len(missing), BATCH)]
            for batch in self._loader.batches(parts, view):
                if len(batch.indices):
                    prepared, pixels = self._network.preprocessing.prepared, takes_pixels(engine)
                    inputs = np.stack([prepared(placed, pixels=pixels) for placed in batch.inputs])
                    self._values[number, batch.indices] = engine.run(inputs, (self._value,))[self._value]
                    self._known[number, batch.indices] = True
                    progress(task, int(self._known[:, indices].sum()), len(self._views) * len(indices))

    def rows(self, indices: Array, view: int | None) -> Array:
        """float32 [images, …] for a view of images that can be read."""
        return np.asarray(self._values[self._views.index(view), indices], np.float32)

    def batches(self, parts: Iterable[Indices], view: int | None = None) -> Iterator[Batch]:
        """As `Loader.batches`, with the values instead of pixels."""
        known = self._known[self._views.index(view)]

        def read(part: Indices) -> Batch:
            indices = np.asarray(part, np.int64)
            indices = indices[known[indices]]
            return Batch(indices, self._loader.targets(indices), self.rows(indices, view))

        return ahead(read, parts, READERS, 2 * READERS)
