"""What is to be learnt from what: from a user's options to pictures, a network and its targets."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn import functional

from .. import sources
from ..architectures import Architecture
from ..arrays import Array
from ..errors import Error
from ..files import reason
from ..labels import Labels
from ..module import Module, started
from ..network import Network
from ..preprocessing import PRESETS, Preprocessing
from ..sources import Dataset, cifar
from .cache import Cache, Progress
from .pictures import Batch, Pictures
from .recipes import Recipe, checked

SMALL = 64  # pixels of an input up to which a network gets the `gap` head and pictures of just its size
HELD_OUT = 10  # one in so many pictures judges, where there are none but for learning


@dataclass(frozen=True)
class Options:
    """What is trained on what, and how."""

    # Labelled pictures as `vgg.sources.open` takes them, or a folder of such, train and val; for teachers, any pictures.
    data: str | Path
    to: Path  # the folder for the run
    recipe: Recipe
    val: str | Path | None = None  # labelled pictures to judge by; without them data's val or test, else a tenth of data
    labels: Labels | None = None  # for lists and shards that give numbers
    arch: str = "vgg16-bn"  # the network that begins at random, with the following three
    width: float = 1.0
    size: int | None = None  # pixels of the input; 32 for CIFAR-10, else 224
    head: str | None = None  # `gap` for inputs of 64 pixels or less, else `fc`
    init: Network | None = None  # the network whose parameters it begins with as far as they fit
    start: Network | None = None  # a network to fine-tune, instead of one that begins at random
    freeze: str = ""  # the block or layer of it up to which nothing is learnt, such as conv4
    teachers: Sequence[Network] = ()  # whose scores are learnt instead of labels
    matched: tuple[str, ...] = ()  # values in which the student is to be like the first teacher, too
    cache: Path | None = None  # where what frozen layers and teachers give is kept; a folder in the run's when not given
    micro_batch: int = 0  # pictures that a device takes at once, at most; 0: as many as a batch has
    seed: int = 0
    device: str = "cpu"
    workers: int | None = None  # threads that prepare pictures; as many as there are cores when not given
    resume: bool = False
    save_seconds: float = 600.0  # between two checkpoints; there is one after each epoch, too


@dataclass
class Task:
    """A training, ready to begin."""

    recipe: Recipe
    module: Module
    preprocessing: Preprocessing
    labels: Labels | None
    dataset: str  # its name
    train: Any  # Pictures, or a Cache of what the frozen layers make of them
    places: Array  # of the pictures to learn from
    val: Any
    judges: Array  # the places in `val` of the pictures to judge by
    config: dict[str, Any]  # all that decides the result, for the checkpoints
    start: int = 0  # the module's first layer that computes
    matched: tuple[str, ...] = ()
    teachers: Sequence[Network] = ()  # that look at each step's pictures; the others looked once, and these three are of them:
    soft: list[Cache] = field(default_factory=list)  # each teacher's logits
    soft_val: list[Cache] = field(default_factory=list)  # where the pictures that judge have no labels either
    values: list[Cache] = field(default_factory=list)  # the first teacher's values that are matched
    licence: str = ""

    @property
    def errors(self) -> dict[str, str]:
        return {**self.train.errors, **self.val.errors}

    def targets(self, batch: Batch, look: int) -> torch.Tensor:
        """The scores that are to be learnt, [batch, classes]: of the labels, or the mean of the teachers'."""
        if not self.soft:
            return functional.one_hot(torch.from_numpy(batch.targets), self.module.architecture.classes).float()
        logits = (torch.from_numpy(one.rows(batch.places, look)) for one in self.soft)
        return torch.stack([(one / self.recipe.temperature).softmax(1) for one in logits]).mean(0)

    def match(self, batch: Batch, look: int, device: torch.device) -> list[torch.Tensor]:
        """The teacher's values that are to be matched."""
        return [torch.from_numpy(one.rows(batch.places, look)).to(device) for one in self.values]

    def answers(self, batch: Batch) -> Array:
        """The right classes of pictures that judge, int64 [batch]; without labels, those that the teachers give."""
        if not self.soft_val:
            return batch.targets
        scores = [torch.from_numpy(one.rows(batch.places, None)).softmax(1) for one in self.soft_val]
        return np.asarray(torch.stack(scores).mean(0).argmax(1))


def prepare(options: Options, progress: Progress, told: Callable[[str], object]) -> Task:
    """Open the pictures, make the network, and compute what is computed once. Raises Error where something doesn't fit."""
    if options.freeze and not options.start:
        raise Error("only layers that have learnt can be frozen; give the network that they come from (--from)")
    if options.matched and not options.teachers:
        raise Error("there is no teacher whose values could be matched; give one (--teacher)")
    try:
        options.to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{options.to}: can't be made: {reason(error)}") from None
    data, found = sources.splits(options.data)
    val = options.val or found
    classes, labels = _classes(data, options)
    module, preprocessing = _network(options, data, classes, labels)
    batch_norm = module.architecture.configuration.batch_norm
    recipe = checked(options.recipe.for_input(preprocessing.crop, batch_norm))

    unlabelled = bool(options.teachers)
    dataset = sources.unlabelled(data) if unlabelled else sources.open(data, classes, labels)
    workers = options.workers or os.cpu_count() or 1
    train = Pictures(dataset, recipe, preprocessing, options.seed, workers)
    order = np.random.default_rng(options.seed).permutation(len(dataset))
    held = 0 if val else len(dataset) // HELD_OUT
    places, judges, judging = np.sort(order[held:]), np.sort(order[:held]), train
    if val:
        judging = Pictures(sources.open(val, classes, labels), recipe, preprocessing, options.seed, workers)
        judges = np.arange(len(judging.dataset))
    _check(dataset, places, classes, recipe, labels, unlabelled)
    for teacher in options.teachers:
        if teacher.architecture.head == "fc" and teacher.architecture.input_size != train.side:
            raise Error(
                f"{teacher.architecture.name} takes {teacher.architecture.input_size} pixels, not {train.side}; use --size"
            )
    told(
        f"{len(places):,} pictures of {classes:,} classes to learn from, {len(judges):,} to judge by; "
        f"{module.architecture.name}, {module.architecture.parameter_count:,} parameters; recipe {recipe.name}"
    )
    config = {
        "recipe": asdict(recipe), "architecture": asdict(module.architecture), "preprocessing": asdict(preprocessing),
        "seed": options.seed, "freeze": options.freeze, "matched": list(options.matched),
        "pictures": dataset.digest(), "judges": judging.dataset.digest(),
        "networks": {
            name: network.sha256()
            for name, network in (("from", options.start), ("init", options.init), *_numbered(options.teachers))
            if network
        },
    }  # fmt: skip
    config = json.loads(json.dumps(config))  # tuples become lists, as they will be when they are read again
    name = Path(options.data).resolve().name
    task = Task(recipe, module, preprocessing, labels, name, train, places, judging, judges, config)
    task.matched = options.matched
    # What is computed once for each look: the frozen layers' values, and what the teachers say.
    looks, folder = tuple(range(recipe.views)), options.cache or options.to / "cache"

    def cache(pictures: Pictures, places: Array, looks: Sequence[int | None], network: Network, value: str) -> Cache:
        if following := distributed.is_initialized() and distributed.get_rank() > 0:
            distributed.barrier()
        made = Cache(folder, pictures, places, looks, network, value, options.device)
        made.fill(progress)  # by the first process of several; the others find it filled
        if distributed.is_initialized() and not following:
            distributed.barrier()
        return made

    if options.freeze and options.start:
        end, value = module.end_of(options.freeze)
        module.freeze(end)
    if options.freeze and options.start and recipe.views:
        task.start = end
        if early := [value for value in options.matched if module.place_of(value) < end]:
            raise Error(f"{early[0]} is frozen by --freeze {options.freeze}; it can't become like a teacher's")
        task.train = cache(train, places, looks, options.start, value)
        task.val = cache(judging, judges, (None,), options.start, value)
    if not recipe.views:
        task.teachers = options.teachers
    for teacher in options.teachers:
        if recipe.views:
            task.soft.append(cache(train, places, looks, teacher, "logits"))
        if not val:
            task.soft_val.append(cache(train, judges, (None,), teacher, "logits"))
    for value in options.matched:
        theirs, ours = (
            one.shape(value, 1, train.side, train.side)[1:] for one in (options.teachers[0].architecture, module.architecture)
        )
        if theirs != ours:
            raise Error(
                f"the teacher's {value} is {list(theirs)}, the student's {list(ours)}; matched values have the same shape"
            )
        if recipe.views:
            task.values.append(cache(train, places, looks, options.teachers[0], value))
    task.licence = "; ".join(dict.fromkeys(
        one.provenance.licence for one in (options.start, options.init, *options.teachers) if one and one.provenance.licence
    ))  # fmt: skip
    return task


def _classes(data: str, options: Options) -> tuple[int, Labels | None]:
    if options.teachers:
        first = options.teachers[0]
        for other in options.teachers:
            if other.architecture.classes != first.architecture.classes:
                raise Error("the teachers have different numbers of classes; they must know the same ones")
        return first.architecture.classes, first.labels
    if options.labels:
        return len(options.labels), options.labels
    return sources.classes_of(data)


def _network(options: Options, data: str, classes: int, labels: Labels | None) -> tuple[Module, Preprocessing]:
    """The network that learns, with the numbers that it begins with."""
    torch.manual_seed(options.seed)
    if options.start:
        network = options.start.expanded()
        module = Module(replace(network.architecture, classes=classes), options.recipe.dropout)
        module.initialise()
        same = classes == network.architecture.classes and (labels == network.labels or labels is None)
        kept = {layer.name for layer in network.architecture.layers if layer.parameters and (same or layer.name != "fc8")}
        module.load(network, kept)
        return module, network.preprocessing
    small = sources.is_cifar(data)
    size = options.size or (cifar.SIDE if small else Architecture.input_size)
    head: Any = options.head or ("gap" if size <= SMALL else "fc")
    module = Module(Architecture(options.arch, classes, options.width, size, head), options.recipe.dropout)
    module.initialise()
    if options.init:
        started(module, options.init.expanded())
    if size == PRESETS["torchvision"].crop:
        return module, PRESETS["torchvision"]
    short = size if size <= SMALL else round(size * 256 / 224)
    return module, replace(PRESETS["torchvision"], size=short, crop=size)


def _check(dataset: Dataset, places: Array, classes: int, recipe: Recipe, labels: Labels | None, unlabelled: bool) -> None:
    """Raises Error where there is too little to learn from."""
    counts = Counter(sample.target for sample in dataset)
    if not unlabelled and classes < 2:
        raise Error(f"{dataset.name}: has one class only; there is nothing to tell apart")
    for target in range(classes) if not unlabelled else ():
        if not counts[target]:
            name = (labels.wnids or labels.names)[target] if labels else target
            raise Error(f"{dataset.name}: class {name} has no pictures")
    if len(places) < recipe.batch:
        raise Error(
            f"{dataset.name}: has {len(places)} pictures to learn from, fewer than a batch of {recipe.batch}; "
            f"--batch-size {max(len(places), 1)} would do"
        )


def _numbered(teachers: Sequence[Network]) -> list[tuple[str, Network]]:
    return [(f"teacher {number}", teacher) for number, teacher in enumerate(teachers, 1)]
