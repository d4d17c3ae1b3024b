"""The trunk of a network in a state dictionary: which convolutions it has, in which order, and where its max poolings are.

The numbers in the keys give the order, and numbers that a Sequential leaves out show the layers without parameters.
"""

from collections.abc import Sequence
from itertools import pairwise

from ..architectures import CONFIGURATIONS
from ..errors import ModelError
from .state_head import HEADS, Entry, shared, sort_key

DEPTHS = {made.depths for made in CONFIGURATIONS.values()}


def split(entries: Sequence[Entry], start: Entry) -> tuple[list[Entry], list[Entry]]:
    """The convolutions with their normalisations, in order, and the other layers.

    The convolutions are all of them, or else those under the shortest prefix that are as many as a VGG network has.
    """
    every = [entry for entry in entries if entry.kind == "convolution"]
    chosen = found = _ordered(every)
    counts = sorted({*map(sum, DEPTHS)}, reverse=True)
    for depth in range(len(start.path)):
        found = _ordered([entry for entry in every if entry.path[:depth] == start.path[:depth]])
        if found[0] is not start:  # the last convolutions of another network, which happen to fit
            continue
        normalised = any(entry.kind == "norm" and entry.path[:depth] == start.path[:depth] for entry in entries)
        wholes = [found[:count] for count in counts if count < len(found)]
        whole = [one for one in wholes if _chains(one) and blocks(one, normalised) in DEPTHS]  # before other convolutions
        if _chains(found) and not whole and (len(found) in counts or len(found) == len(every)):
            chosen = found
        elif whole:
            chosen = whole[0]
        else:
            continue
        break
    prefix = shared([entry.path for entry in chosen]) if len(chosen) > 1 else start.path[:-1]
    within = [
        entry
        for entry in entries
        if entry.path[: len(prefix)] == prefix and not any(HEADS.fullmatch(part) for part in entry.path)
    ]
    norms = sorted((entry for entry in within if entry.kind == "norm"), key=sort_key)
    norms = norms[: len(chosen)] if len(norms) >= len(chosen) else []
    broken = [entry for entry in within if entry.kind == "other"]
    trunk = [*chosen, *norms, *broken]
    trunk.sort(key=sort_key if chosen == sorted(chosen, key=sort_key) else lambda entry: entry.place)
    inside = {entry.path for entry in trunk}
    return trunk, [entry for entry in entries if entry.path not in inside]


def _ordered(convolutions: Sequence[Entry]) -> list[Entry]:
    """Convolutions by the numbers in their keys, or in the file's order if only that chains."""
    numbered = sorted(convolutions, key=sort_key)
    return [*convolutions] if _chains(convolutions) and not _chains(numbered) else numbered


def _chains(convolutions: Sequence[Entry]) -> bool:
    shapes = [entry.found.value.shape for entry in convolutions]
    return all(one[0] == other[1] for one, other in pairwise(shapes))


def blocks(convolutions: Sequence[Entry], normalised: bool) -> tuple[int, ...]:
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


def fits(depths: Sequence[int]) -> bool:
    """Whether an architecture has blocks that begin with so many convolutions."""
    last = len(depths) - 1
    return any(last < len(made) and made[:last] == (*depths[:last],) and made[last] >= depths[last] for made in DEPTHS)


def check_order(path: object, trunk: Sequence[Entry]) -> None:
    """Raise ModelError if a Sequential has no room for a ReLU after a convolution, or room before its normalisation."""
    for one, other in pairwise(trunk):
        alike = one.path[:-1] == other.path[:-1] and [*one.path[-1:], *other.path[-1:]]
        if alike and all(part.isdigit() for part in alike):
            room = int(other.path[-1]) - int(one.path[-1]) - 1
            norm = other.kind == "norm" and one.kind == "convolution"
            if (room > 0) if norm else (room == 0):
                what = "something" if norm else "no ReLU"
                raise ModelError(f"{path}: not a VGG network: {what} between {one.found.key} and {other.found.key}")
