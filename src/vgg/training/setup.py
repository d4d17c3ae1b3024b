"""From a user's options to loaders, a module and its targets, ready to train."""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import engines
from ..architectures import STRIDE
from ..arrays import Array
from ..errors import Error, Notice
from ..heads import NONE, Output
from ..labels import Labels
from ..module import Module, Normalisation
from ..network import Network
from ..parallel import cores
from ..preprocessing import Preprocessing
from ..progress import Progress
from ..sources import Dataset
from ..store import key_of
from . import balance, student
from .cache import Cache
from .checkpoint import CACHE
from .images import open_images
from .loader import Loader
from .measures import AUC_CLASSES
from .options import Options
from .processes import Process
from .recipes import Recipe, checked
from .targets import Targets

PIXELS = 2**20  # of the images whose patches the first filters whiten


@dataclass
class Setup:
    """A training run that is ready to begin."""

    recipe: Recipe
    module: Module
    preprocessing: Preprocessing
    labels: Labels | None
    name: str  # of the dataset
    train: Loader
    indices: Array  # of the training images
    val: Loader  # is `train` if a part of its images is held out
    val_indices: Array
    test: Dataset | None
    targets: Targets
    weights: Array | None  # of the classes in the loss; see `balance`
    probabilities: Array | None  # of the training images in each draw; None: each is used once in an epoch
    key: dict[str, Any]  # everything that decides the result
    licence: str
    origin: Network | None  # with the parameters of the frozen layers
    start: int  # index of the module's first layer that computes; the values of those before it are in `frozen`
    frozen: tuple[Cache, Cache] | None = None  # for training and validation
    teachers: Sequence[Network] = ()  # that compute in each step; the values of others are in `targets`

    @property
    def least(self) -> int:
        """The least number of images in a part of a batch: in one, batch normalisation of vectors has nothing to normalise."""
        return 1 + any(layer.operation == "batch_norm" and "_" not in layer.name for layer in self.module.architecture.layers)


def prepare(options: Options, log: Callable[[str], object]) -> Setup:
    """Open the images and create the network. Raises Error if the options don't fit together, or the images don't fit them."""
    _check_options(options)
    output = student.output_of(options)
    images = open_images(options, output)
    classes, labels, indices = images.classes, images.labels, images.split.train
    module, preprocessing, new = student.create(options, images.place, classes, labels, output)
    recipe = checked(options.recipe.for_input(preprocessing.crop, module.architecture.configuration.batch_norm))
    val_classes = [images.val.samples[index].classes for index in images.split.val.tolist()]
    _check_recipe(recipe, classes, output, val_classes, teachers=bool(options.teachers))

    def loader(dataset: Dataset) -> Loader:
        workers = options.workers or cores()
        return Loader(dataset, recipe, preprocessing, options.seed, workers, classes if output == "sigmoid" else 0)

    train = loader(images.train)
    val = train if images.val is images.train else loader(images.val)
    _check_sizes(options, module, train, len(indices), recipe)
    if recipe.filters == "whitened" and not (options.start or options.init):
        student.whiten(module, _inputs(train, indices, preprocessing))
    end = module.end_of(options.freeze)[0] if options.freeze else 0
    module.freeze(end)
    if missing := [layer.name for layer in module.architecture.layers[:end] if layer.name in new]:
        raise Error(f"--freeze {options.freeze} includes {missing[0]}, which is new; freeze layers of --from only")
    if early := [value for value in options.matched if module.index_of(value) < end and recipe.views]:
        raise Error(f"{early[0]} is frozen by --freeze {options.freeze}, so it can't be trained with --match")
    if options.matched and recipe.views and (recipe.mixup or recipe.cutmix):
        raise Error("--match with mixed images requires --set views=0, so that the teacher computes the same images")
    networks = {"from": options.start, "init": options.init}
    networks |= {f"teacher {number}": teacher for number, teacher in enumerate(options.teachers, 1)}
    known = {name: network for name, network in networks.items() if network}
    log(
        f"{images.summary()}; {module.architecture.name}, {module.architecture.parameter_count:,} parameters; "
        f"recipe {recipe.name}"
        + (f"; new: {', '.join(new)}" if new else "")
        + (f"; positive class: {images.name(1)}" if classes == 2 and output != "sigmoid" else "")
    )
    key = key_of(
        torch=torch.__version__,
        recipe=asdict(recipe),
        architecture=asdict(module.architecture),
        preprocessing=asdict(preprocessing),
        seed=options.seed,
        group=options.group,
        freeze=options.freeze,
        matched=options.matched,
        fold=options.fold,
        images=images.train.digest(),
        held_out=images.val is images.train,
        val_images=images.val.digest(),
        test_images=images.test and images.test.digest(),
        networks={name: network.sha256() for name, network in known.items()},
    )
    balanced = _balance(recipe, [images.train.samples[index].classes for index in indices.tolist()], classes, output)
    licences = dict.fromkeys(network.provenance.licence for network in known.values() if network.provenance.licence)
    return Setup(
        recipe, module, preprocessing, labels, Path(options.data).resolve().name, train, indices, val,
        images.split.val, images.test, Targets(classes, output, recipe.temperature), *balanced, key, "; ".join(licences),
        student.origin(options.start, module, preprocessing), end if recipe.views else 0,
    )  # fmt: skip


def cache_values(setup: Setup, options: Options, process: Process, progress: Progress) -> None:
    """Compute once, for each view, the values of frozen layers and of teachers."""
    views, folder = tuple(range(setup.recipe.views)), options.cache or options.output / CACHE

    def cached(network: Network, engine: engines.Engine, value: str, *, training: bool = True) -> Cache:
        with process.first_alone():
            if training:
                cache = Cache(folder, setup.train, views, network, engine, value)
                cache.fill(setup.indices, engine, progress)
            else:
                cache = Cache(folder, setup.val, (None,), network, engine, value)
                cache.fill(setup.val_indices, engine, progress)
        return cache

    if setup.start and setup.origin:
        engine, value = engines.open(setup.origin, device=options.device), setup.module.end_of(options.freeze)[1]
        setup.frozen = cached(setup.origin, engine, value), cached(setup.origin, engine, value, training=False)
    if not views:
        setup.teachers = options.teachers
    unlabelled = setup.val is setup.train
    for number, teacher in enumerate(options.teachers if views or unlabelled else ()):
        engine = engines.open(teacher, device=options.device)
        if views:
            setup.targets.logits.append(cached(teacher, engine, "logits"))
        if unlabelled:
            setup.targets.val_logits.append(cached(teacher, engine, "logits", training=False))
        for value in options.matched if views and number == 0 else ():
            setup.targets.matched.append(cached(teacher, engine, value))


def _check_options(options: Options) -> None:
    if options.start:
        for_new = {"--init-from": options.init, "--input-size": options.size}
        for_new |= {"--arch": options.arch != Options.arch, "--width": options.width != Options.width}
        if given := [name for name, value in for_new.items() if value]:
            raise Error(f"{given[0]} is for a new network; --from keeps the network's own architecture and input")
    if options.teachers and options.labels:
        raise Error("--labels can't be combined with --teacher, whose classes are the network's")
    if options.freeze and not options.start:
        raise Error("--freeze requires --from: a new network has no trained layers to freeze")
    if options.matched and not options.teachers:
        raise Error("--match requires --teacher, the network whose layers are matched")
    if len({teacher.architecture.classes for teacher in options.teachers}) > 1:
        raise Error("the teachers have different numbers of classes")
    if options.head == NONE:
        raise Error("--head none has nothing to train; use a head such as 'average, 256 relu dropout 0.5, classes'")
    for teacher in options.teachers:
        teacher.check_values(["logits"])


def _check_recipe(
    recipe: Recipe, classes: int, output: Output, val_classes: Sequence[Sequence[int]], *, teachers: bool
) -> None:
    """Raise Error if the recipe doesn't fit the images or the teachers; warn if the AUC is undefined."""
    if recipe.schedule == "plateau" and not val_classes:
        raise Error("schedule=plateau requires validation images; use --val, more images, or --set schedule=cosine")
    if recipe.temperature != 1 and not teachers:
        raise Error(
            f"temperature={recipe.temperature:g} is for teachers' scores; use --teacher, or --set temperature=1 without one"
        )
    if recipe.balance != "none" and teachers:
        raise Error(f"balance={recipe.balance} requires the classes of the images; with --teacher, they are not used")
    if recipe.balance == "sampling" and output == "sigmoid":
        raise Error("balance=sampling requires one class for each image; with the output `sigmoid`, use balance=loss")
    if recipe.best == "balanced" and output == "sigmoid":
        raise Error(
            "best=balanced requires one class for each image; with the output `sigmoid`, use accuracy (F1), auc or loss"
        )
    if recipe.best == "auc" and classes > AUC_CLASSES:
        raise Error(f"best=auc is for up to {AUC_CLASSES} classes, not {classes}; use best=accuracy, balanced or loss")
    if recipe.best == "auc" and val_classes and not teachers:
        counts = Counter(target for one in val_classes for target in one)
        if not any(0 < count < len(val_classes) for count in counts.values()):
            warnings.warn(
                Notice("AUC is undefined: no class has validation images both of it and not of it; the loss decides instead"),
                stacklevel=3,
            )


def _inputs(loader: Loader, indices: Array, preprocessing: Preprocessing) -> torch.Tensor:
    """Some training images as the module takes them, float32 [images, 3, side, side]."""
    some = indices[:: max(len(indices) * loader.side**2 // PIXELS, 1)]
    inputs = next(loader.batches([some])).inputs
    normalised: torch.Tensor = Normalisation(preprocessing)(torch.from_numpy(inputs).permute(0, 3, 1, 2).float())
    return normalised


def _balance(recipe: Recipe, classes: Sequence[Sequence[int]], count: int, output: Output) -> tuple[Array | None, Array | None]:
    """The weights of the classes in the loss, and the probabilities of the images, by the recipe's `balance`."""
    weights = balance.loss_weights(classes, count, output) if recipe.balance == "loss" else None
    return weights, balance.probabilities(classes, count) if recipe.balance == "sampling" else None


def _check_sizes(options: Options, module: Module, train: Loader, count: int, recipe: Recipe) -> None:
    """Raise Error if there are too few images, or teachers take other inputs or have other shapes than the student."""
    if count < recipe.batch:
        raise Error(
            f"{train.dataset.name}: has {count} training images, fewer than a batch of {recipe.batch}; "
            f"use --batch-size {max(count, 1)}"
        )
    if recipe.progressive < 1:
        first = train.side * recipe.progressive
        if first < STRIDE:
            raise Error(
                f"--set progressive={recipe.progressive}: begins with {first:.0f} pixels; networks take {STRIDE} or more"
            )
        for one in (module.architecture, *(teacher.architecture for teacher in options.teachers)):
            if one.fixed_map:
                raise Error(
                    f"--set progressive requires a head for images of any size, such as gap; {one.name} has a fixed one"
                )
    for teacher in options.teachers:
        architecture = teacher.architecture
        if architecture.fixed_map and architecture.input_size != train.side:
            remedy = "choose another teacher" if options.start else f"use --input-size {architecture.input_size}"
            raise Error(f"the teacher {architecture.name} takes {architecture.input_size} pixels, not {train.side}; {remedy}")
    for value in options.matched:
        theirs, ours = (
            architecture.shape(value, 1, train.side, train.side)[1:]
            for architecture in (options.teachers[0].architecture, module.architecture)
        )
        if theirs != ours:
            raise Error(f"{value} is {list(theirs)} in the teacher, {list(ours)} in the student; --match requires equal shapes")
