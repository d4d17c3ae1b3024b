"""What a step of `vgg train` costs beside the same step by bare torch modules, in turns: VGG-16, 224x224, SGD, float32.

    .venv/bin/python benchmarks/training.py --steps 6 --threads 2

Our step is one of the real loop, pictures decoded and cropped beside it; the bare one has its batch in memory already.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from vgg.training import RECIPES, Options, train

TABLE = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def bare(classes: int) -> nn.Module:
    """VGG-16 as anybody would write it down."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in TABLE:
        if entry == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU(inplace=True)]
            channels = entry
    linear = [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 4096),
              nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, classes)]  # fmt: skip
    return nn.Sequential(*layers, *linear).train()


def pictures(folder: Path, count: int, classes: int) -> None:
    """Class folders with pictures of the size that ImageNet's mostly have."""

    def write(index: int) -> None:
        path = folder / f"class{index % classes}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(noise).resize((500, 375)).save(path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--steps", type=int, default=6, help="of each; the first of both is not counted")
    options.add_argument("--threads", type=int)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    module = bare(10)
    optimizer = torch.optim.SGD(module.parameters(), 0.01, 0.9, weight_decay=1e-4)
    batch, targets = torch.randn(given.batch, 3, 224, 224), torch.randint(0, 10, (given.batch,))
    quotients: list[tuple[float, float]] = []
    mark = [time.perf_counter(), time.process_time()]

    def pair(what: str, done: int, total: int) -> None:
        ours = time.perf_counter() - mark[0], time.process_time() - mark[1]
        started = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(batch), targets)
        loss.backward()
        optimizer.step()
        loss.item()
        theirs = time.perf_counter() - started[0], time.process_time() - started[1]
        print(f"step {done}: ours {ours[0]:.2f} s, bare {theirs[0]:.2f} s; of processors {ours[1]:.2f} and {theirs[1]:.2f} s")
        if done > 1:
            quotients.append((ours[0] / theirs[0], ours[1] / theirs[1]))
        if done == total:  # one epoch, which would end with an evaluation
            wall, processors = (statistics.median(column) for column in zip(*quotients, strict=True))
            print(
                f"ours / bare, median of {len(quotients)} pairs: {wall:.3f} by the clock, {processors:.3f} of processors' time"
            )
            raise SystemExit
        mark[:] = time.perf_counter(), time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        pictures(data, given.batch * given.steps * 10 // 9 + 10, 10)
        recipe = replace(RECIPES["torchvision"], batch=given.batch, epochs=1)
        train(Options(data, Path(folder) / "run", recipe, arch="vgg16"), pair)


if __name__ == "__main__":
    main()
