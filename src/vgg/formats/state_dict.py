"""State dictionaries: the network in parameters whose keys show their layers, under any prefix.

The convolutions are found by their shapes, from one with three inputs on. The numbers in the keys give their order, and
numbers that a Sequential leaves out show the layers without parameters. What remains is the head; see `state_head`.
"""

import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..architectures import CONFIGURATIONS
from ..arrays import Array
from ..errors import ModelError, Notice
from ..labels import Labels
from ..parameters import expanded
from .layouts import Bare, Found, Layer, assemble, misfit
from .state_head import Entry, head, ordered, shared, sort_key

_EXAMPLE = "a key such as features.0.weight [64, 3, 3, 3]"
_NORM_ROLES = {"weight": "scale", "running_mean": "mean", "running_var": "variance"}
_ROLES = ("weight", "bias", "scale", "mean", "variance")
# Parts of keys of what computes nothing: counters, losses, metrics.
_BESIDE = re.compile(r"num_batches_tracked|criterion|loss(_\w+)?|\w+_loss|(\w+_)?metrics?")
# Parts of keys of linear layers, which may be convolutions over the whole map.
_HEADS = re.compile(r"(classifier|fc|head|pre_logits|last_linear|linear|logits|dense|output)[\d_]*")
_AVERAGED = ("ema", "average", "averaged", "teacher", "target", "momentum", "swa")
_LABELS = ("classes", "class_to_idx", "idx_to_class", "class_names", "labels", "label_names", "categories")
_DEPTHS = {made.depths for made in CONFIGURATIONS.values()}


def choice(path: object, names: Sequence[str]) -> str:
    """The network to read of those in a file: the first that is no average of others. The choice is a Notice."""
    chosen = next((name for name in names if not {*re.split(r"[._]", name.lower())}.intersection(_AVERAGED)), names[0])
    if len(names) > 1:
        others = ", ".join(repr(name) for name in names if name != chosen)
        warnings.warn(Notice(f"{path}: several networks in the file; reading {chosen!r}, not {others}"), stacklevel=2)
    return chosen


def labels(dictionaries: Iterable[Mapping[Any, Any]], classes: int) -> Labels | None:
    """The names of the classes in a checkpoint's dictionaries; None if there are none, or of another number."""
    for entries in dictionaries:
        for key in _LABELS:
            names = _names(entries.get(key))
            if names and len(names) == classes:
                return Labels(names)
    return None


def _names(value: Any) -> tuple[str, ...]:
    """Names in the order of their indices, from a list, from name to index, or from index to name."""
    if isinstance(value, dict) and all(isinstance(key, str) and type(index) is int for key, index in value.items()):
        value = {index: name for name, index in value.items()}
    if isinstance(value, dict):
        names = {str(key): name for key, name in value.items()}
        value = [names.get(str(index)) for index in range(len(names))]
    named = isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)
    return tuple(value) if named else ()


def from_state_dict(path: object, state: Mapping[str, Array]) -> Bare:
    """The network in a state dictionary.

    Raises:
        ModelError: it contains no VGG network; the message names the first key that doesn't fit.
    """
    entries, unknown = _entries(state)
    starts = _starts(entries)
    if not starts:
        key, value = next(iter(state.items()))
        raise misfit(path, key, value.shape, _EXAMPLE)
    others = _others(path, [entry.path for entry in starts])
    entries = [entry for entry in entries if not _within(entry.path, others)]
    trunk, rest = _split(entries, starts)
    convolutions = [entry for entry in trunk if entry.kind == "convolution"]
    _check_order(path, trunk)
    depths = _blocks(convolutions, any(entry.kind == "norm" for entry in trunk))
    if depths and not _fits(depths):
        raise ModelError(f"{path}: not a VGG network: its keys show blocks of {', '.join(map(str, depths))} convolutions")
    pooled = depths in _DEPTHS and not any(entry.path[:-1] == convolutions[-1].path[:-1] for entry in rest)
    notes = []
    if any(entry.kind == "convolution" for entry in rest) or (rest and all("pre_logits" in entry.path for entry in rest)):
        notes.append(f"a backbone, without {', '.join(dict.fromkeys(_part(entry, trunk) for entry in rest))}")
    elif wrong := next((key for key in unknown if not _within(tuple(key.split(".")), others)), ""):
        raise misfit(path, wrong, state[wrong].shape, _EXAMPLE)
    elif rest and all(_is_nan(entry) for entry in rest):
        notes.append(f"a backbone, since the values of {rest[0].found.key} are not numbers")
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
    sized = not (made and architecture.fixed_size)  # an adaptive pooling before the head would leave no trace
    return bare._replace(assumed=", ".join(notes), sized=sized)


def _entries(state: Mapping[str, Array]) -> tuple[list[Entry], list[str]]:
    """The layers of a state dictionary in the order of the file, and the keys that belong to none."""
    layers: dict[tuple[str, ...], Layer] = {}
    unknown = []
    for key, value in state.items():
        *parts, role = key.split(".")
        if any(_BESIDE.fullmatch(part) for part in (*parts, role)):
            continue
        if ".".join((*parts, "running_mean")) in state:
            role = _NORM_ROLES.get(role, role)
        if role in _ROLES:
            layers.setdefault(tuple(parts), {})[role] = Found(key, value)
        else:
            unknown.append(key)
    entries = []
    for place, (path, layer) in enumerate(layers.items()):
        weight = layer.get("weight")
        shape = weight.value.shape if weight else ()
        if weight and len(shape) == 4 and any(_HEADS.fullmatch(part) for part in path):
            shape = (shape[0], math.prod(shape[1:]))
            layer["weight"] = Found(weight.key, state[weight.key].reshape(shape))
        kind = "norm" if "mean" in layer else {2: "linear", 4: "convolution"}.get(len(shape), "other")
        entries.append(Entry(path, layer, kind, place))
    return entries, unknown


def _starts(entries: Sequence[Entry]) -> list[Entry]:
    """The first convolutions of networks: 3x3, with three inputs that no other convolution makes."""
    convolutions = sorted((entry for entry in entries if entry.kind == "convolution"), key=_natural)
    starts, outputs = [], 0
    for entry in convolutions:
        out, *rest = entry.found.value.shape
        if rest == [3, 3, 3] and outputs != 3:
            starts.append(entry)
        outputs = out
    return sorted(starts, key=lambda entry: entry.place)


def _natural(entry: Entry) -> list[tuple[bool, int, str]]:
    """Order by the path, with its numbers as numbers."""
    pieces = re.findall(r"\d+|\D+", ".".join(entry.path))
    return [(piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in pieces]


def _others(path: object, starts: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The prefixes of the networks in a state dictionary that are not read."""
    common = len(shared(starts)) if len(starts) > 1 else 0
    prefixes = {".".join(start[: common + 1]): start[: common + 1] for start in starts}
    chosen = choice(path, [*prefixes])
    return [prefix for name, prefix in prefixes.items() if name != chosen]


def _within(path: tuple[str, ...], prefixes: Iterable[tuple[str, ...]]) -> bool:
    return any(path[: len(prefix)] == prefix for prefix in prefixes)


def _split(entries: Sequence[Entry], starts: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The convolutions with their normalisations, in order, and the other layers.

    The convolutions are all of them, or else those under the shortest prefix that are as many as a VGG network has.
    """
    start = next(entry for entry in starts if entry in entries)
    every = [entry for entry in entries if entry.kind == "convolution"]
    chosen = found = _ordered(every)
    counts = sorted({*map(sum, _DEPTHS)}, reverse=True)
    for depth in range(len(start.path)):
        found = _ordered([entry for entry in every if entry.path[:depth] == start.path[:depth]])
        normalised = any(entry.kind == "norm" and entry.path[:depth] == start.path[:depth] for entry in entries)
        wholes = [found[:count] for count in counts if count < len(found)]
        whole = [one for one in wholes if _chains(one) and _blocks(one, normalised) in _DEPTHS]  # before other convolutions
        if _chains(found) and (len(found) in counts or (len(found) == len(every) and not whole)):
            chosen = found
        elif whole:
            chosen = whole[0]
        else:
            continue
        break
    prefix = shared([entry.path for entry in chosen]) if len(chosen) > 1 else start.path[:-1]
    inside = [
        entry
        for entry in entries
        if entry.path[: len(prefix)] == prefix and not any(_HEADS.fullmatch(part) for part in entry.path)
    ]
    norms = sorted((entry for entry in inside if entry.kind == "norm"), key=sort_key)
    norms = norms[: len(chosen)] if len(norms) >= len(chosen) else []
    broken = [entry for entry in inside if entry.kind == "other"]
    trunk = [*chosen, *norms, *broken]
    trunk.sort(key=sort_key if chosen == sorted(chosen, key=sort_key) else lambda entry: entry.place)
    return trunk, [entry for entry in entries if entry not in trunk]


def _ordered(convolutions: Sequence[Entry]) -> list[Entry]:
    """Convolutions by the numbers in their keys, or in the file's order if only that chains."""
    numbered = sorted(convolutions, key=sort_key)
    return [*convolutions] if _chains(convolutions) and not _chains(numbered) else numbered


def _chains(convolutions: Sequence[Entry]) -> bool:
    shapes = [entry.found.value.shape for entry in convolutions]
    return all(one[0] == other[1] for one, other in pairwise(shapes))


def _part(entry: Entry, trunk: Sequence[Entry]) -> str:
    """The name of the part that a layer beside the trunk belongs to."""
    return ".".join(entry.path[: len(shared([entry.path, trunk[0].path])) + 1])


def _is_nan(entry: Entry) -> bool:
    """Whether a layer's first numbers are none."""
    return bool(np.isnan(np.asarray(expanded(entry.found.value)[:1], np.float32)).all())


def _blocks(convolutions: Sequence[Entry], normalised: bool) -> tuple[int, ...]:
    """The number of convolutions in each block, from the numbers in the keys; empty if they don't show it.

    A block is a module with several convolutions, the first number in names such as conv3_2, or ends where a Sequential
    leaves room for a pooling.
    """
    places = [entry.numbers for entry in convolutions]
    blocks = [place[:-1] for place in places]
    counted = not convolutions[0].path or not convolutions[0].path[-1].isdigit()  # the numbers are not those of a Sequential
    if len({*blocks}) == len(blocks) > 1:  # each convolution is in a module of its own
        places, blocks, counted = blocks, [()] * len(blocks), True
    if not all(places):
        return ()
    gaps = [after[-1] - before[-1] for before, after in pairwise(places)]
    step = _step(normalised)
    if counted and len({*blocks}) == 1:
        step = step if min(gaps, default=0) >= step else 1
        if max(gaps, default=0) <= step:
            return ()
    depths = [1]
    for gap, (before, after) in zip(gaps, pairwise(blocks), strict=True):
        if before != after or (gap > step and not (counted and before)):
            depths.append(0)
        depths[-1] += 1
    return tuple(depths)


def _step(normalised: bool) -> int:
    """Modules of a Sequential from a convolution to the next: itself, its normalisation, and its ReLU."""
    return 2 + normalised


def _fits(depths: Sequence[int]) -> bool:
    """Whether an architecture has blocks that begin with so many convolutions."""
    last = len(depths) - 1
    return any(last < len(made) and made[:last] == (*depths[:last],) and made[last] >= depths[last] for made in _DEPTHS)


def _check_order(path: object, trunk: Sequence[Entry]) -> None:
    """Raise ModelError if a Sequential has no room for a ReLU after a convolution, or room before its normalisation."""
    for one, other in pairwise(trunk):
        alike = one.path[:-1] == other.path[:-1] and [*one.path[-1:], *other.path[-1:]]
        if alike and all(part.isdigit() for part in alike):
            room = int(other.path[-1]) - int(one.path[-1]) - 1
            norm = other.kind == "norm" and one.kind == "convolution"
            if (room > 0) if norm else (room == 0):
                what = "something" if norm else "no ReLU"
                raise ModelError(f"{path}: not a VGG network: {what} between {one.found.key} and {other.found.key}")
