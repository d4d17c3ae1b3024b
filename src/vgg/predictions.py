"""From a network's output to predictions: scores, ranking, labels."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .errors import Error, ModelError
from .heads import Output
from .labels import Labels, imagenet
from .network import Network

TOP = 5  # predictions per image, unless each class has a score of its own
THRESHOLD = 0.5  # of the scores of such classes


@dataclass(frozen=True)
class Prediction:
    """A class predicted for an image."""

    label: str  # `class 17` if the network has no labels
    score: float  # 0..1; the probability, unless the classes have sigmoids
    index: int  # of the class, from 0
    wnid: str | None  # WordNet id, such as n02123045


@dataclass(frozen=True)
class Result:
    """The result for one image: predictions, best first, or an error."""

    image: str
    predictions: list[Prediction]
    error: str | None = None


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis, float32; computed in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-logits)), float32; computed in float64."""
    half = np.tanh(logits.astype(np.float64) / 2) / 2  # which doesn't overflow
    return np.asarray(0.5 + half, np.float32)


def scores(logits: Array, output: Output | None) -> Array:
    """The scores of the classes, 0..1, float32 [..., classes].

    Args:
        logits: float [..., units]; see `Architecture.units`.
        output: `softmax`: the scores' sum is 1; `sigmoid`: each class has a score of its own; `binary`: the one logit's sigmoid
            is the score of the second of two classes. See `vgg.heads.Head`.
    """
    if output == "binary":
        return sigmoid(np.concatenate([-logits, logits], -1))
    return sigmoid(logits) if output == "sigmoid" else softmax(logits)


def network_scores(network: Network, logits: Array) -> Array:
    """The scores of a network's logits, see `scores`. Raises ModelError if the logits are not finite numbers."""
    if not np.isfinite(logits).all():
        network.check_finite()
        raise ModelError(f"this {network.architecture.name} gives logits that are not finite numbers")
    return scores(logits, network.architecture.output)


def choose(network: Network, scores: Array, top: int | None = None, threshold: float | None = None) -> list[Prediction]:
    """The predictions of one image.

    Args:
        network: the network that the scores are of.
        scores: [classes].
        top: maximum number of predictions; by default 5, or all if each class has a score of its own.
        threshold: predictions have a score above it; by default 0.5 if each class has a score of its own, otherwise none.

    Raises:
        Error: top is below 1, or the threshold is not 0 to 1.
    """
    several = network.architecture.output == "sigmoid"
    if threshold is None:
        threshold = THRESHOLD if several else -1
    elif not 0 <= threshold <= 1:
        raise Error(f"threshold must be 0 to 1, not {threshold:g}")
    found = rank(scores, (len(scores) if several else TOP) if top is None else top, network.class_names)
    return [one for one in found if one.score > threshold]


def rank(scores: Array, top: int, labels: Labels | None) -> list[Prediction]:
    """The `top` classes of one image's scores [classes], best first; of equal scores, the lower index first."""
    if top < 1:
        raise Error(f"top must be 1 or more, not {top}")
    return describe(scores, np.argsort(-scores, kind="stable")[:top].tolist(), labels)


def describe(scores: Array, classes: Iterable[int], labels: Labels | None) -> list[Prediction]:
    """These classes of one image's scores [classes] as predictions."""
    found = []
    for index in classes:
        label = labels.names[index] if labels else f"class {index}"
        wnid = labels.wnids[index] if labels and labels.wnids else None
        found.append(Prediction(label, float(scores[index]), index, wnid))
    return found


def postprocess(logits: Array, top: int = 5, labels: Labels | None = None) -> list[list[Prediction]]:
    """Predictions from a network's logits.

    Args:
        logits: float [batch, classes], or [classes] for one image.
        top: number of predictions per image.
        labels: names of the classes; ImageNet's by default, which requires 1000 classes.

    Returns:
        For each image of the batch, the `top` best classes with their probabilities, best first.

    Raises:
        Error: the number of labels differs from the number of classes.
    """
    labels = labels or imagenet()
    logits = np.atleast_2d(logits)
    if logits.shape[-1] != len(labels):
        raise Error(f"{len(labels)} labels for logits of {logits.shape[-1]} classes")
    return [rank(row, top, labels) for row in softmax(logits)]
