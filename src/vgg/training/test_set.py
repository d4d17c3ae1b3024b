"""The test of a finished run: the network that was kept, on images that neither trained it nor chose its epoch."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import json_output
from ..classifier import Classifier
from ..errors import Error, one_line
from ..evaluation import Evaluation, evaluate, records
from ..files import reason, replacing, write_csv
from ..network import Network
from ..progress import Progress
from .checkpoint import BEST, SCORES, TEST
from .history import Row, is_validated, kept_row, measures_text
from .images import class_names
from .options import Options
from .setup import Setup

# The main measures of a record, those that it has, with their titles; in percent.
TITLES = {
    "top1": "top-1", "top5": "top-5", "map": "mean average precision", "f1_micro": "F1 micro", "f1_macro": "F1 macro",
    "balanced_accuracy": "balanced accuracy", "roc_auc": "AUC", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip


def measure(
    options: Options, setup: Setup, history: Sequence[Row], progress: Progress, log: Callable[[str], object]
) -> dict[str, Any]:
    """The measures of a run's best network on its test images: computed once, written to test.json, and logged as a line.

    Returns:
        The record of `vgg.evaluation.records` with the `epoch` of the network, its validation measures (`val_loss`, …), the
        name of the `test` images, and `errors`, the images that couldn't be read. For a fold, test.csv has all scores.
    """
    assert setup.test is not None
    path, scores, best = options.output / TEST, options.output / SCORES, setup.recipe.best
    row = kept_row(history, best)
    if path.exists() and (scores.exists() or not options.fold):
        record = _read(path)
    else:
        model = Classifier(Network.read(options.output / BEST), device=options.device, name=BEST)
        evaluation = evaluate([model], setup.test, workers=options.workers, progress=progress)
        [found] = records(evaluation)
        chosen = {name: value for name, value in row.items() if name.startswith("val_") and is_validated(row)}
        errors = {setup.test.samples[place].name: text for place, text in evaluation.errors.items()}
        if options.fold:
            _write_scores(scores, setup, evaluation, options.fold[0])
        record = {"test": setup.test.name, "epoch": row["epoch"], **chosen, **found, "errors": errors}
        with replacing(path) as file:
            file.write((json_output.dumps(record, indent=2) + "\n").encode())
    measures = measures_text(row, best)
    log(f"{_line(record)}, " + (f"validation {measures.removeprefix('validation ')}" if is_validated(row) else measures))
    return record


def _line(record: Mapping[str, Any]) -> str:
    return f"test: {figures(record)}, {record['images']:,} images; epoch {record['epoch']}"


def _read(path: Path) -> dict[str, Any]:
    """The record of an earlier test. Raises Error if it is damaged."""
    try:
        record = dict(json.loads(path.read_bytes()))
        _line(record)
        return record | {"errors": dict(record["errors"])}
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Error(f"{path}: is damaged ({one_line(error)}); delete it, and the same command repeats the test") from None


def _write_scores(path: Path, setup: Setup, evaluation: Evaluation, fold: int) -> None:
    """Write a table of the test images that could be read: name, fold, classes, and the scores of all classes, exactly."""
    [results], names = evaluation.results, class_names(setup.labels, evaluation.classes)

    def rows() -> Iterator[list[Any]]:
        for place in np.flatnonzero(evaluation.readable()).tolist():
            sample = evaluation.dataset.samples[place]
            label = "|".join(names[target] for target in sample.classes)
            yield [sample.name, fold, label, *map(str, results.every[place])]  # the shortest text of each float32

    write_csv(path, ["image", "fold", "class", *(f"score_{name}" for name in names)], rows())


def figures(record: Mapping[str, Any]) -> str:
    """The main figures of a record as text: `top-1 86.00% (85.31–86.67), top-5 99.10% (98.90–99.27)`."""
    texts = []
    for name, title in TITLES.items():
        if record.get(name) is not None:
            low, high = record.get(f"{name}_low"), record.get(f"{name}_high")
            texts.append(f"{title} {record[name]:.2f}%" + (f" ({low:.2f}–{high:.2f})" if low is not None else ""))
    return ", ".join(texts)
