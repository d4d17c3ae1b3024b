"""What flows through a network when it looks at pictures: the range of each value, and the directions of linear layers."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import engines
from ..arrays import Array
from ..errors import Error
from ..files import cache_folder
from ..network import Network
from ..parallel import ahead
from ..parameters import contiguous, expanded
from ..sources import find, unlabelled

BATCH = 2  # the values of all layers, 60 MB a picture of VGG-16, are in memory twice
TOGETHER = 4  # pictures whose responses are added up at once; the sums, 67 MB a layer, are gone through each time
PERCENTILE = 99.99  # of all numbers of a value lie in the range that is kept
Method = Literal["minmax", "percentile"]
Progress = Callable[[int], object]


class Pictures:
    """Unlabelled pictures at a place: a folder, which is walked, a picture, or a glob.

    Raises ImageError where there are none.
    """

    def __init__(self, place: str | Path) -> None:
        self.place, self.found = place, find(place)

    def __len__(self) -> int:
        return len(self.found)

    def digest(self) -> str:
        """SHA-256 of names and sizes; see `vgg.sources.Dataset.digest`."""
        return unlabelled(self.place).digest()

    def batches(self, network: Network, progress: Progress = lambda done: None, size: int = BATCH) -> Iterator[Array]:
        """float32 [size, 3, crop, crop], the last of fewer, prepared by other threads; `progress` is told how many are done.

        Raises ImageError at the first picture that can't be read.
        """
        prepared = ahead(lambda one: network.preprocessing(one[1], one[0]), self.found, os.cpu_count() or 1, 2 * size)
        done = 0
        while batch := list(islice(prepared, size)):
            yield np.stack(batch)
            done += len(batch)
            progress(done)


def ranges(network: Network, pictures: Pictures, method: Method = "minmax", progress: Progress = lambda done: None) -> Any:
    """The range of each value of a network over pictures, as `onnxruntime.quantization` wants it.

    Pictures are looked at a few at a time, and forgotten: the smallest and the largest number of each value is kept, or a
    histogram of 2048 bins, from which the percentile comes. The result is kept in the user's cache.

    Returns:
        `onnxruntime.quantization.calibrate.TensorsData`.

    Raises:
        ImageError: a picture can't be read.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import (
        HistogramCollector,
        TensorData,
        TensorsData,
        load_tensors_data,
        save_tensors_data,
    )

    key = json.dumps([network.sha256(), asdict(network.preprocessing), pictures.digest(), method, PERCENTILE])
    path = cache_folder() / "calibrations" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if path.is_file():
        return load_tensors_data(path)
    engine, values = engines.open(network), network.architecture.values
    found: dict[str, tuple[Any, Any]] = {}
    histograms = HistogramCollector("percentile", False, 2048, 128, PERCENTILE, "same")
    with redirect_stdout(StringIO()):  # the histograms talk
        for batch in pictures.batches(network, progress):
            arrays = {"data": batch, **engine.run(batch, values)}
            if method == "percentile":
                histograms.collect({name: [array] for name, array in arrays.items()})
            else:
                for name, array in arrays.items():
                    low, high = found.get(name, (array.min(), array.max()))
                    found[name] = min(low, array.min()), max(high, array.max())
        if method == "percentile":
            found = {name: (low, high) for name, (low, high, *_) in histograms.compute_collection_result().items()}
    kind = CalibrationMethod.Percentile if method == "percentile" else CalibrationMethod.MinMax
    made = TensorsData(kind, {name: TensorData(lowest=np.float32(a), highest=np.float32(b)) for name, (a, b) in found.items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors_data(made, path)
    except OSError as error:
        raise Error(f"{path}: can't be written: {error}") from None
    return made


@dataclass
class Responses:
    """How the values of a linear layer, before bias and ReLU, lie over pictures."""

    count: int
    total: Array  # float32 [units]
    gram: Array  # float32 [units, units]: the sum of their products

    @property
    def mean(self) -> Array:
        found: Array = self.total / self.count
        return found

    @property
    def covariance(self) -> Array:
        """float32 [units, units]."""
        found: Array = self.gram / self.count
        found -= np.outer(self.mean, self.mean)
        return found


def responses(network: Network, pictures: Pictures, progress: Progress = lambda done: None) -> dict[str, Responses]:
    """The responses of fc6 and fc7 to pictures, by the layer's name."""
    engine, inputs = engines.open(network), {"fc6": "pool5", "fc7": "fc6"}
    weights, found = {}, {}
    for name in inputs:
        weight = contiguous(expanded(network.parameters[f"{name}.weight"]), np.float32)
        units = len(weight)
        weights[name] = weight.reshape(units, -1)
        found[name] = Responses(0, np.zeros(units, np.float32), np.zeros((units, units), np.float32))
    for batch in pictures.batches(network, progress, TOGETHER):
        values = engine.run(batch, tuple(inputs.values()))
        for name, one in found.items():
            answers = values[inputs[name]].reshape(len(batch), -1) @ weights[name].T
            one.count += len(batch)
            one.total += answers.sum(0)
            one.gram += answers.T @ answers
    return found
