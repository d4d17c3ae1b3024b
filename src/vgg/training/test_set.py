"""The test of a finished run: the network that was kept, on images that neither trained it nor chose its epoch."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import json_output
from ..classifier import Classifier
from ..evaluation import evaluate, records
from ..files import replacing
from ..network import Network
from ..progress import Progress
from .checkpoint import BEST, TEST
from .history import Row, best_row, measures_text
from .options import Options
from .setup import Setup

# Measures in the line of a test, those that a record has, with their titles.
TITLES = {
    "top1": "top-1", "top5": "top-5", "map": "mean average precision", "f1_micro": "F1",
    "balanced_accuracy": "balanced accuracy", "roc_auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip


def measure(
    options: Options, setup: Setup, history: Sequence[Row], progress: Progress, log: Callable[[str], object]
) -> dict[str, Any]:
    """The measures of a run's best network on its test images: computed once, written to test.json, and logged as a line.

    Returns:
        The record of `vgg.evaluation.records` with the `epoch` of the network, its validation measures (`val_loss`, …), the
        name of the `test` images, and `errors`, the images that couldn't be read.
    """
    assert setup.test is not None
    path, best = options.output / TEST, setup.recipe.best
    row = best_row(history, best) if len(setup.val_indices) else history[-1]
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_bytes())
    else:
        model = Classifier(Network.read(options.output / BEST), device=options.device, name=BEST)
        evaluation = evaluate([model], setup.test, workers=options.workers, progress=progress)
        [found] = records(evaluation)
        chosen = {name: value for name, value in row.items() if name.startswith("val_")}
        errors = {setup.test.samples[place].name: text for place, text in evaluation.errors.items()}
        record = {"test": setup.test.name, "epoch": row["epoch"], **chosen, **found, "errors": errors}
        with replacing(path) as file:
            file.write((json_output.dumps(record, indent=2) + "\n").encode())
    chosen_by = f", validation {measures_text(row, best)}" if len(setup.val_indices) else ""
    log(f"test: {figures(record)}, {record['images']:,} images; epoch {record['epoch']}{chosen_by}")
    return record


def figures(record: Mapping[str, Any]) -> str:
    """The main figures of a record as text: `top-1 86.00% (85.31–86.67), top-5 99.10% (98.90–99.27)`."""
    texts = []
    for name, title in TITLES.items():
        if record.get(name) is not None:
            low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
            texts.append(f"{title} {record[name]:.2f}%" + (f" ({low:.2f}–{high:.2f})" if low is not None else ""))
    return ", ".join(texts)
