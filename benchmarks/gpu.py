"""VGG-16 on a GPU, 224x224, bfloat16: inference and training, the engine and `vgg train` beside a plain torch module.

    .venv/bin/python benchmarks/gpu.py --batch 256

The peak is the speed of a product of two 8192x8192 matrices. An image counts as 2 operations for each multiply-add of the
network, three times that in training. `in place` leaves out the copies to and from the device. `vgg train` is the real loop,
which decodes and crops images; the other loops have their batch on the device.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training import vgg16, write_images
from vgg import Network
from vgg.engines.torch import TorchEngine
from vgg.network import Provenance
from vgg.preprocessing import PRESETS
from vgg.training import RECIPES, Options, train

ROUNDS = 3
STEPS = 10  # in each round, and in an epoch of the real loop


def seconds(work: Callable[[], object], steps: int = STEPS) -> float:
    """Seconds of a step: the mean over the steps of a round, the median over the rounds, after a round that is not counted."""
    rounds = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            work()
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - started) / steps)
    return statistics.median(rounds[1:])


def stepping(module: nn.Module, batch: torch.Tensor, targets: torch.Tensor) -> Callable[[], object]:
    """A training step of a plain loop: SGD with momentum, bfloat16 by autocast."""
    optimizer = torch.optim.SGD(module.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(module(batch), targets)
        loss.backward()
        optimizer.step()

    return step


class Table:
    """Prints a row for each measurement."""

    def __init__(self, batch: int, cost: float, peak: float) -> None:
        self._batch, self._cost, self._peak = batch, cost, peak
        print(f"\n{'':44} images/s  share of the peak")

    def row(self, name: str, seconds: float, passes: int) -> None:
        """Print the speed of a batch that took some seconds; training counts as three passes."""
        share = passes * self._cost * self._batch / seconds / self._peak
        print(f"{name:44} {self._batch / seconds:8,.0f}  {share:.1%}", flush=True)


def inference(table: Table, network: Network, batch: int) -> None:
    host = np.random.default_rng(0).normal(size=(batch, 3, 224, 224)).astype(np.float32)
    engine = TorchEngine(network, device="cuda")
    engine.run(host)
    table.row("inference: engine torch", seconds(lambda: engine.run(host)), 1)
    graph = next(iter(engine._graphs.values()))._graph
    table.row("inference: engine torch, in place", seconds(graph.replay), 1)
    half = torch.from_numpy(host).to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    plain: Any = vgg16(1000).eval().to("cuda", torch.bfloat16, memory_format=torch.channels_last)
    with torch.inference_mode():
        table.row("inference: the module, in place", seconds(lambda: plain(half)), 1)
        compiled = torch.compile(plain)
        table.row("inference: the same compiled, in place", seconds(lambda: compiled(half)), 1)


def training(table: Table, batch: int) -> None:
    images = torch.randn(batch, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
    targets = torch.randint(0, 1000, (batch,), device="cuda")
    plain: Any = vgg16(1000).cuda().to(memory_format=torch.channels_last)
    table.row("training: the module, in place", seconds(stepping(plain, images, targets)), 3)
    compiled: Any = torch.compile(plain)
    table.row("training: the same compiled, in place", seconds(stepping(compiled, images, targets)), 3)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "data", batch * STEPS, 10)
        write_images(Path(folder) / "val", 10, 10)
        recipe = replace(RECIPES["torchvision"], batch=batch, epochs=2, bf16=True, channels_last=True)
        run = Options(Path(folder) / "data", Path(folder) / "run", recipe, Path(folder) / "val", arch="vgg16", device="cuda")
        row = train(run).history[-1]
    table.row(f"training: vgg train, {row['waited']:.1%} waiting for images", batch / row["images_per_second"], 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="number of images in a batch")
    batch = parser.parse_args().batch
    torch.backends.cudnn.benchmark = True
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * 8192**3 / seconds(lambda: left @ right)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peak {peak / 1e12:.0f} TFLOP/s; batches of {batch}")
    network = vgg16(1000).network(PRESETS["torchvision"], None, Provenance())
    table = Table(batch, 2 * network.architecture.multiply_adds(), peak)
    inference(table, network, batch)
    training(table, batch)


if __name__ == "__main__":
    main()
