"""Tables of labelled images: CSV and TSV with a heading or without, and JSON lines.

A row has an image and its classes: in one cell, or in a column for each class with 0 or 1.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ..errors import one_line
from ..image_formats import SUFFIXES
from ..labels import Resolve

TABLES = (".csv", ".tsv", ".jsonl")
# Titles of the column or entry of the image and of its classes; the first image column or entry counts otherwise.
IMAGE = ("image", "file_name", "filename", "file", "path", "image_name", "image_id", "image_path")
CLASSES = ("labels", "label", "classes", "class", "tags", "category", "categories", "target")
# Titles of the column or entry of the image's group. In a table with a column for each class, `group` is a class.
GROUP = ("group_id", "patient_id", "patient", "group")
MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
SEPARATORS = ("|", ";", ",", " ")  # of several classes in a cell


@dataclass(frozen=True)
class Row:
    """An image of a list and its classes: the text of a cell, or their names; and its group, if the list has groups."""

    line: int
    image: str
    classes: str | list[str]
    group: str | None = None


def read(place: str, lines: Iterable[str]) -> Iterator[Row]:
    """The images of a table. Raises ValueError, which begins with the line, if it has another form."""
    rows = _objects(lines) if place.endswith(".jsonl") else _cells(lines, "\t" if place.endswith(".tsv") else ",")
    yield from rows


def resolved(classes: str | list[str], resolve: Resolve, several: bool) -> tuple[int, ...]:
    """The indices of an image's classes, in ascending order.

    Raises ValueError if one is unknown or repeated, or if there isn't one class unless there may be several.
    """
    if isinstance(classes, str):
        classes = _split(classes, resolve) if several else [classes] if classes else []
    if not several and not classes:
        raise ValueError("has no class; a line is an image's path and its class")
    if not several and len(classes) > 1:
        raise ValueError(f"has {len(classes)} classes; only a network with the output `sigmoid` has several for an image")
    found = [resolve(one) for one in classes]
    if len({*found}) < len(found):
        raise ValueError(f"a class is repeated: {', '.join(classes)}")
    return tuple(sorted(found))


def _split(cell: str, resolve: Resolve) -> list[str]:
    """The classes in a cell, one or several, whose names may have spaces."""
    if not cell:
        return []
    separator = next((one for one in SEPARATORS if one in cell), None)
    if separator is None:
        return [cell]
    try:
        resolve(cell)
    except ValueError:
        return [part for one in cell.split(separator) if (part := one.strip())]
    return [cell]


def _objects(lines: Iterable[str]) -> Iterator[Row]:
    """The rows of JSON lines: `{"image": "a.jpg", "labels": ["cat", "dog"]}`."""
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            record: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {line}: is not JSON ({one_line(error)})") from None
        names = record if isinstance(record, dict) else {}
        image = next((names[name] for name in IMAGE if name in names), None)
        given = next((names[name] for name in CLASSES if name in names), None)
        given = [given] if isinstance(given, str | int) else given
        if not isinstance(image, str) or not isinstance(given, list) or not all(isinstance(one, str | int) for one in given):
            raise ValueError(f'line {line}: must be an object such as {{"image": "a.jpg", "labels": ["cat", "dog"]}}')
        group = next((str(names[name]) for name in GROUP if names.get(name) not in (None, "")), None)
        yield Row(line, image, [str(one) for one in given], group)


def _cells(lines: Iterable[str], separator: str) -> Iterator[Row]:
    """The rows of CSV or TSV. A first row without an image is a heading."""
    rows = _rows(csv.reader(lines, delimiter=separator, skipinitialspace=True))
    first = next(rows, None)
    if first is None:
        return
    if any(cell.lower().endswith(tuple(SUFFIXES)) for cell in first[1]):
        for line, (image, *classes) in chain([first], rows):
            yield Row(line, image, classes[0] if len(classes) == 1 else classes)
        return
    titles = first[1]
    known = [title.lower() for title in titles]
    place = next((known.index(title) for title in IMAGE if title in known), 0)
    cell = next((known.index(title) for title in CLASSES if title in known and known.index(title) != place), None)
    cell = 1 - place if cell is None and len(titles) == 2 else cell
    groups = GROUP[:-1] if cell is None else GROUP
    grouping = next((index for index, title in enumerate(known) if title in groups and index != cell), None)
    marked = [index for index in range(len(titles)) if index not in (place, grouping)]
    cell = marked[0] if len(titles) == 3 and len(marked) == 1 else cell
    for line, cells in rows:
        if len(cells) != len(titles):
            raise ValueError(f"line {line}: has {len(cells)} cells; the heading has {len(titles)}")
        named = cells[cell] if cell is not None else [*_marked(line, [(titles[one], cells[one]) for one in marked])]
        yield Row(line, cells[place], named, (cells[grouping] or None) if grouping is not None else None)


def _rows(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, with their lines."""
    try:
        for row in reader:
            if any(map(str.strip, row)):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {one_line(error)}") from None


def _marked(line: int, marks: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The titles of the columns with 1, of pairs of a class's title and a cell."""
    for title, cell in marks:
        if cell.lower() not in MARKS:
            raise ValueError(f"line {line}: {cell!r} in the column {title!r}; a column of a class holds 0 or 1")
        if MARKS[cell.lower()]:
            yield title
