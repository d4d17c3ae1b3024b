"""Time of a step of `vgg train` and of a plain loop over the same layers of torch, in turns.

    .venv/bin/python benchmarks/training.py --steps 6 --threads 2
    .venv/bin/python benchmarks/training.py --arch vgg16-bn --side 32 --recipe cifar --batch 128

The step of `vgg train` is one of the real loop, with images decoded and cropped beside it; the plain one is SGD with its batch
in memory, in the precision and layout of the recipe.
"""

import statistics
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from measurements import Measurements, parser
from photos import write_images
from torch import nn

from vgg import Architecture
from vgg.module import Module
from vgg.training import RECIPES, Options, Recipe, train
from vgg.training.processes import has_bf16

CLASSES = 10


def plain_module(architecture: Architecture, recipe: Recipe) -> Module:
    """A network with random parameters, in training mode, whose convolutions are torch's own."""
    module = Module(architecture, recipe.dropout)
    module.initialise()
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            layer.__class__ = nn.Conv2d
    return module.to(memory_format=torch.channels_last) if recipe.channels_last else module


def main() -> None:
    described = parser(__doc__)
    described.add_argument("--arch", default="vgg16", help="architecture")
    described.add_argument("--width", type=float, default=1.0, help="width, as a multiple of the paper's")
    described.add_argument("--side", type=int, default=224, help="pixels of the input")
    described.add_argument("--recipe", default="torchvision", choices=list(RECIPES), help="recipe of `vgg train`")
    described.add_argument("--batch", type=int, default=32, help="number of images in a batch")
    described.add_argument("--steps", type=int, default=6, help="number of steps of each; the first is not counted")
    described.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of threads of torch")
    options = described.parse_args()
    torch.set_num_threads(options.threads)
    results = Measurements("training", options.output)
    recipe = replace(RECIPES[options.recipe], batch=options.batch, epochs=1)
    architecture = Architecture(options.arch, CLASSES, options.width, options.side, "gap" if options.side <= 64 else "fc")
    module = plain_module(architecture, recipe)
    optimizer = torch.optim.SGD(module.parameters(), 0.01, 0.9, weight_decay=1e-4)
    batch, targets = torch.randn(options.batch, 3, options.side, options.side), torch.randint(0, CLASSES, (options.batch,))
    if recipe.channels_last:
        batch = batch.contiguous(memory_format=torch.channels_last)
    in_bf16 = recipe.bf16 and has_bf16(torch.device("cpu"))
    found: list[tuple[float, ...]] = []
    mark = [time.perf_counter(), time.process_time()]

    def pair(task: str, done: int, total: int | None, unit: str = "", /) -> None:
        """Called after each step of `vgg train`: take its time, and that of a plain step."""
        ours = time.perf_counter() - mark[0], time.process_time() - mark[1]
        started = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if in_bf16 else nullcontext():
            logits = module(batch)
        loss = nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        loss.item()
        plain = time.perf_counter() - started[0], time.process_time() - started[1]
        if done > 1:
            found.append((ours[0], plain[0], ours[0] / plain[0], ours[1] / plain[1]))
        if done == total:  # the end of the only epoch, before its evaluation
            seconds, plain_seconds, ratio, processor_ratio = map(statistics.median, zip(*found, strict=True))
            results.add(
                {
                    "measurement": "step of vgg train / plain", "network": f"{options.arch}, width {options.width:g}",
                    "side": options.side, "recipe": options.recipe, "bf16": in_bf16, "batch": options.batch,
                    "threads": options.threads,
                },
                pairs=len(found), seconds=seconds, plain_seconds=plain_seconds, ratio=ratio, processor_ratio=processor_ratio,
            )  # fmt: skip
            raise SystemExit
        mark[:] = time.perf_counter(), time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        size = (options.side, options.side) if options.side <= 64 else (500, 375)
        write_images(data, options.batch * options.steps * 10 // 9 + 10, CLASSES, size)
        sizes = {"arch": options.arch, "width": options.width, "size": options.side}
        train(Options(data, Path(folder) / "run", recipe, **sizes), pair)


if __name__ == "__main__":
    main()
