"""The figures of an evaluation: a record for each model, a row for each prediction."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import zoo
from ..arrays import Array
from ..errors import Error
from ..files import reason
from ..network import Network
from ..sources import Dataset
from ..views import Views
from .localisation import OVERLAP
from .metrics import BINS, binned, calibration_error, mcnemar, wilson
from .run import Run

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


@dataclass
class Tally:
    """What the figures of one model are made of: sums over pictures, which take the same room however many there are."""

    images: int = 0
    right: int = 0
    right5: int = 0  # the right class is among the best five
    loss: float = 0.0  # sum of the cross-entropies
    bins: Array = field(default_factory=lambda: np.zeros((3, BINS)))  # as `binned` gives them
    same: int = 0  # the best class is that of the first model
    only: tuple[int, int] = (0, 0)  # pictures that only the first model, and only this one, has right

    def add(self, targets: Array, top: Array, scores: Array, losses: Array, first: Array) -> None:
        """Count some pictures.

        Args:
            targets: int [images], the right classes.
            top: int [images, TOP], the best classes, best first; scores: float32, their probabilities.
            losses: float32 [images].
            first: int [images], the first model's best classes.
        """
        best = top[:, 0]
        right, before = best == targets, first == targets
        self.images += len(targets)
        self.right += int(right.sum())
        self.right5 += int((top == targets[:, None]).any(1).sum())
        self.loss += float(losses.sum(dtype=np.float64))
        self.bins += binned(scores[:, 0], right, BINS)
        self.same += int((best == first).sum())
        self.only = self.only[0] + int((before & ~right).sum()), self.only[1] + int((right & ~before).sum())

    def accuracies(self) -> dict[str, Any]:
        return _accuracy("top1", self.right, self.images) | _accuracy("top5", self.right5, self.images)

    def others(self, compared: bool) -> dict[str, Any]:
        """What is said of a model after its accuracies; `compared`: with the first one."""
        return {
            "cross_entropy": round(self.loss / self.images, 4),
            "calibration_error": _percent(calibration_error(self.bins)),
            "agreement": _percent(self.same / self.images) if compared else None,
            "mcnemar": float(f"{mcnemar(*self.only):.3g}") if compared else None,
        }


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
        tally = Tally()
        tally.add(targets, top, answers.scores[read], answers.losses[read], tops[0][:, 0])
        used = run.models[index : index + 1] or run.models  # of one, or of all for their fusion
        record: dict[str, Any] = {"model": name, "images": tally.images, "failed": len(run.errors)} | tally.accuracies()
        right, right5 = top[:, 0] == targets, (top == targets[:, None]).any(1)
        record |= _localisation(run, right, right5, answers.overlaps[read])
        record |= _real(top[:, 0], np.flatnonzero(read), real) | tally.others(index > 0)
        record |= settings([one.network for one in used], run.protocol)
        record["engine"] = " + ".join(dict.fromkeys(one.engine.name for one in used))
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
            row["label"] = labels.names[sample.target] if labels and sample.target >= 0 else None
            row["right"] = row["cross_entropy"] = None
            pairs: list[tuple[Any, Any]] = [(None, None)] * width
            if place not in run.errors:
                pairs = list(zip(answers.top[place].tolist(), answers.scores[place].tolist(), strict=True))
                row["right"], row["cross_entropy"] = int(pairs[0][0] == sample.target), round(float(answers.losses[place]), 6)
            for rank, (best, score) in enumerate(pairs, 1):
                row[f"class_{rank}"], row[f"score_{rank}"] = best, score and round(score, 6)
            yield row | {"error": run.errors.get(place)}


def _accuracy(name: str, right: int, total: int) -> dict[str, float]:
    share, (low, high) = _percent(right / total), wilson(right, total)
    return {name: share, f"{name}_err": round(100 - share, 3), f"{name}_low": _percent(low), f"{name}_high": _percent(high)}


def _localisation(run: Run, right: Array, right5: Array, overlaps: Array) -> dict[str, Any]:
    """Accuracies that count only where the box is right too, of the pictures that have boxes; none of a fusion."""
    if run.annotations is None:
        return {}
    known = ~np.isnan(overlaps)
    hit = overlaps[known] > OVERLAP
    found: dict[str, Any] = {"loc_images": int(known.sum())}
    for name, count in (("loc1", hit & right[known]), ("loc5", hit & right5[known]), ("loc_known", hit)):
        found |= _accuracy(name, int(count.sum()), len(hit)) if len(hit) else dict.fromkeys(_accuracy(name, 0, 1))
    return found


def _percent(share: float) -> float:
    return round(100 * share, 3)


def _real(best: Array, places: Array, real: Real | None) -> dict[str, Any]:
    if real is None:
        return {"real": None, "real_images": None}
    right = [one in real[place] for one, place in zip(best.tolist(), places.tolist(), strict=True) if real[place]]
    return {"real": _percent(sum(right) / max(len(right), 1)), "real_images": len(right)}


def settings(networks: Sequence[Network], protocol: Views) -> dict[str, Any]:
    """What a model, or the fusion of several, is and how it is run."""
    first = networks[0]
    alone = first.provenance.published if len(networks) == 1 else ""
    known = next((one for one in zoo.list() if one.name == alone), None)
    recipe = first.preprocessing
    sizes = [one.size for one in protocol.preprocessings(recipe)]
    resized = bool(protocol.sizes) or recipe.resize != "none"
    return {
        "published": known.name if known else None,
        "published_top1": known.top1 if known else None,
        "published_top5": known.top5 if known else None,
        "param_count": round(sum(one.architecture.parameter_count for one in networks) / 1e6, 2),
        "img_size": recipe.crop,
        "crop_pct": round(recipe.crop / sizes[0], 3) if resized and len(sizes) == 1 and not protocol.dense else None,
        "interpolation": recipe.interpolation if resized else None,
        "preprocessing": " + ".join(dict.fromkeys(one.preprocessing.name for one in networks)),
        "protocol": protocol.protocol,
        "sizes": ",".join(map(str, protocol.sizes)) or None,
        "flip": protocol.mirrored,
    }
