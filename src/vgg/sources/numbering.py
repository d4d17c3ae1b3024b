"""The classes that class folders stand for, by their names."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence

from ..errors import Error, Notice
from ..labels import Labels, Resolve, resolver


def in_order(names: Iterable[str]) -> list[str]:
    """Names of the classes of a new network in the order of their classes: numbers by their value, others by the alphabet."""
    ordered = sorted(names)
    return sorted(ordered, key=int) if all(map(str.isdecimal, ordered)) else ordered


def targets(root: str, folders: Sequence[str], classes: int, labels: Labels | None) -> Mapping[str, int]:
    """The classes of folders with these names, sorted. Raises Error if one is unknown or repeated.

    Labels decide. Without them, names that are numbers below the number of classes are the classes' numbers; other names are
    classes in alphabetical order, as in torchvision's ImageFolder.
    """
    numbers = all(map(str.isdecimal, folders))
    if numbers and labels is not None and {*folders} <= {*labels.names}:
        resolve: Resolve = labels.names.index  # such as ImageFolder's 0, 1, 10, 2 …
    elif labels is not None or (numbers and max(map(int, folders)) < classes):
        known = resolver(classes, labels)
        resolve = (lambda name: known(str(int(name)))) if numbers else known  # 007 is 7
    elif len(folders) == classes:
        resolve = folders.index
    else:
        raise Error(f"{root}: has {len(folders)} class folders; the model has {classes} classes and no labels to identify them")
    owners: dict[int, str] = {}
    for name in folders:
        try:
            target = resolve(name)
        except ValueError as error:
            inside = next((f"; did you mean {root}/{one}?" for one in ("val", "train") if one in folders), "")
            raise Error(f"{root}/{name}: {error}{inside}") from None
        if target in owners:
            raise Error(f"{root}/{name}: is class {target}, as is {root}/{owners[target]}")
        owners[target] = name
    found = {name: target for target, name in owners.items()}
    if labels is None:
        _explain(root, folders, found)
    return found


def _explain(root: str, folders: Sequence[str], found: Mapping[str, int]) -> None:
    """Warn if programs differ in the classes of these folders: in the order of the alphabet, 10 comes before 2."""
    natural = sorted(folders, key=_natural)
    name = next((one for one, other in zip(folders, natural, strict=True) if one != other), None)
    if name is None:
        return
    place, order = folders.index(name), "the alphabetical order of torchvision's ImageFolder"
    if found[name] == place:
        text = f"class folders are in {order}: {name} is class {place}, {natural[place]} is class {found[natural[place]]}"
    else:
        text = f"class folders are the numbers of the classes: {name} is class {found[name]}, not {place} as in {order}"
    warnings.warn(Notice(f"{root}: {text}; for another order, name the classes with --labels FILE"), stacklevel=3)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which `class_10` follows `class_2`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
