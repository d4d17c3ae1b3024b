"""The results of an evaluation, image by image, and the state from which it resumes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..classifier import Classifier
from ..engines import GraphEngine, identity
from ..files import digest
from ..sources import Dataset
from ..store import Work, key_of
from ..views import Views
from .localisation import Annotations

TOP = 5  # best classes kept for each image
KIND = "evaluations"  # of the saved state
ARRAYS = ("top", "scores", "losses", "overlaps")  # of ModelResults


@dataclass
class ModelResults:
    """A model's results for each image of a dataset. Rows of images that can't be read are -1, 0, nan and nan."""

    top: Array  # int32 [images, TOP]: best classes, best first
    scores: Array  # float32 [images, TOP]: their probabilities
    losses: Array  # float32 [images]: cross-entropy, -ln of the true class's probability, at most 87
    overlaps: Array  # float32 [images]: intersection over union of the true class's box; nan if not measured
    seconds: float = 0.0  # waiting for images, and inference

    @classmethod
    def empty(cls, images: int, classes: int) -> "ModelResults":
        shape, missing = (images, min(TOP, classes)), np.full(images, np.nan, np.float32)
        return cls(np.full(shape, -1, np.int32), np.zeros(shape, np.float32), missing, missing.copy())

    def put(self, places: Sequence[int], probabilities: Array, targets: Sequence[int]) -> None:
        """Store results of the images at `places` from their probabilities [batch, classes]."""
        self.top[places] = best = np.argsort(-probabilities, axis=-1, kind="stable")[:, : self.top.shape[1]]
        self.scores[places] = np.take_along_axis(probabilities, best, -1)
        true = probabilities[np.arange(len(targets)), targets]
        self.losses[places] = -np.log(true.clip(np.finfo(np.float32).tiny))


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
        classes = models[0].network.architecture.classes
        return cls(models, dataset, views, names, [ModelResults.empty(len(dataset), classes) for _ in names])

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
    return digest(model.engine.graph.path) if isinstance(model.engine, GraphEngine) else model.network.sha256()
