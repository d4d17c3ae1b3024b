"""The images of a training run: opened, checked, and divided into those for training, validation and test."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import sources
from ..arrays import Array
from ..errors import Error, Notice, counted, printable, utf8
from ..evaluation.results import EVERY
from ..heads import Output
from ..labels import Labels
from ..sources import Dataset, Splits
from .options import Options
from .split import Groups, Split, folds, groups_of, split


@dataclass(frozen=True)
class Images:
    """Datasets of a training run, and the images that it uses of them."""

    place: str  # of the training images
    classes: int
    labels: Labels | None
    train: Dataset
    val: Dataset  # is `train` if a part of it is held out
    test: Dataset | None
    split: Split  # indices in `train` and `val`; those for test are in `train`, and are all of `test`
    groups: Groups

    def summary(self) -> str:
        """The numbers of images of each set, and of groups."""
        text = f"{counted(len(self.split.train), 'training image')} of {self.classes:,} classes"
        text += f", {counted(len(self.split.val), 'validation image')}"
        text += f", {counted(len(self.test), 'test image')}" if self.test else ""
        alone = sum(not isinstance(one, str) for one in self.groups)
        if alone < len(self.groups):
            text += f"; {counted(len(set(self.groups)) - alone, 'group')}"
            text += f" and {counted(alone, 'image')} without a group" if alone else ""
        return text

    def name(self, target: int) -> str:
        """The name of a class."""
        return class_names(self.labels, self.classes)[target]


def class_names(labels: Labels | None, classes: int) -> tuple[str, ...]:
    """The names of the classes in messages and tables: WordNet ids, or names; numbers if names are not unique or have a `|`."""
    names = (labels.wnids or labels.names) if labels else ()
    clear = len({*names}) == classes and not any("|" in name for name in names)
    return names if clear else tuple(map(str, range(classes)))


def open_images(options: Options, output: Output) -> Images:
    """Open the images of a run. Raises Error if there are none, or they don't fit the options or the network's output."""
    place, val, test = _places(options)
    _check_output(options.output, (place, val, test))
    several, unlabelled = output == "sigmoid", bool(options.teachers)
    folders = [] if unlabelled else sources.folds(place)
    if folders and len(folders) != (options.fold or (0, 0))[1]:
        raise Error(f"{place}: has {len(folders)} folds, fold-1 and following; use --folds {len(folders)}")
    classes, labels = _classes(folders or [place], options, several=several)
    if output == "binary" and classes != 2:
        raise Error(f"{place}: has {classes} classes; a head with the output `binary` is for two, use `--head`")

    def opened(where: str, *, unlabelled: bool = False) -> Dataset:
        return sources.unlabelled(where) if unlabelled else sources.open(where, classes, labels, several=several)

    parts = [opened(where, unlabelled=unlabelled) for where in folders or [place]]
    dataset = _joined(place, folders, parts) if folders else parts[0]
    groups, fold = groups_of(dataset, options.group), None
    if options.fold:
        number, count = options.fold
        of_folders = np.repeat(np.arange(len(parts)), list(map(len, parts)))
        part = of_folders if folders else folds(dataset, groups, count, options.seed)  # of each image: its fold, from 0
        fold = part == number - 1

    def labelled(where: str | None, named: str | Path | None) -> Dataset | None:
        """The labelled images of a place. Those beside unlabelled ones may have other classes, and are not used then."""
        try:
            return opened(where) if where else None
        except Error as error:
            if named or not unlabelled:
                raise
            warnings.warn(Notice(f"{where}: not used, because its classes are not the teacher's ({error})"), stacklevel=3)
            return None

    val_dataset, test_dataset = labelled(val, options.val), labelled(test, options.test)
    divided = split(dataset, groups, options.seed, hold_out=val_dataset is None, fold=fold)
    if val_dataset is None:
        val_dataset = dataset
    else:
        divided = replace(divided, val=np.arange(len(val_dataset)))
    if options.fold:
        test_dataset = Dataset(dataset.name, [dataset.samples[index] for index in divided.test.tolist()])
    images = Images(place, classes, labels, dataset, val_dataset, test_dataset, divided, groups)
    if options.fold:
        _check_folds(images, part, several=several)
    if not unlabelled:
        _check_classes(images)
    for name in labels.names if labels else ():
        if utf8(name) != name:
            raise Error(f"{place}: the name of the class {printable(name)} is not UTF-8; rename it")
    return images


def _places(options: Options) -> Splits:
    """The places of the training, validation and test images. Images that an option names have no other use by default."""
    data, val, test = sources.splits(options.data)
    if options.fold:
        if options.val or options.test:
            raise Error("--val and --test can't be combined with --folds, which holds out images of each fold")
        if options.teachers:
            raise Error("--folds requires labels for the test of each fold; --teacher does not use them")
        return Splits(data)

    def same(one: str | Path | None, other: str | Path | None) -> bool:
        return bool(one and other) and os.path.realpath(str(one)) == os.path.realpath(str(other))

    if same(options.val, options.test):
        raise Error("--val and --test are the same images, which can't choose the epoch and be its test")
    beside_val, beside_test = (None if same(val, options.test) else val), (None if same(test, options.val) else test)
    return Splits(data, str(options.val) if options.val else beside_val, str(options.test) if options.test else beside_test)


def _check_output(output: Path, places: Sequence[str | None]) -> None:
    """Raise Error if the run's folder is in a folder of images, in which a resumed run would find its files."""
    for place in filter(None, places):
        inside = os.path.isdir(place) and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(place))
        if inside and not sources.is_cifar(place):
            raise Error(f"{output}: is inside the folder of images {place}; choose another output folder")


def _classes(places: Sequence[str], options: Options, *, several: bool) -> tuple[int, Labels | None]:
    if options.teachers:
        return options.teachers[0].architecture.classes, options.teachers[0].labels
    if options.labels:
        return len(options.labels), options.labels
    first, *others = (sources.classes_of(place, several=several) for place in places)
    for place, other in zip(places[1:], others, strict=True):
        if other != first:
            raise Error(f"{place}: has other classes than {places[0]}; each fold must have all classes")
    count, labels = first
    if options.start and labels is None and count == options.start.architecture.classes:
        labels = options.start.labels  # numbers mean the classes of a network that has as many
    return count, labels


def _joined(place: str, folders: Sequence[str], parts: Sequence[Dataset]) -> Dataset:
    """The images of the folders of folds as one dataset, with names relative to the folder that they are in."""
    return Dataset(
        place,
        [
            replace(one, name=f"{Path(folder).name}/{one.name}")
            for folder, part in zip(folders, parts, strict=True)
            for one in part
        ],
    )


def _check_classes(images: Images) -> None:
    """Raise Error if there is one class only, or a class has no images to train on."""
    dataset = images.train
    if images.classes < 2:
        raise Error(f"{dataset.name}: has one class only; training requires two or more")
    every = {target for one in dataset for target in one.classes}
    trained = {target for index in images.split.train.tolist() for target in dataset.samples[index].classes}
    for target in range(images.classes):
        if target not in trained:
            reason = "no training images, since all of its images are held out" if target in every else "no images"
            raise Error(f"{dataset.name}: class {images.name(target)} has {reason}")


def _check_folds(images: Images, part: Array, *, several: bool) -> None:
    """Raise Error if the training images of a fold lack a class, or its test has more scores than an evaluation keeps."""
    tested = len(images.split.test)
    if not several and tested * images.classes > EVERY:
        raise Error(
            f"{images.place}: {tested:,} images of {images.classes:,} classes have too many scores for the test of a fold, "
            f"{EVERY:,} at most; use more --folds"
        )
    found: dict[int, set[int]] = {target: set() for target in range(images.classes)}
    for fold, one in zip(part.tolist(), images.train, strict=True):
        for target in one.classes:
            found[target].add(fold)
    for target, places in found.items():
        if len(places) == 1:
            name = images.name(target)
            raise Error(f"{images.place}: all images of class {name} are in one fold; a class requires two images or groups")
