"""Measure how well `vgg evaluate` overlaps decoding and inference, and the speed-up of dense evaluation over as many crops.

    .venv/bin/python benchmarks/evaluation.py vgg16.onnx imagenet/val

Each round measures everything once, so that a temporary disturbance of the machine affects all measurements.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

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


def overlap(model: str, folder: Path, count: int, rounds: int) -> None:
    """Print the time of the slower part alone, divided by the time of both together."""
    classifier, views = load(model), Views("center", (256,))
    engine, labels = classifier.engine, classifier.network.labels
    whole = sources.open(folder, labels=labels)
    some = Dataset(whole.name, whole.samples[:: max(1, len(whole) // count)][:count])
    batch = np.random.default_rng(0).standard_normal((16, 3, 224, 224), np.float32)
    shares = []
    for _ in range(rounds):
        classifier.engine = Idle()
        decoding = seconds(lambda: evaluate([classifier], some, views))
        classifier.engine = engine
        computing = sum(seconds(lambda n=n: engine.logits(batch[: min(16, len(some) - n)])) for n in range(0, len(some), 16))
        both = seconds(lambda: evaluate([classifier], some, views))
        shares.append(max(decoding, computing) / both)
        each = [f"{took / len(some) * 1e3:6.1f}" for took in (decoding, computing, both)]
        print(f"ms per image: decoding {each[0]}, inference {each[1]}, evaluating {each[2]}: {shares[-1]:.2f}", flush=True)
    print(f"overlap: {median(shares):.2f} of the slower part's speed")


def dense(model: str, rounds: int) -> None:
    """Print the processor time of a dense view relative to that of crops at the same positions, STRIDE pixels apart."""
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
            print(f"{width}x{short}: {places} crops take {median(ratios[1:]):.1f} times as long as a dense view", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model with the paper's head")
    parser.add_argument("folder", type=Path, help="folder of class folders")
    parser.add_argument("--count", type=int, default=160, help="number of images")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    overlap(chosen.model, chosen.folder, chosen.count, chosen.rounds)
    dense(chosen.model, chosen.rounds)


if __name__ == "__main__":
    main()
