"""The results of an evaluation, image by image, and the state from which it resumes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..classifier import Classifier
from ..engines import GraphEngine, identity
from ..sources import Dataset
from ..store import Work, key_of
from ..views import Views
from .localisation import Annotations

TOP = 5  # best classes kept for each image
EVERY = 2**24  # scores of images and classes up to which all of them are kept
KIND = "evaluations"  # of the saved state
ARRAYS = ("top", "scores", "losses", "overlaps", "every")  # of ModelResults


@dataclass
class ModelResults:
    """A model's results for each image of a dataset. Rows of images that can't be read are -1, 0, nan and nan."""

    top: Array  # int32 [images, TOP]: best classes, best first
    scores: Array  # float32 [images, TOP]: their probabilities
    losses: Array  # float32 [images]: cross-entropy, -ln of the true class's probability, at most 87; or the mean over classes
    overlaps: Array  # float32 [images]: intersection over union of the true class's box; nan if not measured
    # float32 [images, classes]: all scores, if there are up to EVERY or each class has a score of its own; else [images, 0]
    every: Array
    seconds: float = 0.0  # waiting for images, and inference

    @classmethod
    def empty(cls, images: int, classes: int, several: bool = False) -> "ModelResults":
        every = np.zeros((images, classes if several or images * classes <= EVERY else 0), np.float32)
        shape, missing = (images, min(TOP, classes)), np.full(images, np.nan, np.float32)
        return cls(np.full(shape, -1, np.int32), np.zeros(shape, np.float32), missing, missing.copy(), every)

    def put(
        self, places: Sequence[int], probabilities: Array, targets: Sequence[tuple[int, ...]], several: bool = False
    ) -> None:
        """Store results of the images at `places` from their scores [batch, classes] and their classes, one or `several`."""
        self.top[places] = best = np.argsort(-probabilities, axis=-1, kind="stable")[:, : self.top.shape[1]]
        self.scores[places] = np.take_along_axis(probabilities, best, -1)
        least = np.finfo(np.float32).tiny
        if self.every.shape[1]:
            self.every[places] = probabilities
        if several:
            of_truth = np.where(matrix(targets, probabilities.shape[1]), probabilities, 1 - probabilities)
            self.losses[places] = -np.log(of_truth.clip(least)).mean(-1)
        else:
            true = probabilities[np.arange(len(targets)), [one for (one,) in targets]]
            self.losses[places] = -np.log(true.clip(least))


def matrix(targets: Sequence[tuple[int, ...]], classes: int) -> Array:
    """bool [images, classes]: whether an image has a class."""
    found = np.zeros((len(targets), classes), bool)
    for row, one in zip(found, targets, strict=True):
        row[list(one)] = True
    return found


@dataclass
class Evaluation:
    """Models over a dataset: complete, or in progress with results of the first `done` images."""

    models: Sequence[Classifier]
    dataset: Dataset
    views: Views
    names: list[str]  # of the models, and of their fusion
    results: list[ModelResults]  # one per name
    errors: dict[int, str] = field(default_factory=dict)  # of images that can't be read, by index in the dataset
    done: int = 0
    annotations: Annotations | None = None  # the boxes, if localisation is measured

    @classmethod
    def start(cls, models: Sequence[Classifier], dataset: Dataset, views: Views, fuse: bool = False) -> "Evaluation":
        """An evaluation without results; `fuse` adds the mean of the models' probabilities."""
        names = [one.name for one in models] + ([" + ".join(one.name for one in models)] if fuse else [])
        made = models[0].network.architecture
        several = made.output == "sigmoid"
        return cls(models, dataset, views, names, [ModelResults.empty(len(dataset), made.classes, several) for _ in names])

    @property
    def classes(self) -> int:
        return self.models[0].network.architecture.classes

    @property
    def several(self) -> bool:
        """Whether each class has a score of its own, so that an image has any number of classes."""
        return self.models[0].network.architecture.output == "sigmoid"

    def readable(self) -> Array:
        """bool [images]: whether an image is done and could be read."""
        found = np.arange(len(self.dataset)) < self.done
        found[list(self.errors)] = False
        return found

    def options(self) -> dict[str, Any]:
        """The entries of the key that take no time to compute."""
        return {
            "names": self.names,
            "engines": [identity(one.engine) for one in self.models],
            "architectures": [asdict(one.network.architecture) for one in self.models],
            "preprocessing": [asdict(one.network.preprocessing) for one in self.models],
            "views": asdict(self.views),
        }

    def work(self, fresh: bool = False) -> Work:
        """The saved state. Hashing the parameters for its key takes a second for VGG-16."""
        inputs = {
            "networks": [content_hash(one) for one in self.models],
            "dataset": self.dataset.digest(),
            "annotations": self.annotations and self.annotations.digest(),
        }
        return Work.cached(KIND, key_of(**self.options(), **inputs), fresh=fresh)

    def save(self, work: Work) -> None:
        """Save the state. If it can't be written, the evaluation continues, with a notice."""
        arrays = {f"{name}_{i}": getattr(one, name) for i, one in enumerate(self.results) for name in ARRAYS}
        state = {"done": self.done, "errors": self.errors, "seconds": [one.seconds for one in self.results]}
        work.save_if_possible(state, arrays, "the evaluation can't be resumed if it is interrupted")

    def restore(self, work: Work) -> None:
        """Continue from the saved state if there is one."""
        if saved := work.state():
            state, arrays = saved
            for index, one in enumerate(self.results):
                for name in ARRAYS:
                    setattr(one, name, arrays[f"{name}_{index}"])
                one.seconds = state["seconds"][index]
            self.errors, self.done = {int(place): text for place, text in state["errors"].items()}, state["done"]


def content_hash(model: Classifier) -> str:
    """SHA-256 of what a model computes: of its parameters, or of its file if the activations are quantized."""
    return (model.engine.graph if isinstance(model.engine, GraphEngine) else model.network).sha256()


def predictions(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """A row per image and model: the true class, the cross-entropy, the best classes with their scores, or the error.

    If each class has a score of its own: the true classes, the cross-entropy, the scores of all classes, or the error.
    """
    if evaluation.several:
        yield from _several_predictions(evaluation)
        return
    labels = evaluation.models[0].network.class_names
    width = evaluation.results[0].top.shape[1]
    for place, sample in enumerate(evaluation.dataset):
        for name, results in zip(evaluation.names, evaluation.results, strict=True):
            row: dict[str, Any] = {"image": sample.name, "model": name, "class": sample.target}
            row["label"] = labels.names[sample.target] if labels and sample.target >= 0 else None
            row["right"] = row["cross_entropy"] = None
            pairs: list[tuple[Any, Any]] = [(None, None)] * width
            if place not in evaluation.errors:
                pairs = list(zip(results.top[place].tolist(), results.scores[place].tolist(), strict=True))
                row["right"], row["cross_entropy"] = int(pairs[0][0] == sample.target), round(float(results.losses[place]), 6)
            for rank, (best, score) in enumerate(pairs, 1):
                row[f"class_{rank}"], row[f"score_{rank}"] = best, score and round(score, 6)
            yield row | {"error": evaluation.errors.get(place)}


def _several_predictions(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    labels = evaluation.models[0].network.class_names
    for place, sample in enumerate(evaluation.dataset):
        for name, results in zip(evaluation.names, evaluation.results, strict=True):
            row: dict[str, Any] = {"image": sample.name, "model": name, "classes": " ".join(map(str, sample.classes))}
            row["labels"] = "; ".join(labels.names[one] for one in sample.classes) if labels else None
            good = place not in evaluation.errors
            row["cross_entropy"] = round(float(results.losses[place]), 6) if good else None
            scores: list[float | None] = results.every[place].tolist() if good else [None] * evaluation.classes
            row |= {f"score_{index}": score and round(score, 6) for index, score in enumerate(scores)}
            yield row | {"error": evaluation.errors.get(place)}
