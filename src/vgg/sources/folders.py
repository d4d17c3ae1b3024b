"""Pictures in a folder for each class, and pictures on a list."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import Error
from ..images import SUFFIXES
from ..labels import Labels, Resolve, resolver
from . import Sample


def class_names(root: Path) -> list[str]:
    """The names of a folder's folders, sorted, hidden ones passed over. Raises Error where there are none."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise Error(f"{root}: has no class folders in it, nor .tar shards")
    return names


def class_folders(root: Path, classes: int, labels: Labels | None) -> list[Sample]:
    """The pictures below a folder's folders, each of which is a class."""
    names = class_names(root)
    return [
        Sample(os.path.relpath(file, root), target, file)
        for name, target in targets(root, names, classes, labels).items()
        for file in _pictures(root / name)
    ]


def targets(root: Path | str, names: Sequence[str], classes: int, labels: Labels | None) -> dict[str, int]:
    """The classes that a place's folders of these names, sorted, stand for. Raises Error where one stands for none."""
    if labels is None and len(names) != classes:
        raise Error(f"{root}: has {len(names)} class folders; the model has {classes} classes and no labels to tell them by")
    resolve = resolver(classes, labels) if labels is not None else names.index
    owners: dict[int, str] = {}
    for name in names:
        try:
            target = resolve(name)
        except ValueError as error:
            inside = next((f"; did you mean {root}/{one}?" for one in ("val", "train") if one in names), "")
            raise Error(f"{root}/{name}: {error}{inside}") from None
        if target in owners:
            raise Error(f"{root}/{name}: is class {target}, and so is {root}/{owners[target]}")
        owners[target] = name
    return {name: target for target, name in owners.items()}


def _pictures(folder: Path) -> list[str]:
    found = []
    for place, _, files in os.walk(folder):
        found += [os.path.join(place, file) for file in files if os.path.splitext(file)[1].lower() in SUFFIXES]
    return sorted(found)


def list_file(path: Path, resolve: Resolve) -> list[Sample]:
    """The pictures on a list: on each line a path, relative to the list's folder, and after a tab, comma or space its class."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise Error(f"{path}: a list of pictures must be UTF-8 text, a picture and its class on each line") from None
    samples: dict[str, Sample] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        separator = next((one for one in "\t, " if one in line.strip()), None)
        if separator is None:
            raise Error(f"{path}, line {number}: has no class; a line is a picture's path and its class")
        name, _, label = (part.strip() for part in line.strip().rpartition(separator))
        try:
            target = resolve(label)
        except ValueError as error:
            raise Error(f"{path}, line {number}: {error}") from None
        if name in samples:
            raise Error(f"{path}, line {number}: {name} is on the list already, as class {samples[name].target}")
        samples[name] = Sample(name, target, os.path.join(path.parent, name))
    return list(samples.values())
