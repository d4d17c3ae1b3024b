"""From the smallest file that may do to the first that does: configurations tried one after another on the same pictures."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import engines
from ..arrays import Array
from ..benchmark import REFERENCE, processor, side_by_side
from ..classifier import Classifier, described
from ..errors import Error
from ..evaluation import Run, evaluate, records
from ..files import cache_folder
from ..formats import QuantizedGraph, load, network_of
from ..network import Network
from ..preprocessing import Preprocessing
from ..sources import Dataset
from ..views import Views
from .calibration import BATCH, Pictures
from .quantizer import Configuration, Progress, Quantizer, silent
from .weights import decibels, noise, quantize_weights

Item = TypeVar("Item")
LOOKS = 16  # pictures at most that what layers answer is compared on


@dataclass(frozen=True)
class Trial:
    """What came of a configuration."""

    configuration: Configuration
    size: int  # bytes of the file
    record: dict[str, Any]  # as of `vgg.evaluation.records`, against float32
    baseline: dict[str, Any]  # float32's own

    @property
    def loss(self) -> float:
        """Of top-1 against float32, in percentage points."""
        return float(self.baseline["top1"] - self.record["top1"])

    @property
    def agreement(self) -> float:
        """Share of the pictures whose best class is float32's, in percent."""
        return float(self.record["agreement"])


@dataclass
class Judge:
    """The pictures that configurations are tried on, and what float32 makes of them."""

    network: Network
    dataset: Dataset
    pictures: Pictures | None = None  # for calibration
    preprocessing: Preprocessing | None = None  # of the dataset, instead of the network's
    engine: str = "auto"
    threads: int | None = None
    progress: Progress = silent

    def run(self, network: Network | QuantizedGraph, name: str) -> Run:
        """A network's answers to all pictures, from the user's cache where it has been asked before."""
        shown = described(network, self.preprocessing)
        digest = self.pictures.digest() if self.pictures and network is not self.network else ""
        preprocessing = asdict(network_of(shown).preprocessing)
        key = json.dumps([self.network.sha256(), name, preprocessing, digest, self.dataset.digest(), self.engine])
        path = cache_folder() / "quantizations" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
        model = Classifier(shown, self.engine, threads=self.threads, name=name)
        run = Run.of([model], self.dataset, Views())
        run.restore(path)
        if run.done < len(self.dataset):
            total = len(self.dataset)
            run = evaluate([model], self.dataset, resume=True, progress=lambda done: self.progress(name, done, total))
            run.save(path)
        return run

    def against_float(self, network: Network | QuantizedGraph, name: str) -> dict[str, Any]:
        """The records of a network beside float32's, whose own comes first."""
        first, second = self.run(self.network, "float32"), self.run(network, name)
        both = Run(
            [*first.models, *second.models], self.dataset, first.protocol, ["float32", name],
            [*first.answers, *second.answers], {**first.errors, **second.errors}, first.done,
        )  # fmt: skip
        return records(both)[1]

    def baseline(self) -> dict[str, Any]:
        """The record of float32."""
        return records(self.run(self.network, "float32"))[0]


def tune(
    quantizer: Quantizer,
    judge: Judge,
    rungs: Iterable[Configuration],
    path: Path,
    tolerance: float | None = None,
    agreement: float = 0,
) -> Iterator[Trial]:
    """Try configurations one after another on the judge's pictures, and write the first one that is good enough.

    Each is written beside `path`, read again, and judged as the file that it is. What has been judged once, by the same
    pictures, is known; so a run that was cut goes on.

    Args:
        quantizer: of the judge's network.
        judge: with the labelled pictures.
        rungs: the configurations, the smallest file first, see `ladder`.
        path: the file to write; where nothing is good enough, none is.
        tolerance: the largest loss of top-1 against float32, in percentage points; any when not given.
        agreement: the least share of pictures with the same best class, in percent.

    Raises:
        Error: none is good enough.
    """
    tried: list[Trial] = []
    for configuration in rungs:
        made = quantizer.make(configuration)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            file = Path(folder) / path.name
            quantizer.write(made, file, str(configuration))
            size = file.stat().st_size
            trial = Trial(configuration, size, judge.against_float(load(file), str(configuration)), judge.baseline())
        tried.append(trial)
        yield trial
        if tolerance is None or (trial.loss <= tolerance and trial.agreement >= agreement):
            quantizer.write(made, path, _reason(trial, judge, tolerance, len(tried)))
            return
    best = min(tried, key=lambda one: one.loss)
    wanted = f"within {tolerance:g} points of float32" + (f" and {agreement:g}% agreement" if agreement else "")
    raise Error(
        f"{path}: nothing written: none of {len(tried)} configurations is {wanted}; the nearest, {best.configuration}, loses "
        f"{best.loss:.2f} points and agrees on {best.agreement:.2f}%"
    )


def _reason(trial: Trial, judge: Judge, tolerance: float | None, tried: int) -> str:
    """Why a configuration was chosen, for the file's metadata."""
    said = (
        f"{trial.configuration}: top-1 {trial.record['top1']:.2f}%, {trial.loss:.2f} points below float32, the same best class "
        f"for {trial.agreement:.2f}%, of {trial.record['images']} pictures in {Path(judge.dataset.name).name}"
    )
    return said if tolerance is None else f"{said}; the first of {tried} tried that is within {tolerance:g} points"


@dataclass(frozen=True)
class LayerTrial:
    """What quantizing one layer's weight costs."""

    layer: str
    numbers: int
    weight: float  # ratio of the weight's signal to its quantization noise, in decibels
    answer: float | None = None  # the same ratio of what the layer answers, behind its ReLU, to pictures
    record: dict[str, Any] | None = None  # as of `vgg.evaluation.records`, with this layer alone quantized
    loss: float | None = None  # of top-1, in percentage points


def per_layer(
    network: Network, configuration: Configuration, judge: Judge | None = None, pictures: Pictures | None = None
) -> Iterator[LayerTrial]:
    """What quantizing each layer alone costs: the noise in its weight, in what it answers, and what is lost by it.

    Args:
        network: in floats.
        configuration: says how weights are quantized.
        judge: with the labelled pictures, for what is lost.
        pictures: some of them are for the answers; when not given, some of the judge's are.

    Raises:
        ImageError: a picture can't be read.
    """
    looks = _looks(network, judge, pictures)
    plain = None if looks is None else engines.open(network)
    for layer in network.architecture.layers:
        if "weight" not in layer.parameters:
            continue
        alone = quantize_weights(
            network, configuration.bits, fine=configuration.fine, group=configuration.group, only=[layer.name]
        )
        ratio = noise(network.parameters[f"{layer.name}.weight"], alone.parameters[f"{layer.name}.weight"])
        value = layer.name if layer.name in network.architecture.values else "logits"
        heard = None if plain is None or looks is None else _answers(plain, engines.open(alone), value, looks)
        record = judge.against_float(alone, f"{configuration}, {layer.name} alone") if judge else None
        loss = judge.baseline()["top1"] - record["top1"] if judge and record else None
        yield LayerTrial(layer.name, math.prod(layer.parameters["weight"]), ratio, heard, record, loss)


def _looks(network: Network, judge: Judge | None, pictures: Pictures | None) -> Array | None:
    """Some pictures, float32 [batch, 3, crop, crop], from all over those that there are."""
    if pictures:
        chosen, recipe = _spread(pictures.found), network.preprocessing
    elif judge:
        chosen = [(one.name, one) for one in _spread(judge.dataset.samples)]
        recipe = judge.preprocessing or network.preprocessing
    else:
        return None
    return np.stack([recipe(picture, name) for name, picture in chosen])


def _spread(found: Sequence[Item]) -> Sequence[Item]:
    return found[:: -(-len(found) // LOOKS)]


def _answers(plain: engines.Engine, alone: engines.Engine, value: str, looks: Array) -> float:
    """The ratio of signal to noise of a value, in decibels, over pictures, which are looked at a few at a time."""
    signal = lost = 0.0
    for start in range(0, len(looks), BATCH):
        expected, found = (engine.run(looks[start : start + BATCH], (value,))[value] for engine in (plain, alone))
        signal += float(np.vdot(expected, expected))
        found -= expected
        lost += float(np.vdot(found, found))
    return decibels(signal, lost)


def speed(network: Network, path: Path, engine: str = "auto", threads: int | None = None) -> str:
    """How fast a quantized file is beside its network in float32, measured in turns on this machine, as a sentence."""
    count = threads or os.cpu_count() or 1
    size = network.architecture.input_size
    batch = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    ours = engines.open(path, engine, threads=count)
    runners = {REFERENCE: engines.open(network, REFERENCE, threads=count), "ours": ours}
    compared = side_by_side(runners, batch, {}, count)
    times = {one.engine: compared.milliseconds(one.quantile(0.5)) for one in compared.timings}
    ratio = compared.ratio(compared.timings[1])
    return (
        f"{times['ours']:.1f} ms an image on {ours.name}, {ratio:.2f} of float32's {times[REFERENCE]:.1f} ms on ONNX Runtime; "
        f"batch 1, {count} thread{'s' * (count > 1)} of {os.cpu_count()} cores, {processor()}"
    )
