"""State dictionaries: the network in parameters whose keys show their layers, under any prefix.

The convolutions are found by their shapes, from one with three inputs on. The numbers in the keys give their order, and
numbers that a Sequential leaves out show the layers without parameters. What remains is the head; see `state_head`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..labels import Labels, from_data
from ..parameters import expanded
from . import checkpoints
from .layouts import REDUCED, Bare, Found, Layer, assemble, misfit
from .state_head import HEADS, Entry, head, ordered, shared
from .state_trunk import DEPTHS, blocks, check_order, fits, split

_EXAMPLE = "a key such as features.0.weight [64, 3, 3, 3]"
_NORM_ROLES = {"weight": "scale", "running_mean": "mean", "running_var": "variance"}
_ROLES = ("weight", "bias", "scale", "mean", "variance")
_DEEPEST = 64  # parts of a key, each of which is tried as a prefix
_LABELS = ("classes", "class_to_idx", "idx_to_class", "class_names", "labels", "label_names", "categories")


def labels(dictionaries: Iterable[Mapping[Any, Any]], classes: int) -> Labels | None:
    """The names of the classes in a checkpoint's dictionaries; None if there are none, or of another number."""
    for entries in dictionaries:
        for key in _LABELS:
            with suppress(ValueError, TypeError, KeyError, AttributeError):  # something else of that name
                found = from_data(entries[key])
                if len(found) == classes:
                    return found
    return None


def from_state_dict(path: object, state: Mapping[str, Array]) -> Bare:
    """The network in a state dictionary.

    Raises:
        ModelError: it contains no VGG network, or several; the message names the first key that doesn't fit.
    """
    if deep := next((key for key in state if key.count(".") >= _DEEPEST), ""):
        raise ModelError(f"{path}: not a VGG network: {checkpoints.listed([deep])} has more than {_DEEPEST} parts")
    found = checkpoints.tidied(state)
    names, preprocessing = checkpoints.normalisation(found)
    bare = _chosen(path, _entries({name: one for name, one in found.items() if name not in names}))
    if not preprocessing:
        return bare
    text = f"pixels are normalised by {' and '.join(names)}; assumed images resized as by preset 'torchvision'"
    return bare._replace(preprocessing=preprocessing, part="; ".join(filter(None, (bare.part, text))))


def _chosen(path: object, entries: Sequence[Entry]) -> Bare:
    """The network in layers that may be those of several."""
    starts = _starts(entries)
    if not starts:
        held = [f"{one.key} {[*one.value.shape]}" for entry in entries for one in entry.layer.values()]
        raise ModelError(f"{path}: not a VGG network: expected {_EXAMPLE}, found {checkpoints.listed(held) or 'nothing'}")
    checkpoints.check_few(path, [".".join(start.path) for start in starts])
    common = len(shared([entry.path for entry in starts])) if len(starts) > 1 else 0
    prefixes = {".".join(start.path[: common + 1]): start.path[: common + 1] for start in starts}
    main = {name: prefix for name, prefix in prefixes.items() if not checkpoints.within_beside(prefix)} or prefixes
    if len(main) > 1:
        return checkpoints.chosen(path, {name: partial(_one_of, path, entries, prefixes, name) for name in main})
    start = next(entry for entry in starts if _within(entry.path, main.values()))
    left: list[str] = []
    inside = []
    for entry in entries:
        if count := checkpoints.is_beside(entry.path, start.path):
            left.append(".".join(entry.path[:count]) if count < len(entry.path) else entry.found.key)
        else:
            inside.append(entry)
    bare = _scoped(path, inside, start)
    part = [bare.part, f"left aside as no part of the network: {checkpoints.listed(left)}" if left else ""]
    return bare._replace(part="; ".join(filter(None, part)))


def _one_of(path: object, entries: Sequence[Entry], prefixes: Mapping[str, tuple[str, ...]], name: str) -> Bare:
    """The network under one of several prefixes."""
    others = [prefix for other, prefix in prefixes.items() if other != name]
    return _chosen(path, [entry for entry in entries if not _within(entry.path, others)])


def _scoped(path: object, entries: Sequence[Entry], start: Entry) -> Bare:
    """The network around a first layer: all of the layers, those under a prefix, or the convolutions alone."""
    trunk, rest = split(entries, start)
    prefix = shared([entry.path for entry in trunk]) if len(trunk) > 1 else start.path[:-1]
    refused: ModelError | None = None
    for depth in range(max(len(prefix), 1)):
        inside = [entry for entry in rest if entry.path[:depth] == prefix[:depth]]
        outside = [entry for entry in rest if entry.path[:depth] != prefix[:depth]]
        if depth and not (inside and outside):
            continue
        if any(entry.kind == "convolution" for entry in inside):
            continue
        try:
            bare = _network(path, trunk, inside)
        except ModelError as error:
            refused = refused or error
            continue
        if any(_reads(entry, bare.architecture.classes) for entry in outside):
            continue
        without = checkpoints.listed(_part(entry, trunk) for entry in outside)
        return bare._replace(part=f"reading {'.'.join(prefix[:depth])!r}, without {without}") if outside else bare
    if any(entry.kind == "convolution" for entry in rest):
        return _network(path, trunk, rest)
    raise refused or misfit(path, rest[0].found.key, rest[0].found.value.shape, _EXAMPLE)


def _reads(entry: Entry, classes: int) -> bool:
    """Whether a layer may read a network's output."""
    shape = entry.found.value.shape
    return entry.kind != "unknown" and bool(classes) and len(shape) < 3 and shape[-1:] == (classes,)


def _network(path: object, trunk: Sequence[Entry], rest: Sequence[Entry]) -> Bare:
    """The network of these convolutions with their normalisations, and of the layers of its head."""
    convolutions = [entry for entry in trunk if entry.kind == "convolution"]
    check_order(path, trunk)
    depths = blocks(convolutions, any(entry.kind == "norm" for entry in trunk))
    if depths and not fits(depths):
        raise ModelError(f"{path}: not a VGG network: its keys show blocks of {', '.join(map(str, depths))} convolutions")
    pooled = depths in DEPTHS and not any(entry.path[:-1] == convolutions[-1].path[:-1] for entry in rest)
    notes = [*filter(None, (_backbone(path, trunk, rest),))]
    if notes:
        rest = []
    made = None
    if rest:
        channels = convolutions[-1].found.value.shape[0]
        rest = ordered(path, rest, channels)
        made, found = head(path, rest, channels)
    elif pooled:
        depths = (*depths, 0)
    bare = assemble(path, [entry.layer for entry in (*trunk, *rest)], depths=depths, head=made)
    architecture = bare.architecture
    if not depths:
        notes.append(f"the max poolings of {architecture.name}")
    if not made:
        notes.append(f"{architecture.values[-1]} as the last layer output")
    elif architecture.head != "fc":
        notes += ["flattening" if architecture.fixed_size else "global average pooling", *found]
        notes.append("one logit for two classes" if architecture.output == "binary" else "softmax")
    # Of a head, weights don't show the size: an adaptive pooling before it would leave no trace.
    return bare._replace(assumed=", ".join(notes), sized=not made)


def _backbone(path: object, trunk: Sequence[Entry], rest: Sequence[Entry]) -> str:
    """Why a network is read without what remains beside its trunk; empty if that is its head."""
    if any(entry.kind == "convolution" for entry in rest) or (rest and all("pre_logits" in entry.path for entry in rest)):
        return f"a backbone, without {checkpoints.listed(_part(entry, trunk) for entry in rest)}"
    if wrong := next((entry.found for entry in rest if entry.kind == "unknown"), None):
        raise misfit(path, wrong.key, wrong.value.shape, _EXAMPLE)
    return f"a backbone, since the values of {rest[0].found.key} are not numbers" if rest and all(map(_is_nan, rest)) else ""


def _entries(state: Mapping[str, Found]) -> list[Entry]:
    """The layers of a state dictionary in the order of the file, and the keys that belong to none."""
    layers: dict[tuple[str, ...], Layer] = {}
    for name, found in state.items():
        *parts, role = name.split(".")
        if ".".join((*parts, "running_mean")) in state:
            role = _NORM_ROLES.get(role, role)
        layers.setdefault((*parts,) if role in _ROLES else (*parts, role), {})[role] = found
    entries = []
    whole = [path for path, layer in layers.items() if _is_whole(path, layer)]
    kernels = [layers[path]["weight"].value.shape[2:] for path in whole]
    reduced = REDUCED in pairwise(kernels)  # then they stay convolutions, which are no part of the network
    for place, (path, layer) in enumerate(layers.items()):
        weight = layer.get("weight")
        shape = weight.value.shape if weight else ()
        if weight and path in whole and not reduced:
            shape = (shape[0], math.prod(shape[1:]))
            layer["weight"] = Found(weight.key, expanded(weight.value).reshape(shape))
        kind = "norm" if "mean" in layer else {2: "linear", 4: "convolution"}.get(len(shape), "other")
        entries.append(Entry(path, layer, kind if {*layer} & {*_ROLES} else "unknown", place))
    return entries


def _is_whole(path: tuple[str, ...], layer: Layer) -> bool:
    """Whether a layer is a linear one as a convolution over the whole map, as timm's are."""
    return "weight" in layer and len(layer["weight"].value.shape) == 4 and any(HEADS.fullmatch(part) for part in path)


def _starts(entries: Sequence[Entry]) -> list[Entry]:
    """The first convolutions of networks: 3x3, with three inputs that the convolution before it doesn't make."""
    convolutions = sorted((entry for entry in entries if entry.kind == "convolution"), key=_natural)
    starts = []
    for before, entry in zip([None, *convolutions], convolutions, strict=False):
        made = before and before.path[:1] == entry.path[:1] and before.found.value.shape[0] == 3
        if entry.found.value.shape[1:] == (3, 3, 3) and not made:
            starts.append(entry)
    return sorted(starts, key=lambda entry: entry.place)


def _natural(entry: Entry) -> list[tuple[bool, int, str]]:
    """Order by the path, with its numbers as numbers."""
    pieces = re.findall(r"\d+|\D+", ".".join(entry.path))
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in pieces]


def _within(path: tuple[str, ...], prefixes: Iterable[tuple[str, ...]]) -> bool:
    return any(path[: len(prefix)] == prefix for prefix in prefixes)


def _part(entry: Entry, trunk: Sequence[Entry]) -> str:
    """The name of the part that a layer beside the trunk belongs to."""
    return ".".join(entry.path[: len(shared([entry.path, trunk[0].path])) + 1])


def _is_nan(entry: Entry) -> bool:
    """Whether a layer's first numbers are none."""
    return bool(np.isnan(np.asarray(expanded(entry.found.value)[:1], np.float32)).all())
