"""Cross-validation: a training run for each fold of the images, which is its test; see docs/training.md."""

import csv
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import json_output
from ..arrays import Array
from ..errors import Error, one_line
from ..evaluation.results import ModelResults, matrix
from ..evaluation.summary import Tally, several_figures
from ..files import reason, replacing, write_csv
from ..progress import Progress, silent
from . import checkpoint
from .checkpoint import CACHE, FOLDS, LAST, PREDICTIONS, SCORES
from .options import Options
from .processes import processes
from .run import Outcome, run
from .setup import prepare
from .test_set import TITLES


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation."""

    folds: list[Outcome]
    mean: dict[str, float]  # of each measure over the folds, in percent
    deviation: dict[str, float]  # standard deviation of the folds, with n - 1
    pooled: dict[str, Any]  # measures of all images, each classified by the network that has not seen it


def cross_validate(
    options: Options, count: int, progress: Progress = silent, log: Callable[[str], object] = lambda line: None
) -> CrossValidation:
    """Train a network for each fold, without the fold's images, and test it on them.

    Folds have the classes in the same proportions, and the images of a group are in the same fold; or the images are in
    folders fold-1, fold-2 …, which are the folds. The epoch of each network is chosen on a part held out of the other folds.
    Each run has a folder of its own and is resumed as by `train`; frozen layers and their values are computed once for all.

    Args:
        options: see `Options`. Its folder gets the runs in fold-1, fold-2 …; folds.json with their measures; and
            predictions.csv with the scores of all images by the networks that have not seen them.
        count: number of folds, 2 or more.
        progress: see `vgg.progress`.
        log: called with the lines of `train`.

    Raises:
        Error: as `train`; or a class is in one fold only.
    """
    output, results = options.output, list[Outcome]()
    if (output / LAST).exists() and not options.fresh:
        raise Error(f"{output}: holds a run without folds; use --fresh to start over, or choose another folder")
    with processes(options.device) as process:
        if options.fresh:
            prepare(replace(options, fold=(1, count)), lambda line: None)  # invalid options delete nothing
        with process.first_alone():
            checkpoint.create(output, fresh=options.fresh and process.rank == 0)
        for number in range(1, count + 1):
            one = replace(
                options, output=output / f"fold-{number}", fold=(number, count), cache=options.cache or output / CACHE
            )
            results.append(run(one, process, *_named(number, count, progress, log)))
            gc.collect()  # the run's tensors, which are in reference cycles, before the next one needs memory
        if process.rank:
            return CrossValidation(results, {}, {}, {})
    records = [one.test or {} for one in results]
    several = "map" in records[0]
    tables = [_read(output / f"fold-{number}" / SCORES, several=several) for number in range(1, count + 1)]
    pooled = _pooled(tables, several=several)
    known = [name for name in TITLES if all(one.get(name) is not None for one in records)]
    values = {name: np.array([one[name] for one in records]) for name in known}
    found = CrossValidation(
        results, {name: round(float(one.mean()), 3) for name, one in values.items()},
        {name: round(float(one.std(ddof=1)), 3) for name, one in values.items()}, pooled,
    )  # fmt: skip
    _write(output, found, tables[0].columns)
    return found


def _named(
    number: int, count: int, progress: Progress, log: Callable[[str], object]
) -> tuple[Progress, Callable[[str], object]]:
    """The reports of a fold, with its number."""

    def show(task: str, done: int, total: int | None, unit: str = "", /) -> None:
        progress(f"Fold {number}: {task}", done, total, unit)

    return show, lambda line: log(f"fold {number} of {count}: {line}")


@dataclass(frozen=True)
class _Table:
    """The test.csv of a fold."""

    columns: list[str]
    targets: list[tuple[int, ...]]  # classes of each image
    scores: Array  # float32 [images, classes]


def _read(path: Path, *, several: bool) -> _Table:
    """Read the test.csv of a fold. Raises Error if it can't be read or is damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            columns = next(rows)
            places = {name.removeprefix("score_"): index for index, name in enumerate(columns[3:])}
            targets, scores = list[tuple[int, ...]](), list[Array]()
            for _, _, label, *numbers in rows:
                names = filter(None, label.split("|")) if several else [label]
                targets.append(tuple(places[name] for name in names))
                scores.append(np.array(numbers, np.float32))
        return _Table(columns, targets, np.array(scores, np.float32).reshape(len(targets), len(places)))
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except (ValueError, KeyError, StopIteration, csv.Error) as error:
        raise Error(f"{path}: is damaged ({one_line(error)}); delete it, and the same command repeats the test") from None


def _pooled(tables: Sequence[_Table], *, several: bool) -> dict[str, Any]:
    """The measures of the images of all folds."""
    targets, scores = [one for table in tables for one in table.targets], np.concatenate([one.scores for one in tables])
    count, classes = scores.shape
    results = ModelResults.empty(count, classes, several)
    results.put(range(count), scores, targets, several)
    found: dict[str, Any] = {"images": count}
    if several:
        return found | several_figures(matrix(targets, classes), scores, results.losses)
    tally = Tally(classes)
    tally.add(np.array(targets)[:, 0], results.top, results.scores, results.losses, results.top[:, 0], scores)
    return found | tally.accuracies() | tally.others(compared=False)


def _write(output: Path, found: CrossValidation, columns: Sequence[str]) -> None:
    def rows() -> Iterator[list[str]]:
        for one in found.folds:
            with (one.path.parent / SCORES).open(encoding="utf-8", newline="") as file:
                yield from islice(csv.reader(file), 1, None)

    write_csv(output / PREDICTIONS, columns, rows())
    content = {
        "folds": [{"fold": number, **(one.test or {})} for number, one in enumerate(found.folds, 1)],
        "mean": found.mean, "deviation": found.deviation, "pooled": found.pooled,
    }  # fmt: skip
    with replacing(output / FOLDS) as file:
        file.write((json_output.dumps(content, indent=2) + "\n").encode())
