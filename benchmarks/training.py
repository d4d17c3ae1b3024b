"""Time of a step of `vgg train` and of a plain loop over the same module, in turns: VGG-16, 224x224, SGD, float32.

    .venv/bin/python benchmarks/training.py --steps 6 --threads 2

The step of `vgg train` is one of the real loop, with images decoded and cropped beside it; the plain one has its batch in
memory.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from measurements import Measurements, parser
from photos import write_images
from torch import nn

from vgg import Architecture
from vgg.module import Module
from vgg.training import RECIPES, Options, train


def vgg16(classes: int) -> Module:
    """VGG-16 with random parameters, in training mode."""
    module = Module(Architecture("vgg16", classes), dropout=0.5)
    module.initialise()
    return module.train()


def main() -> None:
    described = parser(__doc__)
    described.add_argument("--batch", type=int, default=32, help="number of images in a batch")
    described.add_argument("--steps", type=int, default=6, help="number of steps of each; the first is not counted")
    described.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of threads of torch")
    options = described.parse_args()
    torch.set_num_threads(options.threads)
    results = Measurements("training", options.output)
    module = vgg16(10)
    optimizer = torch.optim.SGD(module.parameters(), 0.01, 0.9, weight_decay=1e-4)
    batch, targets = torch.randn(options.batch, 3, 224, 224), torch.randint(0, 10, (options.batch,))
    found: list[tuple[float, ...]] = []
    mark = [time.perf_counter(), time.process_time()]

    def pair(task: str, done: int, total: int | None, unit: str = "", /) -> None:
        """Called after each step of `vgg train`: take its time, and that of a plain step."""
        ours = time.perf_counter() - mark[0], time.process_time() - mark[1]
        started = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(batch), targets)
        loss.backward()
        optimizer.step()
        loss.item()
        plain = time.perf_counter() - started[0], time.process_time() - started[1]
        if done > 1:
            found.append((ours[0], plain[0], ours[0] / plain[0], ours[1] / plain[1]))
        if done == total:  # the end of the only epoch, before its evaluation
            seconds, plain_seconds, ratio, processor_ratio = map(statistics.median, zip(*found, strict=True))
            results.add(
                {"measurement": "step of vgg train / plain", "batch": options.batch, "threads": options.threads},
                pairs=len(found), seconds=seconds, plain_seconds=plain_seconds, ratio=ratio, processor_ratio=processor_ratio,
            )  # fmt: skip
            raise SystemExit
        mark[:] = time.perf_counter(), time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_images(data, options.batch * options.steps * 10 // 9 + 10, 10)
        recipe = replace(RECIPES["torchvision"], batch=options.batch, epochs=1)
        train(Options(data, Path(folder) / "run", recipe, arch="vgg16"), pair)


if __name__ == "__main__":
    main()
