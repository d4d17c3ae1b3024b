"""Check of a prepared ImageNet: missing and damaged images."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Error, ImageError
from ..labels import imagenet, resolver
from ..parallel import ahead, cores
from ..progress import Progress, silent
from .ignored import is_ignored
from .imagenet import IMAGES, validation_targets
from .listing import unpack
from .samples import Dataset, Sample

_NAME = {"train": re.compile(r"(n\d{8})_\d+"), "val": re.compile(r"ILSVRC2012_val_(\d{8})")}


@dataclass(frozen=True)
class Problem:
    """A defect of a prepared ImageNet."""

    path: str  # relative to its folder
    problem: str


def check(root: Path, *, workers: int | None = None, progress: Progress = silent) -> tuple[dict[str, int], list[Problem]]:
    """Check all classes and decode all images in `root`/train and `root`/val, which are class folders or shards.

    Args:
        root: folder that `prepare` has filled.
        workers: number of threads; the number of cores by default.
        progress: called as work advances.

    Returns:
        The number of images of each split that is present, and the problems.

    Raises:
        Error: neither split is present.
    """
    counts: dict[str, int] = {}
    problems: list[Problem] = []
    for split in IMAGES:
        if not (root / split).is_dir():
            continue
        dataset = _layout(root, split, problems)
        counts[split] = len(dataset)
        decoded = ahead(_defect, dataset, workers or cores(), 64)
        for done, defect in enumerate(decoded, 1):
            problems += [] if defect is None else [Problem(f"{split}/{dataset.samples[done - 1].name}", defect)]
            progress(f"Checking {split}", done, len(dataset))
    if not counts:
        raise Error(f"{root}: has neither train nor val in it; create them with `vgg prepare imagenet`")
    return counts, problems


def _defect(sample: Sample) -> str | None:
    try:
        sample.image()
    except ImageError as error:
        return str(error).removeprefix(f"{sample.name}: ")
    return None


def _layout(root: Path, split: str, problems: list[Problem]) -> Dataset:
    """The images of a split. Files that are missing, unexpected or misplaced are appended to the problems."""
    folder = root / split
    samples: list[Sample] = []
    tars = sorted(folder.glob("*.tar"))
    for path in tars:
        try:
            samples += unpack([Sample(path.name, -1, str(path))], resolver(1000, imagenet()))
        except Error as error:
            problems.append(Problem(f"{split}/{path.name}", str(error).removeprefix(f"{path}: ")))
    if not tars:
        samples = list(_folders(folder, problems))
    problems += [Problem(f"{split}/{path.name}", "is left over from an interrupted run") for path in folder.glob(".*.part")]
    problems += _val(samples) if split == "val" else _train(samples)
    return Dataset(str(folder), samples)


def _folders(folder: Path, problems: list[Problem]) -> Iterator[Sample]:
    targets = {wnid: target for target, wnid in enumerate(imagenet().wnids or ())}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if is_ignored(entry.name):
            continue
        if entry.name not in targets or not entry.is_dir():
            problems.append(Problem(f"{folder.name}/{entry.name}", "is not a class of ImageNet"))
            continue
        for file in sorted(name for name in os.listdir(entry.path) if not is_ignored(name)):
            yield Sample(f"{entry.name}/{file}", targets[entry.name], os.path.join(entry.path, file))


def _train(samples: list[Sample]) -> Iterator[Problem]:
    wnids = imagenet().wnids or ()
    counts = Counter(sample.target for sample in samples)
    yield from (Problem(f"train/{wnid}", "is missing") for target, wnid in enumerate(wnids) if not counts[target])
    for sample in samples:
        match = _NAME["train"].match(Path(sample.name).stem)
        if not match or match[1] != wnids[sample.target]:
            yield Problem(f"train/{sample.name}", f"is not an image of {wnids[sample.target]}")
    if len(samples) != IMAGES["train"]:
        yield Problem("train", f"has {len(samples):,} images; the published archive has {IMAGES['train']:,}")


def _val(samples: list[Sample]) -> Iterator[Problem]:
    wnids, targets = imagenet().wnids or (), validation_targets()
    missing = set(range(1, len(targets) + 1))
    for sample in samples:
        match = _NAME["val"].match(Path(sample.name).stem)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(targets):
            yield Problem(f"val/{sample.name}", "is not a validation image")
        elif targets[number - 1] != sample.target:
            yield Problem(f"val/{sample.name}", f"belongs to {wnids[targets[number - 1]]}")
        elif number not in missing:
            yield Problem(f"val/{sample.name}", "is repeated")
        missing.discard(number)
    absent: dict[int, list[int]] = {}
    for number in sorted(missing):
        absent.setdefault(targets[number - 1], []).append(number)
    for target, numbers in sorted(absent.items()):
        first = f"ILSVRC2012_val_{numbers[0]:08d}" + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
        yield Problem(f"val/{wnids[target]}", f"lacks {first}")
