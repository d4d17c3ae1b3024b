"""What a network gives for fixed looks at pictures, kept on disk: a teacher's scores, or what frozen layers make of them."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from .. import engines
from ..arrays import Array
from ..errors import Error
from ..files import reason
from ..network import Network
from ..parallel import ahead
from .pictures import Batch, Pictures, timed

BATCH = 16  # pictures that the engine gets at once
READERS = 2  # threads that read batches ahead of their use

Progress = Callable[[str, int, int], object]  # what is being done, how much of it is done, how much there is


class Cache:
    """One value of a network for some looks at some pictures, float16; it stands for the pictures themselves, too.

    Args:
        folder: where it is kept, under a name that all that decides it is hashed into.
        pictures: whose looks are taken.
        places: of the pictures in their dataset.
        looks: numbers of random looks; None is the look of evaluation.
        network: which computes; its input must have the pictures' size.
        value: as in `Architecture.values`.
        device: for the engine.
    """

    def __init__(
        self,
        folder: Path,
        pictures: Pictures,
        places: Array,
        looks: Sequence[int | None],
        network: Network,
        value: str,
        device: str,
    ) -> None:
        self.dataset, self.errors, self.waited = pictures.dataset, pictures.errors, 0.0
        self._pictures, self._places, self._looks, self._device = pictures, places, list(looks), device
        self._network, self._value = network, value
        side = pictures.side
        network.architecture.check_values([value])
        shape = network.architecture.shape(value, 1, side, side)[1:]
        key = [network.sha256(), asdict(network.preprocessing), value, pictures.key(), list(looks), places.tolist()]
        path = folder / f"{value}-{sha256(json.dumps(key).encode()).hexdigest()[:16]}.npy"
        self._row = np.full(len(pictures.dataset), -1)
        self._row[places] = np.arange(len(places))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._values = _array(path, np.float16, (len(looks), len(places), *shape))
            self._known = _array(path.with_suffix(".known.npy"), np.bool_, (len(looks), len(places)))
        except OSError as error:
            raise Error(f"{path}: can't be written: {reason(error)}") from None

    def fill(self, progress: Progress) -> None:
        """Compute what isn't there yet; what was done before a cut stays."""
        engine = None
        doing = f"computing {self._value} of {self._network.architecture.name}, once"
        for number, look in enumerate(self._looks):
            places = self._places[~self._known[number]]
            if not len(places):
                continue
            if engine is None:
                engine = engines.open(self._network, device=self._device)
            parts = [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
            for batch in self._pictures.batches(parts, look):
                if len(batch.places):
                    inputs = np.stack([self._network.preprocessing.normalise(one) for one in batch.pixels])
                    rows = self._row[batch.places]
                    self._values[number, rows] = engine.run(inputs, (self._value,))[self._value]
                    self._known[number, rows] = True
                    progress(doing, int(self._known.sum()), self._known.size)

    def rows(self, places: Array, look: int | None) -> Array:
        """float32 [pictures, …] for a look at pictures that could be read."""
        return np.asarray(self._values[self._looks.index(look), self._row[places]], np.float32)

    def batches(self, parts: Iterable[Sequence[int]], look: int | None = None) -> Iterator[Batch]:
        """As `Pictures.batches`, with the values instead of pixels."""
        number = self._looks.index(look)

        def read(places: Sequence[int]) -> Batch:
            rows = self._row[np.asarray(places, np.int64)]
            good = np.asarray(places, np.int64)[self._known[number, rows]]
            targets = np.array([self.dataset.samples[place].target for place in good], np.int64)
            return Batch(good, targets, self.rows(good, look))

        return timed(ahead(read, parts, READERS, 2 * READERS), self)


def _array(path: Path, dtype: Any, shape: tuple[int, ...]) -> Array:
    """The array in a file, which is made where there is none, with all its room on the disk taken at once.

    Raises OSError where there is no room: a mapped file that found none later would end the process.
    """
    if not path.exists():
        part = path.with_suffix(".part")
        try:
            made = np.lib.format.open_memmap(part, "w+", dtype, shape)
            with part.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
            made.flush()
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, "r+")
