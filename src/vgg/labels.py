"""Names of the classes."""

import ast
import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import Error, one_line
from .extras import require
from .files import open_file, reason
from .kinds import HEAD, stand_in

Resolve = Callable[[str], int]  # a class's number, WordNet id or name -> its index

FORMS = "text with one class per line, or names in JSON, CSV or YAML"
ENTRIES = (  # of a mapping that has more than labels
    "id2label", "label2id", "names", "class_to_idx", "idx_to_class", "class_indices", "classes", "class_names", "labels",
    "categories", "label_names",
)  # fmt: skip
TITLES = ("name", "names", "label", "labels", "class", "classes", "class_name", "category")  # of a column of names
IMAGENET_CLASSES = 1000
BACKGROUND = ("background", "__background__", "dummy")  # names of the class that TensorFlow's networks have before ImageNet's

_SYNSET = re.compile(r"(n\d{8})[\s,]+(\S.*)")
_ORDERED = re.compile(r"(n\d{8})\s+(\d+)\s+(\S.*)")
# Lines with an index: `0 cat`, `0: cat`, `0,cat`, and `cat 0`.
_NUMBERED, _MARKED, _LAST = (
    re.compile(one) for one in (r"(\d+)[\s:,;=]+(\S.*)", r"(\d+)\s*[:,;=]\s*(\S.*)", r"(\S.*?)[\s:,;=]+(\d+)")
)


@dataclass(frozen=True)
class Labels:
    """The name of each class by index, and its WordNet id if the classes are WordNet synsets."""

    names: tuple[str, ...]
    wnids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def read(cls, path: str | Path) -> "Labels":
        """Read labels from a file: text with one class per line, JSON, or by its suffix .csv, .tsv, .yaml or .yml.

        A line is a name; or an index and a name, as in `0 cat`, `0: cat` and `cat 0`; or a WordNet id and its names, as in
        ImageNet's `synset.txt`. JSON and YAML hold what `from_data` takes. CSV has a column of names, or those of indices and
        names, with or without a heading. Text is UTF-8, or UTF-16 with a byte order mark.

        Raises:
            Error: the file can't be read, is empty, has another form, or a class has no name; or YAML requires a package.
        """
        path = Path(path)
        try:
            with open_file(path) as file:
                data = file.read()
            text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        except OSError as error:
            raise Error(f"{path}: {reason(error)}") from None
        except UnicodeDecodeError:
            raise Error(f"{path}: labels must be UTF-8 text with one class per line") from None
        if what := stand_in(data[:HEAD]):
            raise Error(f"{path}: {what}")
        try:
            if path.suffix in (".csv", ".tsv"):
                lines = text.splitlines()
                separator = "\t" if path.suffix == ".tsv" else max(",;\t", key=lines[0].count) if lines else ","
                return _from_rows(list(csv.reader(lines, delimiter=separator)))
            if path.suffix in (".yaml", ".yml"):
                return from_data(_yaml(text))
            return from_data(_json(text)) if text.lstrip().startswith(("[", "{")) else _from_text(text)
        except (ValueError, TypeError, RecursionError, MemoryError, csv.Error) as error:
            raise Error(f"{path}: labels must be {FORMS} ({one_line(error)})") from None

    def text(self) -> str:
        """The labels as text with one class per line, which `Labels.read` reads."""
        return "\n".join(self.names if self.wnids is None else map(" ".join, zip(self.wnids, self.names, strict=True)))


BINARY = Labels(("negative", "positive"))  # of two classes with one logit, unless they have other names


def parse(text: str) -> Labels:
    """Labels from text with a class per line, a name, or a WordNet id and names. Raises ValueError if there are none."""
    lines = _lines(text)
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    if not all(synsets):
        return Labels(tuple(lines))
    # A synset's first name is the common one; the others are synonyms.
    return Labels(tuple(s[2].split(",")[0] for s in synsets if s), tuple(s[1] for s in synsets if s))


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines):
        where = f" in line {lines.index('') + 1}" if lines else ""
        raise ValueError(f"a class without a name{where}")
    return lines


def _from_text(text: str) -> Labels:
    """Labels from text as people write it, where a line may have an index."""
    lines = _lines(text)
    ordered = [_ORDERED.fullmatch(line) for line in lines]
    if all(ordered):
        return from_data(_in_order((o[2], (o[1], o[3])) for o in ordered if o))
    names = _numbered(lines)
    return parse("\n".join(names)) if names else parse(text)


def _numbered(lines: Sequence[str]) -> list[str] | None:
    """The names of lines with an index, in order; None if the lines are names, which may have numbers, too."""
    for pattern in (_NUMBERED, _LAST):
        found = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
        if len(found) < len(lines):
            continue
        pairs = [(index, name) if pattern is _NUMBERED else (name, index) for index, name in found]
        indices = sorted(int(index) for index, _ in pairs)
        counted = indices in ([*range(len(lines))], [*range(1, len(lines) + 1)])
        distinct = len({name for _, name in pairs}) == len(lines)  # unlike those of `class 0`, `class 1`
        if (counted and (distinct or pattern is _NUMBERED)) or all(map(_MARKED.fullmatch, lines)):
            return _in_order(pairs)
    return None


def from_data(data: Any) -> Labels:
    """Labels from a list or mapping, as JSON, YAML and checkpoints hold them.

    Args:
        data: a list of names, or of pairs of WordNet id and name; a mapping of indices to these, such as Keras's and
            TorchServe's; of names to indices, such as Keras's `class_indices` and torchvision's `class_to_idx`; or one that
            has such an entry, as in Hugging Face's `config.json` (`id2label`; timm's: `label_names`) or a data set's YAML
            (`names`).

    Raises:
        ValueError: it is none of these, or an index is missing.
    """
    if isinstance(data, Mapping):
        data = next((data[key] for key in ENTRIES if isinstance(data.get(key), list | Mapping)), data)
    if isinstance(data, Mapping):
        if data and all(type(value) is int for value in data.values()):
            data = _in_order((index, name) for name, index in data.items())
        else:
            data = _in_order(data.items()) if data else None
    if not isinstance(data, list | tuple) or not data:
        raise ValueError("there is no list or mapping of names")
    if all(isinstance(entry, Mapping) and entry.keys() == data[0].keys() for entry in data):  # objects as rows of a table
        columns = [key for key, value in data[0].items() if isinstance(value, str | int)]
        return _from_rows([columns, *([str(entry[key]) for key in columns] for entry in data)])
    if all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in data):
        names = tuple(_name(name).replace("_", " ") for _, name in data)
        return Labels(names, tuple(_name(wnid) for wnid, _ in data))
    return Labels(tuple(map(_name, data)))


def _in_order(entries: Iterable[tuple[Any, Any]]) -> list[Any]:
    """The values of pairs of index and value by their indices, 0, 1, 2 …"""
    known: dict[int, Any] = {}
    for key, value in entries:
        text = str(key).strip()
        if not (text.isdecimal() and text.isascii() and len(text) < 10):
            raise ValueError(f"{key!r} is no index")
        if int(text) in known:
            raise ValueError(f"index {int(text)} is repeated: {known[int(text)]!r} and {value!r}")
        known[int(text)] = value
    count = len(known)
    missing = [index for index in range(count) if index not in known]
    if missing == [0] and max(known) == count:
        raise ValueError(f"the indices are 1 to {count}; classes are numbered from 0; subtract 1, or leave out the indices")
    if missing:
        beyond = sorted(index for index in known if index >= count)
        raise ValueError(f"{count} classes, of which {_some(missing)} is missing; {_some(beyond)} is too large")
    return [known[index] for index in range(count)]


def _some(indices: Sequence[int]) -> str:
    return ", ".join(map(str, indices[:3])) + ", …" * (len(indices) > 3)


def _name(value: Any) -> str:
    """A name on one line."""
    name = " ".join(value.split()) if isinstance(value, str) else ""
    if not name:
        raise ValueError(f"{value!r} is no name")
    return name


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return ast.literal_eval(text)  # a dictionary as Python prints it, such as {0: 'tench'}
        except (ValueError, SyntaxError):
            raise error from None


def _from_rows(rows: list[list[str]]) -> Labels:
    """Labels from a table, which may have a heading."""
    rows = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    if not rows or len({*map(len, rows)}) > 1:
        raise ValueError("a table's rows must have the same number of cells")
    numeric = [all(map(str.isdecimal, column)) for column in zip(*rows[1:], strict=True)]  # below a heading
    titled = any(cell.lower() in TITLES for cell in rows[0]) or any(numeric)
    titles = rows.pop(0) if titled and not any(map(str.isdecimal, rows[0])) else [""] * len(rows[0])
    columns = dict(enumerate(zip(*rows, strict=True)))
    indices = [place for place, column in columns.items() if all(map(str.isdecimal, column))]
    wnids = [place for place, column in columns.items() if all(re.fullmatch(r"n\d{8}", cell) for cell in column)]
    names = [place for place in columns if place not in (*indices, *wnids)]
    names = [place for place in names if titles[place].lower() in TITLES] if len(names) > 1 else names
    if len(names) != 1 or len(indices) > 1:
        raise ValueError("a table must have a column of names, and may have one of indices")
    [name] = names
    found = list(zip(columns[wnids[0]], columns[name], strict=True)) if wnids else list(columns[name])
    return from_data(_in_order(zip(columns[indices[0]], found, strict=True)) if indices else found)


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


def mismatch(labels: Labels, classes: int) -> str:
    """The message for labels of another number of classes."""
    has = f"of {classes} class{'es' * (classes != 1)}" if classes else "without a head, which has no classes"
    text, first = f"{len(labels)} labels for a network {has}", labels.names[0]
    if len(labels) == classes + 1 and first.lower() in BACKGROUND:
        return f"{text}; the first, {first!r}, is a class of TensorFlow's networks; remove it"
    if len(labels) == classes - 1 == IMAGENET_CLASSES:
        return f"{text}; if its first class is the background, as in TensorFlow's networks, add a first line"
    return text


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
