"""The figures of an evaluation: a record for each model, a row for each prediction."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import zoo
from ..datasets import Dataset
from ..errors import Error
from ..files import reason
from .localisation import OVERLAP
from .metrics import calibration, mcnemar, wilson
from .run import Run

Array = np.ndarray[Any, np.dtype[Any]]
Real = Sequence[frozenset[int]]  # the classes that each picture of a dataset shows

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real(path: str | Path, dataset: Dataset, classes: int) -> Real:
    """The classes that each picture of a dataset shows, by the ReaL labels, `real.json` as published.

    That is a list of lists of classes, one for each of ImageNet's 50,000 validation pictures in order; a picture's place on it
    is the number in its name. Pictures without one, or whose list is empty, show nothing and don't count.

    L. Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159; github.com/google-research/reassessed-imagenet.

    Raises Error where the file has another form, or says nothing about any of the pictures.
    """
    try:
        listed = json.loads(Path(path).read_text())
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(
        isinstance(one, list) and all(type(n) is int and 0 <= n < classes for n in one) for one in listed
    ):
        raise Error(f"{path}: ReaL labels must be a JSON list with a list of classes, below {classes}, for each picture")
    found: list[frozenset[int]] = []
    for sample in dataset:
        named = _VALIDATION.search(sample.name)
        number = int(named[1]) if named else 0
        found.append(frozenset(listed[number - 1]) if 1 <= number <= len(listed) else frozenset())
    if not any(found):
        raise Error(f"{path}: has labels for ImageNet's validation pictures, ILSVRC2012_val_00000001 and so on; none is here")
    return found


def records(run: Run, real: Real | None = None) -> list[dict[str, Any]]:
    """A record for each model and for their fusion: accuracies in percent with 95% intervals, and what they were got with.

    `agreement` and `mcnemar` compare a model with the first one: how many pictures got the same best class, in percent, and
    the p-value of the models being equally often right.
    """
    read = run.read()
    targets = np.array([sample.target for sample in run.dataset])[read]
    tops = [answers.top[read] for answers in run.answers]
    found = []
    for index, (name, answers, top) in enumerate(zip(run.names, run.answers, tops, strict=True)):
        right, right5 = top[:, 0] == targets, (top == targets[:, None]).any(1)
        model = run.models[index] if index < len(run.models) else None
        record: dict[str, Any] = {"model": name, "images": int(read.sum()), "failed": len(run.errors)}
        record |= _accuracy("top1", right) | _accuracy("top5", right5)
        record |= _localisation(run, right, right5, answers.overlaps[read])
        record |= _real(top[:, 0], np.flatnonzero(read), real)
        record["cross_entropy"] = round(float(answers.losses[read].mean(dtype=np.float64)), 4)
        record["calibration_error"] = _percent(calibration(answers.scores[read, 0], right)[0])
        first = tops[0][:, 0]
        record["agreement"] = _percent(float((top[:, 0] == first).mean())) if index else None
        only = [int(np.sum(a & ~b)) for a, b in ((first == targets, right), (right, first == targets))]
        record["mcnemar"] = float(f"{mcnemar(*only):.3g}") if index else None
        known = model and next((one for one in zoo.list() if one.name == model.network.provenance.published), None)
        record["published"] = known.name if known else None
        record["published_top1"], record["published_top5"] = (known.top1, known.top5) if known else (None, None)
        record |= _settings(run, index)
        record["images_per_second"] = round(run.done / answers.seconds, 2) if answers.seconds else None
        found.append(record)
    return found


def predictions(run: Run) -> Iterator[dict[str, Any]]:
    """A row for each picture and model: its class, the cross-entropy, the best classes with their scores, or the error."""
    labels = run.models[0].network.labels
    width = run.answers[0].top.shape[1]
    for place, sample in enumerate(run.dataset):
        for name, answers in zip(run.names, run.answers, strict=True):
            row: dict[str, Any] = {"image": sample.name, "model": name, "class": sample.target}
            row["label"] = labels.names[sample.target] if labels else None
            row["right"] = row["cross_entropy"] = None
            pairs: list[tuple[Any, Any]] = [(None, None)] * width
            if place not in run.errors:
                pairs = list(zip(answers.top[place].tolist(), answers.scores[place].tolist(), strict=True))
                row["right"], row["cross_entropy"] = int(pairs[0][0] == sample.target), round(float(answers.losses[place]), 6)
            for rank, (best, score) in enumerate(pairs, 1):
                row[f"class_{rank}"], row[f"score_{rank}"] = best, score and round(score, 6)
            yield row | {"error": run.errors.get(place)}


def _accuracy(name: str, right: Array) -> dict[str, float]:
    share, (low, high) = _percent(float(right.mean())), wilson(int(right.sum()), len(right))
    return {name: share, f"{name}_err": round(100 - share, 3), f"{name}_low": _percent(low), f"{name}_high": _percent(high)}


def _localisation(run: Run, right: Array, right5: Array, overlaps: Array) -> dict[str, Any]:
    """Accuracies that count only where the box is right too, of the pictures that have boxes; none of a fusion."""
    if run.annotations is None:
        return {}
    known = ~np.isnan(overlaps)
    hit = overlaps[known] > OVERLAP
    found: dict[str, Any] = {"loc_images": int(known.sum())}
    for name, count in (("loc1", hit & right[known]), ("loc5", hit & right5[known]), ("loc_known", hit)):
        found |= _accuracy(name, count) if known.any() else dict.fromkeys(_accuracy(name, np.zeros(1)))
    return found


def _percent(share: float) -> float:
    return round(100 * share, 3)


def _real(best: Array, places: Array, real: Real | None) -> dict[str, Any]:
    if real is None:
        return {"real": None, "real_images": None}
    right = [one in real[place] for one, place in zip(best.tolist(), places.tolist(), strict=True) if real[place]]
    return {"real": _percent(sum(right) / max(len(right), 1)), "real_images": len(right)}


def _settings(run: Run, index: int) -> dict[str, Any]:
    """How a model, or the fusion of all, was run."""
    used = [run.models[index]] if index < len(run.models) else run.models
    recipe = used[0].network.preprocessing
    sizes = [one.size for one in run.protocol.recipes(recipe)]
    resized = bool(run.protocol.scales) or recipe.resize != "none"
    return {
        "param_count": round(sum(one.network.architecture.parameter_count for one in used) / 1e6, 2),
        "img_size": recipe.crop,
        "crop_pct": round(recipe.crop / sizes[0], 3) if resized and len(sizes) == 1 and not run.protocol.dense else None,
        "interpolation": recipe.interpolation if resized else None,
        "preprocessing": " + ".join(dict.fromkeys(one.network.preprocessing.name for one in used)),
        "protocol": run.protocol.name,
        "scales": ",".join(map(str, run.protocol.scales)) or None,
        "flip": run.protocol.mirrored,
        "engine": " + ".join(dict.fromkeys(one.engine.name for one in used)),
    }
