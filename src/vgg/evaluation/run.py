"""Run models over a dataset, side by side: each image is decoded once for all of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from ..arrays import Array
from ..classifier import Classifier
from ..engines import takes_pixels
from ..errors import Error, ImageError
from ..explanation import can_explain, cropped_area, outputs
from ..overlay import Box
from ..parallel import ahead, cores
from ..predictions import network_scores
from ..preprocessing import Preprocessing
from ..progress import Progress, silent
from ..sources import Dataset
from ..store import Work
from ..views import BATCH_SIZE, ViewBatch, Views, batches, check_views
from .localisation import Annotations, overlap
from .results import KIND, Evaluation

SAVE_SECONDS = 30.0  # between two saves of the state
Recipe = tuple[Preprocessing, bool]  # of the views of an image, and whether they stay pixels


def evaluate(
    models: Sequence[Classifier],
    dataset: Dataset,
    views: Views | None = None,
    *,
    fuse: bool = False,
    boxes: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    fresh: bool = False,
    keep: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Run models over a dataset, while other threads decode and preprocess its images.

    An interrupted evaluation resumes when the same models, engines, dataset and views are evaluated again.

    Args:
        models: with the same classes.
        dataset: its targets are indices of these classes. Images have one class each, unless the models' output is `sigmoid`.
        views: of each image; the centre crop by default.
        fuse: also score the mean of the models' scores.
        boxes: folder with ImageNet's annotations, to measure localisation, which requires a single crop.
        batch_size: number of views per engine batch; larger views count by their pixels.
        workers: number of threads that decode and preprocess; the number of cores by default.
        fresh: start over instead of resuming.
        keep: keep the state of a complete evaluation, which makes the same evaluation return at once.
        progress: called after each batch of images.

    Returns:
        The results of each model and of their fusion. Images that can't be read are in `errors`.

    Raises:
        Error: the models have different classes, a size or the engine doesn't fit the views, the images have not one class
            each, or no image can be read.
        ModelError: a model has no head, or parameters that are not finite numbers.
    """
    views = views or Views()
    check_models(models, views)
    output = models[0].network.architecture.output
    if output != "sigmoid" and any(len(one.classes) != 1 or one.target < 0 for one in dataset):
        raise Error(f"{dataset.name}: its images don't have one class each, as the output `{output}` requires")
    evaluation = Evaluation.start(models, dataset, views, fuse)
    if boxes is not None:
        check_localisation(models, views)
        evaluation.annotations = Annotations(boxes, dataset)
    work = cache(lambda: evaluation.work(fresh))  # its key takes a second, which a short evaluation doesn't need
    if Work.may_exist(KIND, **evaluation.options()):
        evaluation.restore(work())
    task, saved = f"Evaluating {', '.join(one.name for one in models)}", time.monotonic()
    try:
        for done in score(evaluation, batch_size=batch_size, workers=workers):
            progress(task, done, len(dataset))
            if time.monotonic() - saved > SAVE_SECONDS:
                evaluation.save(work())
                saved = time.monotonic()
    except BaseException:
        if evaluation.done:
            evaluation.save(work())
        raise
    if keep:
        evaluation.save(work())
    elif work.cache_info().currsize:
        work().clear()
    if len(evaluation.errors) == len(dataset):
        reason = next(iter(evaluation.errors.values()))
        raise Error(f"{dataset.name}: none of its {len(dataset):,} images could be read; {reason}")
    return evaluation


def check_models(models: Sequence[Classifier], views: Views) -> None:
    """Raise Error if models can't be compared because their classes differ, or a size or the engine doesn't fit the views."""
    first = models[0].network
    for one in models:
        labels = first.labels and one.network.labels and (first.labels.wnids or first.labels.names)
        same = not labels or labels in (one.network.labels.wnids, one.network.labels.names)  # type: ignore[union-attr]
        one.network.check_values(["logits"])
        made = one.network.architecture
        if made.classes != first.architecture.classes or not same:
            raise Error(f"{one.name} and {models[0].name} have different classes; only models with the same can be compared")
        if (made.output == "sigmoid") != (first.architecture.output == "sigmoid"):
            raise Error(f"{one.name} and {models[0].name} can't be compared; only one of them has a score for each class")
        check_views(one, views)


def check_localisation(models: Sequence[Classifier], views: Views) -> None:
    """Raise Error if the views or a model's engine give no heat maps."""
    if views.count > 1 or views.dense:
        raise Error("boxes require a single crop: the protocol `center`, without flip and with at most one size")
    for one in models:
        if one.network.architecture.output == "sigmoid":
            raise Error(f"{one.name} predicts several classes for an image; boxes require one")
        if not can_explain(one):
            raise Error(f"{one.name} has quantized activations, which give no heat maps; use the engine native")


@dataclass(frozen=True)
class _Window:
    """Consecutive images of the dataset, decoded and cut into views for each preprocessing."""

    places: list[int]  # of the images that could be read
    targets: list[tuple[int, ...]]  # the classes of each image
    sizes: list[tuple[int, int]]  # width and height
    batches: Mapping[Recipe, list[ViewBatch]]
    errors: Mapping[int, str]
    end: int  # the place after the last


def score(evaluation: Evaluation, *, batch_size: int = BATCH_SIZE, workers: int | None = None) -> Iterator[int]:
    """Complete an evaluation; yields the number of images done, after each batch of images."""
    recipes = list(dict.fromkeys(map(_recipe, evaluation.models)))
    count, size = len(evaluation.dataset), evaluation.views.together(batch_size)
    ranges = (range(start, min(start + size, count)) for start in range(evaluation.done, count, size))
    workers = workers or cores()
    prepare = partial(_prepare, evaluation.dataset, recipes=recipes, views=evaluation.views, batch_size=batch_size)
    windows, started = ahead(prepare, ranges, workers, workers + 1), time.perf_counter()
    for window in windows:
        _score_window(evaluation, window, time.perf_counter() - started)
        yield evaluation.done
        started = time.perf_counter()


def _recipe(model: Classifier) -> Recipe:
    return model.network.preprocessing, takes_pixels(model.engine)


def _prepare(dataset: Dataset, places: range, recipes: Sequence[Recipe], views: Views, batch_size: int) -> _Window:
    readable: list[int] = []
    sizes: list[tuple[int, int]] = []
    errors: dict[int, str] = {}
    prepared: dict[Recipe, list[tuple[int, float, Array]]] = {recipe: [] for recipe in recipes}
    for place in places:
        sample = dataset.samples[place]
        try:
            image = sample.image()
            cut = [(one, list(views.of(image, one[0], sample.name, pixels=one[1]))) for one in recipes]
        except ImageError as error:
            errors[place] = str(error)
            continue
        for recipe, weighted in cut:
            prepared[recipe] += [(len(readable), weight, view) for weight, view in weighted]
        readable.append(place)
        sizes.append(image.size)
    ready = {recipe: list(batches(found, batch_size * recipe[0].crop ** 2)) for recipe, found in prepared.items()}
    return _Window(readable, [dataset.samples[place].classes for place in readable], sizes, ready, errors, places.stop)


def _score_window(evaluation: Evaluation, window: _Window, waited: float) -> None:
    """Add the results of every model, and of their fusion, for a window that was waited for so many seconds."""
    probabilities, seconds = [], []
    samples = [evaluation.dataset.samples[place] for place in window.places]
    boxes = [evaluation.annotations.boxes(one.name) for one in samples] if evaluation.annotations else None
    for model, results in zip(evaluation.models, evaluation.results, strict=False):
        started = time.perf_counter()
        scores, results.overlaps[window.places] = _probabilities(model, window, evaluation.views, boxes)
        probabilities.append(scores)
        seconds.append(time.perf_counter() - started)
    if len(evaluation.results) > len(evaluation.models):
        probabilities.append(np.mean(probabilities, 0))
        seconds.append(sum(seconds))
    for results, scores, took in zip(evaluation.results, probabilities, seconds, strict=True):
        results.put(window.places, scores, window.targets, evaluation.several)
        results.seconds += waited + took
    evaluation.errors.update(window.errors)
    evaluation.done = window.end


def _probabilities(
    model: Classifier, window: _Window, views: Views, boxes: Sequence[Sequence[Box]] | None
) -> tuple[Array, Array]:
    """The images' scores [count, classes], a weighted mean over their views, and the overlaps of their boxes [count]."""
    count, network = len(window.places), model.network
    preprocessing = views.preprocessings(network.preprocessing)[0]  # boxes have one view
    total, overlaps = np.zeros((count, network.architecture.classes)), np.full(count, np.nan)
    for batch in window.batches[_recipe(model)]:
        values = model.engine.run(batch.inputs, outputs(network) if boxes else ("logits",))
        logits = values["logits"]
        if logits.ndim == 4:  # a map of class scores
            logits = logits.mean((2, 3), np.float64)
        np.add.at(total, batch.owners, batch.weights[:, None] * network_scores(network, logits))
        for row, owner in enumerate(batch.owners if boxes else ()):
            one = {name: value[row] for name, value in values.items()}
            area = cropped_area(preprocessing, *window.sizes[owner])
            overlaps[owner] = overlap(network, one, window.targets[owner][0], area, boxes[owner])  # type: ignore[index]
    return total, overlaps
