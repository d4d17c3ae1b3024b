"""Statistics of predictions: confidence intervals, significance, calibration, confusions."""

import math
from fractions import Fraction

import numpy as np

from ..arrays import Array

Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile
BINS = 15  # of the calibration error, as in Guo et al.


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's confidence interval of a proportion, at 95% by default: low and high, 0..1; (0, 1) for a total of 0.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not total:
        return 0.0, 1.0
    share, square = right / total, z * z / total
    centre, spread = share + square / 2, z * math.sqrt(share * (1 - share) / total + square / (4 * total))
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    return (0.0 if right == 0 else low), (1.0 if right == total else high)  # exact despite rounding


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test that two models have the same accuracy.

    Args:
        only_first: number of images that only the first model classifies correctly.
        only_second: number of images that only the second model classifies correctly.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12 (1947).
    """
    total = only_first + only_second
    ways = term = 1  # integers, exact for any total
    for heads in range(min(only_first, only_second)):
        term = term * (total - heads) // (heads + 1)
        ways += term
    return min(1.0, float(Fraction(2 * ways, 2**total)))


def binned(confidence: Array, right: Array, bins: int = BINS) -> Array:
    """Sums over images in bins of equal width, (low, high], of the best class's probability: float64 [3, bins].

    The rows are the number of images, the sum of their probabilities, and the number of correct ones. Sums of several sets of
    images can be added.

    Args:
        confidence: [images], probability of each image's best class, 0..1.
        right: bool [images], whether the best class is correct.
        bins: number of bins.
    """
    places = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    return np.stack([np.bincount(places, weights, bins) for weights in (None, confidence, right)]).astype(np.float64)


def calibration_error(sums: Array) -> float:
    """The expected calibration error, 0..1, from the sums of `binned`.

    C. Guo et al., "On calibration of modern neural networks", ICML 2017: the mean over all images of |accuracy - confidence|
    of the image's bin.
    """
    return float(np.abs(sums[2] - sums[1]).sum() / max(sums[0].sum(), 1))


def confusions(targets: Array, predicted: Array) -> list[tuple[int, int, Array]]:
    """Pairs of true and predicted class with the indices of their images, the most frequent pair first.

    Args:
        targets, predicted: int [images], classes; equal ones are not counted.
    """
    places = np.flatnonzero(targets != predicted)
    pairs, which = np.unique(np.stack([targets[places], predicted[places]]), axis=1, return_inverse=True)
    found = [(int(a), int(b), places[which.reshape(-1) == index]) for index, (a, b) in enumerate(pairs.T)]
    return sorted(found, key=lambda one: -len(one[2]))


def average_precision(truth: Array, scores: Array) -> float:
    """The mean precision over the positive images in the order of their scores, 0..1; nan without positive images.

    Images with the same score have one place in that order.

    Args:
        truth: bool [images], whether the class is true.
        scores: [images].
    """
    hits, total = _by_score(truth, scores)
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / total).sum() / hits[-1]) if truth.any() else math.nan


def roc_auc(truth: Array, scores: Array) -> float:
    """The share of pairs of a positive and a negative image of which the positive one has the higher score, 0..1.

    A pair with equal scores counts one half. The result is nan without positive or without negative images.

    Args:
        truth: bool [images], whether the class is true.
        scores: [images].
    """
    if not truth.any() or truth.all():
        return math.nan
    hits, total = _by_score(truth, scores)
    wrong = total - hits
    below = np.diff(wrong, prepend=0) @ (hits - np.diff(hits, prepend=0) / 2)  # pairs, by the negative image's score
    return float(below / (hits[-1] * wrong[-1]))


def auc_interval(truth: Array, scores: Array, z: float = Z95) -> tuple[float, float]:
    """The confidence interval of `roc_auc`, at 95% by default: low and high, 0..1.

    It is nan where the formula has no width, which would be misleading: below two images of either kind, and if all pairs are
    in the right order, all in the wrong one, or all equal.

    E. R. DeLong et al., "Comparing the areas under two or more correlated receiver operating characteristic curves", Biometrics
    44 (1988): the variance of the area from each image's share of pairs in the right order. As in pROC, an end beyond 0 or 1 is
    moved there.

    Args:
        truth: bool [images], whether the class is true.
        scores: [images].
    """
    positive, negative = np.sort(scores[truth]), np.sort(scores[~truth])
    if min(len(positive), len(negative)) < 2:
        return math.nan, math.nan
    below, above = _share_below(negative, positive), 1 - _share_below(positive, negative)
    area, error = float(below.mean()), math.sqrt(below.var(ddof=1) / len(positive) + above.var(ddof=1) / len(negative))
    return (max(area - z * error, 0.0), min(area + z * error, 1.0)) if error else (math.nan, math.nan)


def macro_auc(truth: Array, scores: Array, *, exclusive: bool = True) -> float:
    """The mean area under the ROC curve of each class against the rest, 0..1; nan if no class has one.

    Classes of all images, or of none, are left out. Of two classes that exclude each other, it is the area of the second.

    Args:
        truth: bool [images, classes], whether an image has a class.
        scores: [images, classes].
        exclusive: whether each image has one class, and the scores are those of a softmax.
    """
    if exclusive and truth.shape[1] == 2:
        return roc_auc(truth[:, 1], scores[:, 1])
    areas = [roc_auc(one, score) for one, score in zip(truth.T, scores.T, strict=True) if one.any() and not one.all()]
    return float(np.mean(areas)) if areas else math.nan


def recalls(targets: Array, predicted: Array, classes: int) -> Array:
    """Of each class, the number of images that are classified correctly, and of all its images: int64 [classes, 2].

    Counts of several sets of images can be added.

    Args:
        targets, predicted: int [images], classes.
        classes: number of classes.
    """
    right = np.bincount(targets[targets == predicted], minlength=classes)
    return np.stack([right, np.bincount(targets, minlength=classes)], 1)


def balanced_accuracy(counts: Array) -> float:
    """The mean recall of the classes that have images, 0..1, from the counts of `recalls`; nan without images."""
    counts = counts[counts[:, 1] > 0]
    return float((counts[:, 0] / counts[:, 1]).mean()) if len(counts) else math.nan


def sensitivity_specificity(truth: Array, chosen: Array) -> tuple[float, float]:
    """The shares of the positive images that are chosen, and of the negative images that are not, 0..1; nan without any.

    Args:
        truth: bool [images], whether an image is positive.
        chosen: bool [images], whether it is predicted to be.
    """
    positive, negative = truth.sum(), (~truth).sum()
    return (
        float((truth & chosen).sum() / positive) if positive else math.nan,
        float((~truth & ~chosen).sum() / negative) if negative else math.nan,
    )


def operating_point(truth: Array, scores: Array, specificity: float) -> tuple[float, float, float]:
    """The threshold with the highest sensitivity among those with at least a specificity; with that sensitivity, and its own.

    Args:
        truth: bool [images], whether an image is positive; some are, and some are not.
        scores: [images]; images with a score above the threshold are predicted to be positive.
        specificity: above 0, up to 1.
    """
    negative = np.sort(scores[~truth])
    threshold = float(negative[max(math.ceil(specificity * len(negative) - 1e-9), 1) - 1])
    return threshold, *sensitivity_specificity(truth, scores > threshold)


def f1(truth: Array, chosen: Array) -> Array:
    """F1, the harmonic mean of precision and recall, along the first axis, 0..1; 0 if there is nothing true and chosen.

    Args:
        truth: bool [images, …], whether a class is true.
        chosen: bool [images, …], whether a class is predicted.
    """
    both, either = (truth & chosen).sum(0), truth.sum(0) + chosen.sum(0)
    return np.asarray(2 * both / np.maximum(either, 1))


def _share_below(ordered: Array, values: Array) -> Array:
    """Of each value, the share of some numbers in ascending order that are below it; equal ones count one half."""
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / (2 * len(ordered))


def _by_score(truth: Array, scores: Array) -> tuple[Array, Array]:
    """For each score, best first: the number of positive images with it or a higher one, and the number of images."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    return np.cumsum(truth[order])[ends].astype(np.float64), ends + 1.0
