"""Models over a dataset, side by side: what each answered for each picture."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from ..arrays import Array
from ..classifier import Classifier
from ..engines import check_dense
from ..errors import Error, ImageError, Notice
from ..explanation import can_explain, outputs
from ..files import cache_folder, replacing
from ..overlay import Box
from ..parallel import ahead
from ..predictions import softmax
from ..preprocessing import Preprocessing
from ..sources import Dataset
from ..views import ViewBatch, Views, batches
from .localisation import Annotations, overlap

BATCH_SIZE = 16
TOP = 5  # best classes that are kept of each picture
ROLES = ("top", "scores", "losses", "overlaps")  # the arrays of Answers
VIEWS = 64  # about as many views are prepared together, so that those of the same size share a batch
SAVE_SECONDS = 30.0  # between two savings of what has been done


@dataclass
class Answers:
    """What a model answered for each picture of a dataset; rows of pictures that couldn't be read are -1, 0, nan and nan."""

    top: Array  # int32 [images, TOP]: the best classes, best first
    scores: Array  # float32 [images, TOP]: their probabilities
    losses: Array  # float32 [images]: cross-entropy, -ln of the right class's probability, at most 87
    overlaps: Array  # float32 [images]: of the right class's box with the picture's best one; nan: not asked for
    seconds: float = 0.0  # waiting for pictures, and computing

    @classmethod
    def empty(cls, images: int, classes: int) -> "Answers":
        top = min(TOP, classes)
        best, scores = np.full((images, top), -1, np.int32), np.zeros((images, top), np.float32)
        return cls(best, scores, np.full(images, np.nan, np.float32), np.full(images, np.nan, np.float32))

    def put(self, places: Sequence[int], probabilities: Array, targets: Sequence[int]) -> None:
        """Keep what is needed of the probabilities [batch, classes] of the pictures at some places."""
        self.top[places] = best = np.argsort(-probabilities, axis=-1, kind="stable")[:, : self.top.shape[1]]
        self.scores[places] = np.take_along_axis(probabilities, best, -1)
        right = probabilities[np.arange(len(targets)), targets]
        self.losses[places] = -np.log(right.clip(np.finfo(np.float32).tiny))


@dataclass
class Run:
    """An evaluation under way, or done: as far as `done`, every model has answered."""

    models: Sequence[Classifier]
    dataset: Dataset
    protocol: Views
    names: list[str]  # of the models, and of their fusion
    answers: list[Answers]  # of each
    errors: dict[int, str] = field(default_factory=dict)  # of pictures that couldn't be read, by their place in the dataset
    done: int = 0  # pictures, from the first on
    annotations: Annotations | None = None  # the pictures' boxes, where localisation is measured

    @classmethod
    def of(cls, models: Sequence[Classifier], dataset: Dataset, protocol: Views, fuse: bool = False) -> "Run":
        """A run in which nothing has been answered yet."""
        names = [one.name for one in models] + ([" + ".join(one.name for one in models)] if fuse else [])
        classes = models[0].network.architecture.classes
        return cls(models, dataset, protocol, names, [Answers.empty(len(dataset), classes) for _ in names])

    def read(self) -> Array:
        """bool [images]: which pictures could be read."""
        found = np.arange(len(self.dataset)) < self.done
        found[list(self.errors)] = False
        return found

    def save(self, path: Path) -> None:
        """Keep what has been done; where that can't be written, the run goes on all the same, with a notice."""
        arrays = {f"{role}_{i}": getattr(one, role) for i, one in enumerate(self.answers) for role in ROLES}
        state = {"done": self.done, "errors": self.errors, "seconds": [one.seconds for one in self.answers]}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                np.savez(file, state=np.array(json.dumps(state)), **arrays)
        except (OSError, Error) as error:
            warnings.warn(Notice(f"what is done so far can't be saved for --resume: {error}"), stacklevel=2)

    def restore(self, path: Path) -> None:
        """Go on from what was saved; a damaged file counts as none."""
        try:
            with path.open("rb") as file, np.load(file) as saved:  # which unpickles nothing
                state = json.loads(str(saved["state"]))
                for index, one in enumerate(self.answers):
                    for role in ROLES:
                        getattr(one, role)[:] = saved[f"{role}_{index}"]
                    one.seconds = state["seconds"][index]
                self.errors, self.done = {int(place): text for place, text in state["errors"].items()}, state["done"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return


@dataclass(frozen=True)
class _Window:
    """Some pictures of the dataset, decoded and cut into views for each preprocessing."""

    places: list[int]  # of those that could be read
    targets: list[int]
    sizes: list[tuple[int, int]]  # width and height
    batches: Mapping[Preprocessing, list[ViewBatch]]
    errors: Mapping[int, str]
    end: int  # the place after the last


def evaluate(
    models: Sequence[Classifier],
    dataset: Dataset,
    protocol: Views | None = None,
    *,
    fuse: bool = False,
    boxes: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    resume: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> Run:
    """Run models over a dataset; each picture is decoded once for all of them, by other threads while the engines work.

    Args:
        models: with the same classes.
        dataset: whose targets are these classes.
        protocol: how the pictures are looked at; the centre crop when not given.
        fuse: also score the mean of the models' probabilities.
        boxes: a folder with ImageNet's annotations; then localisation is measured as well, of a single crop.
        batch_size: views that an engine gets at once; larger ones count for as many as their pixels.
        workers: threads that decode and prepare; as many as there are cores when not given.
        resume: go on where a run with the same models, dataset and protocol was cut.
        progress: called with the number of pictures done.

    Returns:
        Each model's answers, and those of their fusion. Pictures that couldn't be read are in `errors`.

    Raises:
        Error: the models have different classes, a scale or the engine doesn't fit, or no picture could be read.
    """
    protocol = protocol or Views()
    check(models, protocol)
    run = Run.of(models, dataset, protocol, fuse)
    if boxes is not None:
        check_localisation(models, protocol)
        run.annotations = Annotations(boxes, dataset)
    path = cache(partial(_state_path, run))  # hashing the parameters takes a second, which a short run doesn't need
    if resume:
        run.restore(path())
    saved, kept = time.monotonic(), resume
    try:
        for done in answer(run, batch_size=batch_size, workers=workers):
            progress(done)
            if time.monotonic() - saved > SAVE_SECONDS:
                run.save(path())
                saved, kept = time.monotonic(), True
    except BaseException:
        run.save(path())
        raise
    if kept:
        path().unlink(missing_ok=True)
    if len(run.errors) == len(dataset):
        raise Error(f"{dataset.name}: none of its {len(dataset):,} pictures could be read; {next(iter(run.errors.values()))}")
    return run


def answer(run: Run, *, batch_size: int = BATCH_SIZE, workers: int | None = None) -> Iterator[int]:
    """Let the models answer for what is left of a run; gives how far it is, after each lot of pictures."""
    recipes = list(dict.fromkeys(one.network.preprocessing for one in run.models))
    count, size = len(run.dataset), max(1, min(batch_size, VIEWS // run.protocol.count))
    windows = (range(start, min(start + size, count)) for start in range(run.done, count, size))
    workers = workers or os.cpu_count() or 1
    prepare = partial(_prepared, run.dataset, recipes=recipes, protocol=run.protocol, batch_size=batch_size)
    for window, waited in _timed(ahead(prepare, windows, workers, workers + 1)):
        _answer(run, window, waited)
        yield run.done


def check(models: Sequence[Classifier], protocol: Views) -> None:
    """Raises Error where models can't run side by side, or a scale or the engine doesn't fit."""
    first = models[0].network
    for one in models:
        labels = first.labels and one.network.labels and (first.labels.wnids or first.labels.names)
        same = not labels or labels in (one.network.labels.wnids, one.network.labels.names)  # type: ignore[union-attr]
        if one.network.architecture.classes != first.architecture.classes or not same:
            raise Error(f"{one.name} has other classes than {models[0].name}; models side by side need the same")
        check_views(one, protocol)


def check_views(model: Classifier, protocol: Views) -> None:
    """Raises Error where a model can't look at pictures in this way: a scale or the engine doesn't fit."""
    protocol.preprocessings(model.network.preprocessing)
    if protocol.dense:
        check_dense(model.engine, model.network.architecture)


def check_localisation(models: Sequence[Classifier], protocol: Views) -> None:
    """Raises Error where no heat map can be made."""
    if protocol.count > 1 or protocol.dense:
        raise Error("boxes are made of a single crop: the protocol `center` without flip and with one scale at most")
    for one in models:
        if not can_explain(one):
            raise Error(f"{one.name} quantizes activations, and gives no heat maps; the engine native takes its weights alone")


def _state_path(run: Run) -> Path:
    """Where a run's partial results are: a file in the user's cache, named by all that decides the result."""
    networks = [(one.network.sha256(), asdict(one.network.preprocessing)) for one in run.models]
    decides = [networks, run.dataset.digest(), asdict(run.protocol), run.names, run.annotations is not None]
    key = json.dumps(decides, sort_keys=True)
    return cache_folder() / "evaluations" / f"{sha256(key.encode()).hexdigest()[:32]}.npz"


def _prepared(dataset: Dataset, places: range, recipes: Sequence[Preprocessing], protocol: Views, batch_size: int) -> _Window:
    good: list[int] = []
    sizes: list[tuple[int, int]] = []
    errors: dict[int, str] = {}
    views: dict[Preprocessing, list[tuple[int, float, Array]]] = {recipe: [] for recipe in recipes}
    for place in places:
        sample = dataset.samples[place]
        try:
            image = sample.picture()
            looks = [(recipe, list(protocol.of(image, recipe, sample.name))) for recipe in recipes]
        except ImageError as error:
            errors[place] = str(error)
            continue
        for recipe, look in looks:
            views[recipe] += [(len(good), weight, view) for weight, view in look]
        good.append(place)
        sizes.append(image.size)
    ready = {recipe: list(batches(found, batch_size * recipe.crop**2)) for recipe, found in views.items()}
    return _Window(good, [dataset.samples[place].target for place in good], sizes, ready, errors, places.stop)


def _answer(run: Run, window: _Window, waited: float) -> None:
    """Let every model answer for a window of pictures, and their fusion where there is one."""
    everyone, took = [], []
    samples = [run.dataset.samples[place] for place in window.places]
    truth = None if run.annotations is None else [run.annotations.boxes(one.name) for one in samples]
    for model, answers in zip(run.models, run.answers, strict=False):
        started = time.perf_counter()
        probabilities, overlaps = _scored(model, window, truth)
        answers.overlaps[window.places] = overlaps
        everyone.append(probabilities)
        took.append(time.perf_counter() - started)
    if len(run.answers) > len(run.models):
        everyone.append(np.mean(everyone, 0))
        took.append(sum(took))
    for answers, probabilities, seconds in zip(run.answers, everyone, took, strict=True):
        answers.put(window.places, probabilities, window.targets)
        answers.seconds += waited + seconds
    run.errors.update(window.errors)
    run.done = window.end


def _scored(model: Classifier, window: _Window, truth: Sequence[Sequence[Box]] | None) -> tuple[Array, Array]:
    """The pictures' probabilities [count, classes], the weighted mean over their views; how well their boxes fit, [count]."""
    count, network = len(window.places), model.network
    total, overlaps = np.zeros((count, network.architecture.classes)), np.full(count, np.nan)
    for batch in window.batches[network.preprocessing]:
        values = model.engine.run(batch.inputs, outputs(network) if truth else ("logits",))
        logits = values["logits"]
        if logits.ndim == 4:  # a map of class scores
            logits = logits.mean((2, 3), np.float64)
        np.add.at(total, batch.owners, batch.weights[:, None] * softmax(logits))
        for row, owner in enumerate(batch.owners):
            if truth is None:
                break
            one = {name: value[row] for name, value in values.items()}
            overlaps[owner] = overlap(network, one, window.targets[owner], window.sizes[owner], truth[owner])
    return total, overlaps


def _timed(windows: Iterator[_Window]) -> Iterator[tuple[_Window, float]]:
    """Each window with the seconds that it was waited for."""
    while True:
        started = time.perf_counter()
        window = next(windows, None)
        if window is None:
            return
        yield window, time.perf_counter() - started
