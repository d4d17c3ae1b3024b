"""The head of a network in a state dictionary: the order of its layers, and what the keys show of those without parameters.

A linear layer reads what the one before it makes, which gives the order of a head's modules, whatever their names. In a
Sequential, the next number shows whether there is room for an activation; otherwise there is a ReLU by convention.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from ..errors import ModelError
from ..heads import DROPOUT, Head, Step
from .layouts import Found, Layer, misfit

# Parts of keys of linear layers, which may be convolutions over the whole map.
HEADS = re.compile(r"(classifier|fc|head|pre_logits|last_linear|linear|logits|dense|output)[\d_]*")
_PERMUTED = 7  # modules whose order is sought by their shapes


@dataclass(frozen=True)
class Entry:
    """A layer of a state dictionary.

    Attributes:
        path: the parts of its keys before the role.
        layer: its arrays by role.
        kind: convolution, linear, norm or other.
        place: its position in the file.
    """

    path: tuple[str, ...]
    layer: Layer
    kind: str
    place: int

    @property
    def found(self) -> Found:
        return self.layer.get("weight") or next(iter(self.layer.values()))

    @property
    def numbers(self) -> tuple[int, ...]:
        """All numbers in the path."""
        return tuple(int(number) for number in re.findall(r"\d+", ".".join(self.path)))


def shared(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The parts with which all paths begin."""
    parts = takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))
    return tuple(first for first, *_ in parts)


def sort_key(entry: Entry) -> tuple[tuple[int, ...], bool, int]:
    """Order by the numbers in the keys; a normalisation follows the layer with its number."""
    return entry.numbers, entry.kind == "norm", entry.place


def ordered(path: object, entries: Sequence[Entry], channels: int) -> list[Entry]:
    """A head's layers in the order in which their shapes chain, from a map of so many channels.

    Raises:
        ModelError: they don't chain.
    """
    for entry in entries:
        if entry.kind not in ("linear", "norm"):
            raise misfit(path, entry.found.key, entry.found.value.shape, "a linear layer or batch normalisation")
    depth = len(shared([entry.path[:-1] for entry in entries]))
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=sort_key):
        groups.setdefault(entry.path[depth], []).append(entry)

    def usual(name: str) -> tuple[bool, float, bool, int]:
        number = re.search(r"\d+$", name)
        first = groups[name][0]
        return name != "pre_logits", int(number[0]) if number else math.inf, first.kind == "norm", first.place

    names = sorted(groups, key=usual)
    for order in _orders(groups, names, channels, 0) if len(names) <= _PERMUTED else ():
        return [entry for name in order for entry in groups[name]]
    width, number = 0, 6
    for entry in (entry for name in names for entry in groups[name]):
        shape = entry.found.value.shape
        if not (after := _after(entry, channels, width)):
            inputs = width or f"{channels} for each position of a square map"
            name = f"fc{number}.weight [{shape[0]}, {inputs}]" if entry.kind == "linear" else f"{inputs} values"
            raise misfit(path, entry.found.key, shape, name)
        width, number = after, number + (entry.kind == "linear")
    return [entry for name in names for entry in groups[name]]


def _orders(groups: dict[str, list[Entry]], names: Sequence[str], channels: int, width: int) -> Iterator[list[str]]:
    """The orders of groups in which the shapes chain, the first one nearest to that of `names`."""
    if not names:
        yield []
    for name in names:
        after = width
        for entry in groups[name]:
            if not (after := _after(entry, channels, after)):
                break
        else:
            for rest in _orders(groups, [other for other in names if other != name], channels, after):
                yield [name, *rest]


def _after(entry: Entry, channels: int, width: int) -> int:
    """The number of values after a layer that reads `width` values, or a map if that is 0; 0 if it doesn't fit."""
    norm = entry.kind == "norm"
    shape = entry.layer["mean" if norm else "weight"].value.shape
    fits = shape[-1] == width if width else _side(shape[-1], channels)
    return shape[0] if fits else 0


def _side(inputs: int, channels: int) -> int:
    """Side of the map of so many channels with this number of values; 0 if there is none."""
    side = math.isqrt(inputs // channels)
    return side if side * side * channels == inputs else 0


def head(path: object, entries: Sequence[Entry], channels: int) -> tuple[Head, list[str]]:
    """The head with these layers in order, and what is assumed of it."""
    linear = [place for place, entry in enumerate(entries) if entry.kind == "linear"]
    if not linear:
        raise misfit(path, entries[0].found.key, entries[0].found.value.shape, "a linear layer")
    steps, notes = [Step("batch_norm") for _ in entries[: linear[0]]], []
    for place, following in zip(linear, [*linear[1:], len(entries)], strict=True):
        last = following == len(entries)
        weight = entries[place].layer["weight"].value
        steps.append(Step("linear", 0 if last else weight.shape[0]))
        between = entries[place : following + 1]
        rooms = [_room(one, other) for one, other in pairwise(between)]
        early = len(rooms) > 1 and bool(rooms[0])  # before the normalisation
        norms = [Step("batch_norm")] * (following - place - 1)
        if last:
            steps += norms
        elif not early and rooms[-1] == 0:
            steps += norms
            notes.append(f"no activation between {between[0].found.key} and {between[-1].found.key}")
        else:
            steps += [Step("relu"), *norms] if early else [*norms, Step("relu")]
            steps += [DROPOUT] if rooms[-1] is None or rooms[-1] > (0 if early else 1) else []
    if any(step.operation == "relu" for step in steps):
        notes.insert(0, "ReLU between linear layers")
    shapes = [entries[place].layer["weight"].value.shape for place in linear]
    paper = len(shapes) == 3 and shapes[0][0] == shapes[1][0]
    pools = shapes[0][1] == channels and not paper
    try:
        made = Head(tuple(steps), "average" if pools else "flatten", output="binary" if shapes[-1][0] == 1 else "softmax")
    except ModelError as error:
        raise ModelError(f"{path}: not a VGG network: {error}") from None
    return made, notes


def _room(one: Entry, other: Entry) -> int | None:
    """The number of modules without parameters between two layers of a Sequential; None if that is not known."""
    depth = next(depth for depth, (a, b) in enumerate(zip(one.path, other.path, strict=False)) if a != b)
    before, after, inner = one.path[depth], other.path[depth], other.path[depth + 1 :]
    if not all(part.isdigit() for part in (before, after, *inner)):
        return None
    count = int(after) - int(before) - 1 + sum(map(int, inner))
    return count if count or len(one.path) == depth + 1 else None
