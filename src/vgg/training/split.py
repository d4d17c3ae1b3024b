"""Which images are for training, for validation and for test: sets of indices of a dataset."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..errors import Error, counted
from ..sources import Dataset

Groups = Sequence[Hashable]  # of images; those of a group stay together

HELD_OUT, MOST = 10, 2500  # one in this many images is held out for validation, but at most so many


@dataclass(frozen=True)
class Split:
    """Sets of images, each as int64 [images], indices of a dataset in ascending order."""

    train: Array
    val: Array  # choose the epoch
    test: Array  # are measured once; empty unless the dataset is divided into folds


def split(dataset: Dataset, groups: Groups, seed: int, *, hold_out: bool, fold: Array | None = None) -> Split:
    """Divide a dataset at random into sets that have the classes in the same proportions.

    No class loses all of its training images to the held-out part.

    Args:
        dataset: the images.
        groups: of each image; the images of a group stay together.
        seed: random seed.
        hold_out: whether images are held out of the training set for validation: one in ten, at most 2,500.
        fold: bool [images], the images for test; by default none.
    """
    test = np.zeros(len(dataset), np.bool_) if fold is None else fold
    rest, held_out = np.flatnonzero(~test), np.zeros(len(dataset), np.bool_)
    if hold_out:
        classes = [one.classes for one in dataset]
        owners: dict[int, Counter[Hashable]] = {}  # the groups with images of each class, and how many they have
        for index in rest.tolist():
            for target in classes[index]:
                owners.setdefault(target, Counter())[groups[index]] += 1
        needed = {group for found in owners.values() if len(found) == 1 for group in found}
        free = [index for index in rest.tolist() if groups[index] not in needed]
        share = min(len(rest) // HELD_OUT, MOST, len(free) / 2) / max(len(free), 1)  # few are free if classes have one group
        part = divide([classes[index] for index in free], [groups[index] for index in free], (share, 1 - share), seed)
        chosen = {groups[free[index]] for index in np.flatnonzero(part == 0).tolist()}
        for found in owners.values():
            if found.keys() <= chosen:  # all of a class: the group with the fewest of its images remains for training
                chosen.remove(min(found, key=found.__getitem__))
        held_out[rest] = [groups[index] in chosen for index in rest.tolist()]
    return Split(rest[~held_out[rest]], np.flatnonzero(held_out), np.flatnonzero(test))


def folds(dataset: Dataset, groups: Groups, count: int, seed: int) -> Array:
    """The fold of each image, from 0, int64 [images]. Raises Error if there are fewer groups than folds."""
    if len(set(groups)) < count:
        raise Error(f"{dataset.name}: has {counted(len(set(groups)), 'group')} of images, too few for {count} folds")
    return divide([one.classes for one in dataset], groups, (1 / count,) * count, seed)


def divide(classes: Sequence[Sequence[int]], groups: Groups, shares: Sequence[float], seed: int) -> Array:
    """Divide images at random into parts that have the same shares of each class, as far as groups allow.

    Groups are assigned in random order, large ones first, each to the part that lacks most of what it holds: images of its
    classes, and images at all.

    Args:
        classes: of each image; any number, from 0, or -1 if unlabelled.
        groups: of each image; the images of a group are in the same part.
        shares: of each part; their sum is 1.
        seed: random seed.

    Returns:
        int64 [images], the part of each image.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    together = list(members.values())
    order = np.random.default_rng(seed).permutation(len(together)).tolist()
    count = 1 + max((target for one in classes for target in one), default=0)
    part, lacking = np.zeros(len(classes), np.int64), np.zeros((len(shares), count + 1))  # of each class, and of all images
    for place in sorted(order, key=lambda place: -len(together[place])):
        indices = together[place]
        held = np.zeros(count + 1)
        for target in (target for index in indices for target in classes[index] if target >= 0):
            held[target] += 1
        held[-1] = len(indices)
        lacking += np.outer(shares, held)
        part[indices] = best = int((lacking @ held).argmax())
        lacking[best] -= held
    return part


def groups_of(dataset: Dataset, pattern: str) -> list[Hashable]:
    """The group of each image: the text in its name that a pattern matches, or that of the pattern's first group.

    Images whose names don't match are alone, and have their index as their group.

    Args:
        dataset: the images.
        pattern: a regular expression, searched in the names; if it is empty, images have the groups of their table, if any.

    Raises:
        Error: the pattern is invalid, or matches no name.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise Error(f"--group {pattern}: is not a regular expression ({error})") from None
    if not pattern:
        return [index if one.group is None else one.group for index, one in enumerate(dataset)]
    found = [expression.search(one.name) for one in dataset]
    if not any(found):
        raise Error(f"--group {pattern}: matches no image's name; the first is {dataset.samples[0].name}")
    return [match[min(expression.groups, 1)] or match[0] if match else index for index, match in enumerate(found)]
