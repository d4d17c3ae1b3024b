"""The figures of an evaluation: a record per model."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import zoo
from ..arrays import Array
from ..errors import Error
from ..files import open_file, reason
from ..network import Network
from ..predictions import THRESHOLD
from ..sources import Dataset
from ..views import Views
from . import metrics
from .localisation import OVERLAP
from .metrics import BINS, average_precision, binned, calibration_error, f1, mcnemar, wilson
from .results import TOP, Evaluation, ModelResults, matrix

Real = Sequence[frozenset[int]]  # the classes that each image of a dataset shows

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real(path: str | Path, dataset: Dataset, classes: int) -> Real:
    """The classes that each image of a dataset shows, by the ReaL labels, `real.json` as published.

    The file is a list of lists of classes, one for each of ImageNet's 50,000 validation images in order; an image is identified
    by the number in its name. Images without a number, or whose list is empty, show no class and are not counted.

    L. Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159; github.com/google-research/reassessed-imagenet.

    Raises:
        Error: the file has another format, or has no labels of any of the images.
    """
    try:
        with open_file(path) as file:
            listed = json.load(file)
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except ValueError:
        listed = None
    if not isinstance(listed, list) or not all(
        isinstance(one, list) and all(type(n) is int and 0 <= n < classes for n in one) for one in listed
    ):
        raise Error(f"{path}: ReaL labels must be a JSON list with a list of classes, below {classes}, for each image")
    found: list[frozenset[int]] = []
    for sample in dataset:
        named = _VALIDATION.search(sample.name)
        number = int(named[1]) if named else 0
        found.append(frozenset(listed[number - 1]) if 1 <= number <= len(listed) else frozenset())
    if not any(found):
        raise Error(f"{path}: no labels of these images; they are for ImageNet's ILSVRC2012_val_00000001 and following")
    return found


def main_figure(record: Mapping[str, Any]) -> str:
    """The entry of a record that measures how often a model is right: `top1`, or `map` if each class has a score of its own."""
    return "map" if "map" in record else "top1"


@dataclass
class Tally:
    """Sums over images from which a model's figures are computed, and all scores of the images as far as they are known."""

    classes: int
    images: int = 0
    right: int = 0  # the best class is correct
    right5: int = 0  # the true class is among the best five
    loss: float = 0.0  # sum of the cross-entropies
    bins: Array = field(default_factory=lambda: np.zeros((3, BINS)))  # of `binned`
    same: int = 0  # the best class is that of the first model
    only: tuple[int, int] = (0, 0)  # images that only the first model, and only this one, classifies correctly
    recalls: Array | int = 0  # of `metrics.recalls`
    every: list[tuple[Array, Array]] = field(default_factory=list)  # true classes, and scores of all classes

    def add(self, targets: Array, top: Array, scores: Array, losses: Array, first: Array, every: Array | None = None) -> None:
        """Count some images.

        Args:
            targets: int [images], true classes.
            top: int [images, TOP], best classes, best first.
            scores: float32 [images, TOP], their probabilities.
            losses: float32 [images].
            first: int [images], the first model's best classes.
            every: float32 [images, classes], all scores, if they are known; up to TOP classes, `scores` has them.
        """
        best = top[:, 0]
        right, before = best == targets, first == targets
        self.images += len(targets)
        self.right += int(right.sum())
        self.right5 += int((top == targets[:, None]).any(1).sum())
        self.loss += float(losses.sum(dtype=np.float64))
        self.bins += binned(scores[:, 0], right, BINS)
        self.same += int((best == first).sum())
        self.recalls = self.recalls + metrics.recalls(targets, best, self.classes)
        if every is None and self.classes <= TOP:
            every = np.empty_like(scores)
            np.put_along_axis(every, top.astype(np.int64), scores, 1)
        if every is not None:
            self.every.append((targets, every))
        self.only = self.only[0] + int((before & ~right).sum()), self.only[1] + int((right & ~before).sum())

    def accuracies(self) -> dict[str, Any]:
        """Top-1 and top-5 accuracy and error in percent, with 95% intervals; top-5 is None of less than 6 classes."""
        five = _accuracy("top5", self.right5, self.images)
        return _accuracy("top1", self.right, self.images) | (five if self.classes > TOP else dict.fromkeys(five))

    def others(self, compared: bool, threshold: float = THRESHOLD) -> dict[str, Any]:
        """The figures that follow the accuracies; `compared` includes the comparison with the first model.

        ROC AUC is None unless all scores are known. Of two classes, the figures include sensitivity, specificity and F1 of the
        second one, for scores above the threshold; these but F1, and ROC AUC, have 95% intervals.
        """
        found: dict[str, Any] = {
            "balanced_accuracy": _percent(metrics.balanced_accuracy(np.asarray(self.recalls))),
            "roc_auc": None,
        }
        if self.every:
            targets, every = (np.concatenate(parts) for parts in zip(*self.every, strict=True))
            found["roc_auc"] = _percent(metrics.macro_auc(np.arange(self.classes) == targets[:, None], every))
            if self.classes == 2:
                truth, chosen = targets == 1, every[:, 1] > threshold
                found |= _interval("roc_auc", *metrics.auc_interval(truth, every[:, 1]))
                found |= _share("sensitivity", int((truth & chosen).sum()), int(truth.sum()))
                found |= _share("specificity", int((~truth & ~chosen).sum()), int((~truth).sum()))
                found |= {"f1": _percent(float(f1(truth, chosen))), "threshold": threshold}
        return found | {
            "cross_entropy": round(self.loss / self.images, 4),
            "calibration_error": _percent(calibration_error(self.bins)),
            "agreement": _percent(self.same / self.images) if compared else None,
            "mcnemar": float(f"{mcnemar(*self.only):.3g}") if compared else None,
        }


def records(evaluation: Evaluation, real: Real | None = None, threshold: float = THRESHOLD) -> list[dict[str, Any]]:
    """A record per model, and for their fusion: accuracies in percent with 95% intervals, comparisons, and settings.

    If each class has a score of its own: mean average precision, and F1 for scores above the threshold, in percent.
    `agreement` and `mcnemar` compare a model with the first one: the share of images with the same best class, or the same
    classes above the threshold, in percent, and the p-value of the hypothesis that both models have the same accuracy.
    docs/evaluation.md describes all entries.
    """
    readable = evaluation.readable()
    targets = np.array([sample.target for sample in evaluation.dataset])[readable]
    first = evaluation.results[0].top[readable, 0]
    found = []
    for index, (name, results) in enumerate(zip(evaluation.names, evaluation.results, strict=True)):
        top = results.top[readable]
        models = evaluation.models[index : index + 1] or evaluation.models  # one, or all for their fusion
        record: dict[str, Any] = {"model": name, "images": len(targets), "failed": len(evaluation.errors)}
        if evaluation.several:
            record |= _several(evaluation, index, readable, threshold)
        else:
            tally = Tally(evaluation.classes)
            every = results.every[readable] if results.every.shape[1] else None
            tally.add(targets, top, results.scores[readable], results.losses[readable], first, every)
            record |= tally.accuracies()
            record |= _localisation(results, readable, targets) if evaluation.annotations else {}
            record |= _real(top[:, 0], np.flatnonzero(readable), real) | tally.others(index > 0, threshold)
        record |= settings([one.network for one in models], evaluation.views)
        record["engine"] = " + ".join(dict.fromkeys(one.engine.name for one in models))
        record["images_per_second"] = round(evaluation.done / results.seconds, 2) if results.seconds else None
        found.append(record)
    return found


def _several(evaluation: Evaluation, index: int, readable: Array, threshold: float) -> dict[str, Any]:
    """The figures of a model whose classes have a score each."""
    results = evaluation.results[index]
    scores, first = results.every[readable], evaluation.results[0].every[readable]
    found = several_figures(truth_of(evaluation)[readable], scores, results.losses[readable], threshold)
    same = ((scores > threshold) == (first > threshold)).all(1).mean()
    return found | {"agreement": _percent(float(same)) if index else None}


def several_figures(truth: Array, scores: Array, losses: Array, threshold: float = THRESHOLD) -> dict[str, Any]:
    """The figures of scores of classes that an image may have any number of, in percent.

    Args:
        truth: bool [images, classes], whether an image has a class.
        scores: float32 [images, classes].
        losses: float32 [images].
        threshold: classes with a score above it are predicted.
    """
    precisions = [average_precision(one, score) for one, score in zip(truth.T, scores.T, strict=True) if one.any()]
    chosen = scores > threshold
    return {
        "map": _percent(float(np.mean(precisions))) if precisions else None,
        "map_classes": len(precisions),
        "roc_auc": _percent(metrics.macro_auc(truth, scores, exclusive=False)),
        "f1_micro": _percent(float(f1(truth.ravel(), chosen.ravel()))),
        "f1_macro": _percent(float(f1(truth, chosen).mean())),
        "threshold": threshold,
        "cross_entropy": round(float(losses.mean(dtype=np.float64)), 4),
    }


def truth_of(evaluation: Evaluation) -> Array:
    """bool [images, classes]: whether an image has a class."""
    return matrix([sample.classes for sample in evaluation.dataset], evaluation.classes)


def _percent(share: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if math.isnan(share) else round(100 * share, 3)


def _accuracy(name: str, right: int, total: int) -> dict[str, float | None]:
    share = _share(name, right, total)
    return {name: share[name], f"{name}_err": round(100 - round(100 * right / total, 3), 3), **share}


def _share(name: str, count: int, total: int) -> dict[str, float | None]:
    """A share in percent, with its 95% interval; None of nothing."""
    if not total:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: _percent(count / total)} | _interval(name, *wilson(count, total))


def _interval(name: str, low: float, high: float) -> dict[str, float | None]:
    return {f"{name}_low": _percent(low), f"{name}_high": _percent(high)}


def _localisation(results: ModelResults, readable: Array, targets: Array) -> dict[str, Any]:
    """Accuracies of class and box together, over the images that have boxes; None for a fusion, which has no heat map."""
    overlaps, top = results.overlaps[readable], results.top[readable]
    known = ~np.isnan(overlaps)
    hit, correct = overlaps[known] > OVERLAP, (top == targets[:, None])[known]
    found: dict[str, Any] = {"loc_images": len(hit)}
    for name, count in (("loc1", hit & correct[:, 0]), ("loc5", hit & correct.any(1)), ("loc_known", hit)):
        found |= _accuracy(name, int(count.sum()), len(hit)) if len(hit) else dict.fromkeys(_accuracy(name, 0, 1))
    return found


def _real(best: Array, places: Array, real: Real | None) -> dict[str, Any]:
    if real is None:
        return {"real": None, "real_images": None}
    right = [one in real[place] for one, place in zip(best.tolist(), places.tolist(), strict=True) if real[place]]
    return {"real": _percent(sum(right) / max(len(right), 1)), "real_images": len(right)}


def settings(networks: Sequence[Network], views: Views) -> dict[str, Any]:
    """The part of a record that describes a model, or a fusion of several, and the views of each image."""
    first = networks[0]
    published = first.provenance.published if len(networks) == 1 else ""
    known = next((one for one in zoo.list() if one.name == published), None)
    recipe = first.preprocessing
    sizes = [one.size for one in views.preprocessings(recipe)]
    resized = bool(views.sizes) or recipe.resize != "none"
    return {
        "published": known.name if known else None,
        "published_top1": known.top1 if known else None,
        "published_top5": known.top5 if known else None,
        "param_count": round(sum(one.architecture.parameter_count for one in networks) / 1e6, 2),
        "img_size": recipe.crop,
        "crop_pct": round(recipe.crop / sizes[0], 3) if resized and len(sizes) == 1 and not views.dense else None,
        "interpolation": recipe.interpolation if resized else None,
        "preprocessing": " + ".join(dict.fromkeys(one.preprocessing.name for one in networks)),
        "protocol": views.protocol,
        "sizes": ",".join(map(str, views.sizes)) or None,
        "flip": views.mirrored,
    }
