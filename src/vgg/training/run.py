"""A training run from start to end: `train`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Error
from ..progress import Progress, silent
from . import checkpoint, test_set
from .checkpoint import BEST, LAST, SCORES, TEST
from .history import TITLES, Row, decisive, draw_curves
from .loop import Trainer
from .options import Options
from .processes import Process, processes
from .setup import cache_values, prepare


@dataclass(frozen=True)
class Outcome:
    """The result of a training run."""

    path: Path  # of the best network, an ONNX file
    history: list[Row]  # one for each epoch, as in log.csv
    errors: dict[str, str]  # images that couldn't be read: the reason by name
    test: dict[str, Any] | None = None  # measures of the best network on the test images, as in test.json


def train(options: Options, progress: Progress = silent, log: Callable[[str], object] = lambda line: None) -> Outcome:
    """Train a network, fine-tune one, or distil one from others. The same options resume an interrupted run.

    The epoch that is kept is chosen on the validation images. Test images are read once, after training, with the network of
    that epoch. Under torchrun, each process computes its part of every batch.

    Args:
        options: see `Options`.
        progress: see `vgg.progress`.
        log: called with a line for each epoch, and for what happens before and after.

    Returns:
        The best network, with the history of the run and the measures of the test. The run's folder also has the log, the
        last checkpoint, and these measures in test.json.

    Raises:
        Error: the images don't fit the options, the folder has another run, a file can't be written, or the loss is not
            finite.
    """
    with processes(options.device) as process:
        return run(options, process, progress, log)


def run(options: Options, process: Process, progress: Progress, log: Callable[[str], object]) -> Outcome:
    """Train in this process; see `train`."""
    if process.rank:
        progress, log = silent, lambda line: None
    if not options.fresh and (options.output / "fold-1" / LAST).exists():
        raise Error(f"{options.output}: holds a cross-validation; use --fresh to start over, or choose another folder")
    setup = prepare(options, log)
    with process.first_alone():
        checkpoint.create(options.output, fresh=options.fresh and process.rank == 0)
    state = checkpoint.resume(options.output, setup.key)
    if not state and process.rank == 0:
        checkpoint.delete(options.output, TEST, SCORES)  # of another network: the checkpoint was deleted without them
    cache_values(setup, options, process, progress)
    trainer = Trainer(options, setup, process, progress, log)
    if state:
        trainer.restore(state)
    recipe, history = setup.recipe, trainer.history
    while not trainer.is_finished:
        row = trainer.train_epoch()
        trainer.end_epoch({**row, **trainer.evaluate()})
    if trainer.epoch < recipe.epochs:
        measure = TITLES[decisive(history[-1], recipe.best)]
        log(f"stopped after epoch {trainer.epoch}: no better {measure} in {recipe.patience} epochs")
    if process.rank == 0:
        draw_curves(options.output, history, recipe.best)
    found = test_set.measure(options, setup, history, progress, log) if setup.test and process.rank == 0 else None
    errors = setup.train.errors | setup.val.errors | (found["errors"] if found else {})
    return Outcome(options.output / BEST, history, errors, found)
