"""Calibration: the range of each layer output over images, and the distribution of the linear layers' outputs."""

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import islice
from typing import Any, Literal

import numpy as np

from .. import engines
from ..arrays import Array
from ..network import Network
from ..parallel import ahead, cores
from ..parameters import contiguous, expanded
from ..progress import Progress, silent
from ..sources import Dataset
from ..store import Work, key_of
from .weights import linear_layers

BATCH = 2  # the outputs of all layers, 60 MB per image for VGG-16, are in memory twice
RESPONSE_BATCH = 4  # images whose responses are summed at once; each sum reads and writes 67 MB per layer
PERCENTILE = 99.99  # percentage of a layer's values in the range that is kept
RangeMethod = Literal["minmax", "percentile"]


def batches(images: Dataset, network: Network, size: int = BATCH, progress: Progress = silent) -> Iterator[Array]:
    """float32 [size, 3, crop, crop], the last one smaller, preprocessed in other threads.

    Raises ImageError at the first image that can't be read.
    """
    prepared = ahead(lambda one: network.preprocessing(one, one.name if one.size >= 0 else one.path), images, cores(), 2 * size)
    done = 0
    while batch := list(islice(prepared, size)):
        yield np.stack(batch)
        done += len(batch)
        progress("Calibrating", done, len(images))


def ranges(
    network: Network,
    images: Dataset,
    method: RangeMethod = "minmax",
    *,
    fresh: bool = False,
    progress: Progress = silent,
) -> Any:
    """The range of each layer output over images. It is kept in the cache folder, and computed once.

    Memory is bounded for any number of images: only the minimum and the maximum of each output are kept, or a histogram of 2048
    bins, from which the percentile is computed.

    Returns:
        `onnxruntime.quantization.calibrate.TensorsData`.

    Raises:
        ImageError: an image can't be read.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import HistogramCollector, TensorData, TensorsData

    engine = engines.open(network)
    key = key_of(
        network=network.sha256(), architecture=asdict(network.architecture), preprocessing=asdict(network.preprocessing),
        images=images.digest(), method=method, percentile=PERCENTILE, engine=engines.identity(engine),
    )  # fmt: skip
    work = Work.cached("calibrations", key, fresh=fresh)
    saved = work.state()
    found: dict[str, Any] = saved[1] if saved else {}
    if not saved:
        histograms = HistogramCollector("percentile", False, 2048, 128, PERCENTILE, "same")
        with redirect_stdout(StringIO()):  # the collector prints
            for batch in batches(images, network, progress=progress):
                arrays = {"data": batch, **engine.run(batch, network.architecture.values)}
                if method == "percentile":
                    histograms.collect({name: [array] for name, array in arrays.items()})
                else:
                    for name, array in arrays.items():
                        low, high = found.get(name, (np.inf, -np.inf))
                        found[name] = min(low, array.min()), max(high, array.max())
            if method == "percentile":
                found = {name: pair[:2] for name, pair in histograms.compute_collection_result().items()}
        found = {name: np.array(pair, np.float32) for name, pair in found.items()}
        work.save_if_possible({}, found, "the next calibration computes the ranges again")
    kind = CalibrationMethod.Percentile if method == "percentile" else CalibrationMethod.MinMax
    return TensorsData(kind, {name: TensorData(lowest=low, highest=high) for name, (low, high) in found.items()})


@dataclass
class Responses:
    """Sums over images of a linear layer's outputs, before bias and ReLU."""

    count: int
    total: Array  # float32 [units]
    gram: Array  # float32 [units, units]: sum of the outputs' products

    @property
    def mean(self) -> Array:
        """float32 [units]."""
        return np.asarray(self.total / self.count)

    @property
    def covariance(self) -> Array:
        """float32 [units, units]."""
        found = self.gram / self.count
        found -= np.outer(self.mean, self.mean)  # in place: 67 MB for VGG-16
        return np.asarray(found)


def responses(network: Network, images: Dataset, progress: Progress = silent) -> dict[str, Responses]:
    """The responses of the hidden linear layers to images, by the layer's name; batch normalisation must be folded."""
    engine, inputs = engines.open(network), linear_layers(network.architecture)
    inputs.popitem()  # the last layer, whose outputs are the logits
    weights, found = {}, {}
    for name in inputs:
        weight = contiguous(expanded(network.parameters[f"{name}.weight"]), np.float32)
        units = len(weight)
        weights[name] = weight.reshape(units, -1)
        found[name] = Responses(0, np.zeros(units, np.float32), np.zeros((units, units), np.float32))
    for batch in batches(images, network, RESPONSE_BATCH, progress):
        values = engine.run(batch, tuple(inputs.values()))
        for name, one in found.items():
            outputs = values[inputs[name]].reshape(len(batch), -1) @ weights[name].T
            one.count += len(batch)
            one.total += outputs.sum(0)
            one.gram += outputs.T @ outputs
    return found
