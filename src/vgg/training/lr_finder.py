"""The learning-rate range test: the loss while the rate rises, and a suggestion.

L. N. Smith, "Cyclical learning rates for training neural networks", arXiv 1506.01186, section 3.3.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import Error
from ..files import replacing, write_csv
from ..progress import Progress, silent
from . import checkpoint
from .loop import Trainer
from .optimizer import set_rate
from .options import Options
from .processes import processes
from .setup import cache_values, prepare

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0  # learning rates
SMOOTHING = 0.9  # decay of the moving average of the losses
FIRST, WINDOW = 10, 10  # steps that are not used for the suggestion; steps on each side of one whose slope is measured
DIVERGED = 4.0  # the test ends when the smoothed loss exceeds the lowest one by this factor


@dataclass(frozen=True)
class RateTest:
    """The result of a learning-rate range test."""

    rates: list[float]
    losses: list[float]  # of each step
    smoothed: list[float]  # their moving average
    suggestion: float | None  # None if the loss does not fall


def find_rate(options: Options, progress: Progress = silent, log: Callable[[str], object] = lambda line: None) -> RateTest:
    """Train a network for up to 100 steps while the learning rate rises from 1e-6 to 1, and suggest a rate.

    The network, the images and the loss are those of a run with the same options, from its first step, with all layers thawed
    that are not frozen. The network is discarded, and a run in the folder stays as it is; lr.csv and lr.png are written there,
    and values of frozen layers are kept for the run. The result is the same for the same options.

    The suggestion is the rate at which the smoothed loss falls fastest, measured over more than a power of ten, so that single
    steps have little influence. (fastai's `valley`, the middle of the longest series of falling losses, begins in the noise of
    the lowest rates, and was two and four times lower in two trials.)

    Args:
        options: see `Options`; the recipe's `lr` and schedule are not used.
        progress: see `vgg.progress`.
        log: called with a line on the images and the network.

    Raises:
        Error: as `train`.
    """
    with processes(options.device) as process:
        if process.rank:
            progress, log = silent, lambda line: None
        setup = prepare(options, log)
        checkpoint.create(options.output, fresh=False)
        cache_values(setup, options, process, progress)
        trainer = Trainer(options, setup, process, progress, log)
        trainer.module.train()
        thawed = replace(setup.recipe, thaw=0)
        rates: list[float] = []
        losses: list[float] = []
        batches = trainer.batches()
        for number in range(STEPS):
            if trainer.step == trainer.steps:
                trainer.epoch, trainer.step = trainer.epoch + 1, 0
                batches = trainer.batches()
            lr = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
            set_rate(trainer.optimizer, lr, 0, thawed)
            loss = process.total(trainer.gradients(batches, trainer.view)[0])
            if not math.isfinite(loss):
                break
            trainer.optimizer.step()
            trainer.step += 1
            rates.append(lr)
            losses.append(loss)
            smoothed = smooth(losses)
            progress("Testing learning rates", number + 1, STEPS)
            if smoothed[-1] > DIVERGED * min(smoothed):
                break
        if not losses:
            raise Error(f"the loss is {loss} at the learning rate {lr:g}; the images or the network are unsuitable")
        found = RateTest(rates, losses, smoothed, suggested(rates, smoothed))
        if process.rank == 0:
            _write(options.output, found)
        return found


def smooth(losses: Sequence[float]) -> list[float]:
    """The moving averages of losses, each without the bias of the first ones (as in Adam)."""
    average, smoothed = 0.0, []
    for number, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**number))
    return smoothed


def suggested(rates: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest, two significant digits; None if it never falls.

    The slope is that of the line that fits the losses of 21 steps best. The first steps, whose average is of few losses, are
    left out.
    """
    slopes = {}
    for middle in range(FIRST + WINDOW, len(smoothed) - WINDOW):
        part = slice(middle - WINDOW, middle + WINDOW + 1)
        slopes[rates[middle]] = np.polyfit(np.log(rates[part]), smoothed[part], 1)[0]
    best = min(slopes, key=lambda rate: slopes[rate], default=None)
    return float(f"{best:.1e}") if best is not None and slopes[best] < -1e-9 else None


def _write(folder: Path, found: RateTest) -> None:
    """Write lr.csv and lr.png."""
    from matplotlib.figure import Figure

    columns = ("lr", "loss", "smoothed")
    write_csv(folder / "lr.csv", columns, zip(found.rates, found.losses, found.smoothed, strict=True))
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="C0", alpha=0.3, label="loss")
    axes.plot(found.rates, found.smoothed, color="C0", label="smoothed")
    if found.suggestion:
        axes.axvline(found.suggestion, color="C1", linestyle="--", label=f"suggestion {found.suggestion:g}")
    low, high = min(found.smoothed), max(found.smoothed[: len(found.smoothed) // 2 + 1])
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - 0.1 * (high - low), high + 0.5 * (high - low)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    with replacing(folder / "lr.png") as file:
        figure.savefig(file, format="png", dpi=120)
