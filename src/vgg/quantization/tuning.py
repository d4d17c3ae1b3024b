"""The accuracy of quantized networks: comparison with float32, the smallest sufficient scheme, the noise of each layer."""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import engines
from ..arrays import Array
from ..benchmark import REFERENCE, side_by_side
from ..classifier import Classifier, described
from ..engines import processor
from ..errors import Error, counted
from ..evaluation import Evaluation, evaluate, main_figure, records
from ..formats import QuantizedGraph, load
from ..network import Network
from ..parallel import cores
from ..preprocessing import Preprocessing
from ..progress import Progress, silent
from ..sources import Dataset
from .calibration import BATCH
from .quantizer import Quantizer, Scheme
from .weights import decibels, noise, quantize_weights

NOISE_IMAGES = 16  # images at most on which layer outputs are compared


@dataclass(frozen=True)
class Trial:
    """The result of a scheme."""

    scheme: Scheme
    size: int  # of the file in bytes
    record: dict[str, Any]  # of `vgg.evaluation.records`, compared with float32
    baseline: dict[str, Any]  # the record of float32

    @property
    def loss(self) -> float:
        """Loss of top-1 accuracy, or of `vgg.evaluation.main_figure`, against float32, in percentage points."""
        figure = main_figure(self.baseline)
        return float(self.baseline[figure] - self.record[figure])

    @property
    def agreement(self) -> float:
        """Share of images with the same best class as float32, in percent."""
        return float(self.record["agreement"])


@dataclass
class Evaluator:
    """Evaluates quantized networks on labelled images. Evaluations are kept in the cache folder, and computed once."""

    network: Network  # in float32
    dataset: Dataset
    preprocessing: Preprocessing | None = None  # of the dataset, instead of the network's
    engine: str = "auto"
    threads: int | None = None
    fresh: bool = False  # evaluate again, instead of using the cache folder
    progress: Progress = silent

    def compare(self, network: Network | QuantizedGraph, name: str) -> dict[str, Any]:
        """The record of a network, called `name`, compared with float32."""
        first, second = self._float32, self._evaluate(network, name)
        both = Evaluation(
            [*first.models, *second.models], self.dataset, first.views, [*first.names, *second.names],
            [*first.results, *second.results], {**first.errors, **second.errors}, first.done,
        )  # fmt: skip
        return records(both)[1]

    @cached_property
    def baseline(self) -> dict[str, Any]:
        """The record of float32."""
        return records(self._float32)[0]

    @cached_property
    def _float32(self) -> Evaluation:
        return self._evaluate(self.network, "float32")

    def _evaluate(self, network: Network | QuantizedGraph, name: str) -> Evaluation:
        model = Classifier(described(network, self.preprocessing), self.engine, threads=self.threads, name=name)
        return evaluate([model], self.dataset, fresh=self.fresh, keep=True, progress=self.progress)


def tune(
    quantizer: Quantizer,
    evaluator: Evaluator,
    schemes: Iterable[Scheme],
    path: Path,
    tolerance: float | None = None,
    agreement: float = 0,
) -> Iterator[Trial]:
    """Try schemes in order, and write the first one that is accurate enough.

    Each one is written beside `path`, read again and evaluated as the file that it is. The same call resumes interrupted work,
    because evaluations are kept.

    Args:
        quantizer: of the evaluator's network.
        evaluator: with the labelled images.
        schemes: the smallest file first, see `fallbacks`.
        path: output file; not written if no scheme is accurate enough.
        tolerance: largest loss of top-1 accuracy against float32, in percentage points; unlimited by default.
        agreement: smallest share of images with the same best class as float32, in percent.

    Raises:
        Error: no scheme is accurate enough.
    """
    trials: list[Trial] = []
    for scheme in schemes:
        quantized = quantizer.quantize(scheme)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            file = Path(folder) / path.name
            quantizer.write(quantized, file, str(scheme))
            record = evaluator.compare(load(file), str(scheme))
            trial = Trial(scheme, file.stat().st_size, record, evaluator.baseline)
        trials.append(trial)
        yield trial
        if (tolerance is None or trial.loss <= tolerance) and trial.agreement >= agreement:
            quantizer.write(quantized, path, _note(trial, evaluator, _conditions(tolerance, agreement), len(trials)))
            return
    best = max(trials, key=lambda one: one.agreement if tolerance is None else -one.loss)
    raise Error(
        f"{path}: not written: none of {len(trials)} schemes is {_conditions(tolerance, agreement)}; the closest, "
        f"{best.scheme}, loses {best.loss:.2f} points and agrees on {best.agreement:.2f}%"
    )


def _conditions(tolerance: float | None, agreement: float) -> str:
    """What a scheme has to meet: `within 0.1 points of float32 with 99% agreement`; empty if that is nothing."""
    loss = "" if tolerance is None else f"within {tolerance:g} points of float32"
    same = f"with {agreement:g}% agreement" if agreement else ""
    return f"{loss} {same}".strip()


def _note(trial: Trial, evaluator: Evaluator, conditions: str, count: int) -> str:
    """The reason for a choice, for the file's metadata."""
    figure = main_figure(trial.record)
    title = {"top1": "top-1", "map": "mAP"}[figure]
    note = (
        f"{trial.scheme}: {title} {trial.record[figure]:.2f}%, {trial.loss:.2f} points below float32, the same best class "
        f"for {trial.agreement:.2f}%, of {trial.record['images']} images in {Path(evaluator.dataset.name).name}"
    )
    return f"{note}; the first of {count} schemes {conditions}" if conditions else note


@dataclass(frozen=True)
class LayerTrial:
    """The cost of quantizing one layer's weight."""

    layer: str
    parameters: int
    weight: float  # signal-to-noise ratio of the weight, in decibels
    output: float | None = None  # signal-to-noise ratio of the layer's output over images, in decibels
    record: dict[str, Any] | None = None  # of `vgg.evaluation.records`, with this layer alone quantized
    loss: float | None = None  # of top-1 accuracy, in percentage points


def per_layer(
    network: Network, scheme: Scheme, evaluator: Evaluator | None = None, images: Dataset | None = None
) -> Iterator[LayerTrial]:
    """The cost of quantizing each layer alone: the noise of its weight and of its output, and the loss of accuracy.

    Args:
        network: with float parameters.
        scheme: how weights are quantized.
        evaluator: with the labelled images, for the loss of accuracy.
        images: a sample of them is used for the outputs; by default, a sample of the evaluator's.

    Raises:
        ImageError: an image can't be read.
    """
    sample = _sample(network, evaluator, images)
    plain = None if sample is None else engines.open(network)
    for layer in network.architecture.layers:
        if "weight" not in layer.parameters:
            continue
        alone = quantize_weights(network, scheme.bits, int8_layers=scheme.int8_layers, group=scheme.group, layers=[layer.name])
        ratio = noise(network.parameters[f"{layer.name}.weight"], alone.parameters[f"{layer.name}.weight"])
        value = layer.name if layer.name in network.architecture.values else "logits"
        output = None if plain is None or sample is None else _output_noise(plain, engines.open(alone), value, sample)
        record = evaluator.compare(alone, f"{scheme}, {layer.name} alone") if evaluator else None
        loss = Trial(scheme, 0, record, evaluator.baseline).loss if evaluator and record else None
        yield LayerTrial(layer.name, math.prod(layer.parameters["weight"]), ratio, output, record, loss)


def _sample(network: Network, evaluator: Evaluator | None, images: Dataset | None) -> Array | None:
    """Evenly spaced images, float32 [batch, 3, crop, crop]."""
    recipe, dataset = network.preprocessing, images
    if evaluator and not images:
        recipe, dataset = evaluator.preprocessing or recipe, evaluator.dataset
    if not dataset:
        return None
    return np.stack([recipe(one, one.name) for one in dataset.samples[:: -(-len(dataset) // NOISE_IMAGES)]])


def _output_noise(plain: engines.Engine, alone: engines.Engine, value: str, sample: Array) -> float:
    """The signal-to-noise ratio of a layer output in decibels, a few images at a time."""
    signal = lost = 0.0
    for start in range(0, len(sample), BATCH):
        expected, found = (engine.run(sample[start : start + BATCH], (value,))[value] for engine in (plain, alone))
        signal += float(np.vdot(expected, expected))
        found -= expected
        lost += float(np.vdot(found, found))
    return decibels(signal, lost)


def speed(network: Network, path: Path, engine: str = "auto", threads: int | None = None) -> str:
    """A sentence with the speed of a quantized file and of its network in float32, measured in alternating rounds.

    The network runs on ONNX Runtime, or if that isn't installed on the default engine.
    """
    count = threads or cores()
    size = network.architecture.input_size
    batch = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    quantized = engines.open(path, engine, threads=count)
    plain = engines.open(network, REFERENCE if REFERENCE in engines.installed() else "auto", threads=count)
    runners = {"float32": plain, "quantized": quantized}
    compared = side_by_side(runners, batch, {}, count)
    reference, ours = (compared.milliseconds(one.quantile(0.5)) for one in compared.timings)
    ratio = compared.ratio(compared.timings[1], "float32")
    return (
        f"{ours:.1f} ms per image on {quantized.name}, {ratio:.2f} of float32's {reference:.1f} ms on {plain.name}; "
        f"batch 1, {counted(count, 'thread')} of {os.cpu_count()} cores, {processor()}"
    )
