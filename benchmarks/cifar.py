"""A VGG network trained on CIFAR by `vgg train` on a GPU, for gpu.py.

The row of a run is updated after each epoch: `images_per_s`; `not_waiting`, the share of the time in which the loop did not
wait for images, of all epochs so far and of the first one; and `of_plain`, the speed as a share of that of a plain loop with
its batch on the device. A run that was stopped resumes.

Images are decoded before the first step. Threads crop them, as on the CPU: one thread crops 58,000 images a second (AMD EPYC,
Zen 4), and several not many more, since they hold the interpreter's lock. At 20,000 images a second they need a third of it, so
crops stay off the device; `of_plain` shows what that costs.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from measurements import Measurements, read
from recipes import mirrored_top1

from vgg import Architecture, load

if TYPE_CHECKING:
    from vgg.training import Recipe


def train_on_cifar(
    data: Path,
    runs: Path,
    architecture: Architecture,
    recipe: "Recipe",
    title: str,
    device: str,
    plain: float,
    results: Measurements,
) -> None:
    """Train a network in a folder of its own in `runs`, and measure its accuracy and the speed.

    Args:
        data: folder of CIFAR-10 or CIFAR-100.
        runs: folder of the runs.
        architecture: its name and width count.
        recipe: of the training.
        title: of the recipe, in the row.
        device: `cuda` or `cpu`.
        plain: images per second of a plain loop.
        results: gets the row.
    """
    from vgg.training import Options, train

    folder, width = runs / data.resolve().name, architecture.width
    options = Options(data, folder, recipe, arch=architecture.name, width=width, device=device, workers=os.cpu_count())
    what = {"measurement": "CIFAR", "dataset": folder.name, "network": f"{architecture.name}, width {width}"}
    what |= {"recipe": title, "epochs": recipe.epochs}

    finished = results.find(**what) or {}  # by an earlier call
    known = {name: finished[name] for name in ("test_top1", "test_top1_mirrored") if finished.get(name)}

    def add(**accuracies: float) -> None:
        history = [{name: float(text) for name, text in row.items()} for row in read(folder / "log.csv")]
        seconds = sum(row["seconds"] for row in history)
        speed, waited = (
            sum(row["seconds"] * row[name] for row in history) / seconds for name in ("images_per_second", "waited")
        )
        results.add(
            what, epochs_done=len(history), val_top1=history[-1]["val_top1"], **{**known, **accuracies}, seconds=seconds,
            images_per_s=speed, of_plain=speed / plain, not_waiting=1 - waited, not_waiting_at_first=1 - history[0]["waited"],
        )  # fmt: skip

    outcome = train(options, log=lambda line: add() if (folder / "log.csv").exists() else print(line, flush=True))
    model = load(outcome.path, "torch", device=device)
    add(test_top1=outcome.test["top1"], test_top1_mirrored=mirrored_top1(model, data))
