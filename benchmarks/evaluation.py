"""Measure how well `vgg evaluate` overlaps decoding and inference, and the speed-up of dense evaluation over as many crops.

    .venv/bin/python benchmarks/evaluation.py vgg16.onnx imagenet/val

Each round measures everything once, so that a temporary disturbance of the machine affects all measurements.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from measurements import Measurements, parser

from vgg import load, sources
from vgg.architectures import STRIDE
from vgg.evaluation import evaluate
from vgg.sources import Dataset
from vgg.views import Views


class Idle:
    """An engine without computation."""

    name = "native"

    def run(self, batch: np.ndarray, outputs: Sequence[str] = ("logits",)) -> dict[str, np.ndarray]:
        return {"logits": np.zeros((len(batch), 1000), np.float32)}

    def logits(self, batch: np.ndarray) -> np.ndarray:
        return self.run(batch)["logits"]


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begun = clock()
    work()
    return clock() - begun


def overlap(model: str, folder: Path, count: int, rounds: int, results: Measurements) -> None:
    """Measure the time of the slower part alone, divided by the time of both together; the medians of the rounds."""
    classifier, views = load(model), Views("center", (256,))
    engine, labels = classifier.engine, classifier.network.labels
    whole = sources.open(folder, labels=labels)
    some = Dataset(whole.name, whole.samples[:: max(1, len(whole) // count)][:count])
    batch = np.random.default_rng(0).standard_normal((16, 3, 224, 224), np.float32)
    found = []
    for _ in range(rounds):
        classifier.engine = Idle()
        decoding = seconds(lambda: evaluate([classifier], some, views))
        classifier.engine = engine
        computing = sum(seconds(lambda n=n: engine.logits(batch[: min(16, len(some) - n)])) for n in range(0, len(some), 16))
        both = seconds(lambda: evaluate([classifier], some, views))
        found.append([took / len(some) * 1e3 for took in (decoding, computing, both)] + [max(decoding, computing) / both])
    names = ("ms_decoding", "ms_inference", "ms_evaluating", "ratio")
    values = dict(zip(names, map(median, zip(*found, strict=True)), strict=True))
    results.add({"measurement": "overlap", "model": Path(model).stem, "images": len(some)}, **values)


def dense(model: str, rounds: int, results: Measurements) -> None:
    """Measure the processor time of crops at a dense view's positions, STRIDE pixels apart, divided by that of the view."""
    engine = load(model).engine

    def computing(batch: np.ndarray) -> float:
        return seconds(lambda: engine.logits(batch), time.process_time)

    for short in (256, 384, 512):
        for width in (short, short * 4 // 3 // STRIDE * STRIDE):
            whole = np.random.default_rng(0).standard_normal((1, 3, short, width), np.float32)
            crops = np.ascontiguousarray(np.broadcast_to(whole[..., :224, :224], (16, 3, 224, 224)))
            places = ((short - 224) // STRIDE + 1) * ((width - 224) // STRIDE + 1)
            ratios = []
            for _ in range(rounds + 1):
                once = computing(whole)
                ratios.append(sum(computing(crops[: min(16, places - n)]) for n in range(0, places, 16)) / once)
            what = {"measurement": "crops / dense view", "model": Path(model).stem, "images": f"{width}x{short}"}
            results.add(what, crops=places, ratio=median(ratios[1:]))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", help="model with the paper's head")
    options.add_argument("folder", type=Path, help="folder of class folders")
    options.add_argument("--count", type=int, default=160, help="number of images")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    results = Measurements("evaluation", chosen.output)
    overlap(chosen.model, chosen.folder, chosen.count, chosen.rounds, results)
    dense(chosen.model, chosen.rounds, results)


if __name__ == "__main__":
    main()
