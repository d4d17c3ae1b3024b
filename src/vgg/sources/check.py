"""What is missing or broken in a prepared ImageNet."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Error, ImageError
from ..labels import imagenet, resolver
from ..parallel import ahead
from . import Dataset, Sample, shards
from .imagenet import PICTURES, validation_targets

_NAME = {"train": re.compile(r"(n\d{8})_\d+"), "val": re.compile(r"ILSVRC2012_val_(\d{8})")}


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a prepared ImageNet."""

    path: str  # relative to its folder
    problem: str


def check(
    root: Path, *, workers: int | None = None, progress: Callable[[str, int, int], object] = lambda what, done, total: None
) -> tuple[dict[str, int], list[Problem]]:
    """Look at every class and decode every picture below `root`/train and `root`/val, as folders or shards.

    Returns the number of pictures of each split that is there, and what is wrong. Raises Error where neither is there.
    """
    counts: dict[str, int] = {}
    problems: list[Problem] = []
    for split in PICTURES:
        if not (root / split).is_dir():
            continue
        dataset = _layout(root, split, problems)
        counts[split] = len(dataset)
        decoded = ahead(_broken, dataset, workers or os.cpu_count() or 1, 64)
        for done, found in enumerate(decoded, 1):
            problems += [] if found is None else [Problem(f"{split}/{dataset.samples[done - 1].name}", found)]
            progress(f"Checking {split}", done, len(dataset))
    if not counts:
        raise Error(f"{root}: has neither train nor val in it; `vgg prepare imagenet` makes them")
    return counts, problems


def _broken(sample: Sample) -> str | None:
    try:
        sample.picture()
    except ImageError as error:
        return str(error).removeprefix(f"{sample.name}: ")
    return None


def _layout(root: Path, split: str, problems: list[Problem]) -> Dataset:
    """The pictures of a split. What is missing, left over, or elsewhere than it should be becomes a problem."""
    folder, samples = root / split, []
    tars = sorted(folder.glob("*.tar"))
    for path in tars:
        try:
            samples += shards.read([path], resolver(1000, imagenet()))
        except Error as error:
            problems.append(Problem(f"{split}/{path.name}", str(error).removeprefix(f"{path}: ")))
    if not tars:
        samples = list(_folders(folder, problems))
    problems += [Problem(f"{split}/{path.name}", "is left over from a run that was cut") for path in folder.glob(".*.part")]
    problems += _val(samples) if split == "val" else _train(samples)
    return Dataset(str(folder), samples)


def _folders(folder: Path, problems: list[Problem]) -> Iterator[Sample]:
    targets = {wnid: target for target, wnid in enumerate(imagenet().wnids or ())}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.name not in targets or not entry.is_dir():
            problems.append(Problem(f"{folder.name}/{entry.name}", "is no class of ImageNet's"))
            continue
        for file in sorted(os.listdir(entry.path)):
            yield Sample(f"{entry.name}/{file}", targets[entry.name], os.path.join(entry.path, file))


def _train(samples: list[Sample]) -> Iterator[Problem]:
    wnids = imagenet().wnids or ()
    counts = Counter(sample.target for sample in samples)
    yield from (Problem(f"train/{wnid}", "is missing") for target, wnid in enumerate(wnids) if not counts[target])
    for sample in samples:
        match = _NAME["train"].match(Path(sample.name).stem)
        if not match or match[1] != wnids[sample.target]:
            yield Problem(f"train/{sample.name}", f"is no picture of {wnids[sample.target]}")
    if len(samples) != PICTURES["train"]:
        yield Problem("train", f"has {len(samples):,} pictures; published are {PICTURES['train']:,}")


def _val(samples: list[Sample]) -> Iterator[Problem]:
    wnids, targets = imagenet().wnids or (), validation_targets()
    missing = set(range(1, len(targets) + 1))
    for sample in samples:
        match = _NAME["val"].match(Path(sample.name).stem)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(targets):
            yield Problem(f"val/{sample.name}", "is no validation picture")
        elif targets[number - 1] != sample.target:
            yield Problem(f"val/{sample.name}", f"belongs into {wnids[targets[number - 1]]}")
        elif number not in missing:
            yield Problem(f"val/{sample.name}", "is there twice")
        missing.discard(number)
    absent: dict[int, list[int]] = {}
    for number in sorted(missing):
        absent.setdefault(targets[number - 1], []).append(number)
    for target, numbers in sorted(absent.items()):
        first = f"ILSVRC2012_val_{numbers[0]:08d}" + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
        yield Problem(f"val/{wnids[target]}", f"lacks {first}")
