"""The networks in the content of a torch file: modules and state dictionaries, in the dictionaries and objects around them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import torch_modules
from .checkpoints import listed
from .pickles import Record
from .torch_tensors import Tensor, as_tensor

_DEPTH = 5  # of dictionaries and objects in a checkpoint around the weights
_LONGEST = 100  # lists and tuples that may have a network in them
_MOST = 2**23  # entries that are looked at; a small pickle can refer to a large dictionary from many places
_WEIGHT = re.compile(r"(^|[._])(weight|original|kernel)")  # keys of convolutions, not of an optimizer's averages


def dictionaries(content: Any) -> Iterator[dict[Any, Any]]:
    """The dictionaries in a file's content, outer ones first, without those in modules."""
    looks = _Looks()
    for _, value in _walk("", content, _DEPTH, set(), looks):
        yield looks.entries(value)


def candidates(content: Any) -> Iterator[tuple[str, Any]]:
    """The state dictionaries and modules in a file's content that have convolutions, each with the keys that lead to it."""
    looks = _Looks()
    for name, value in _walk("", content, _DEPTH, set(), looks):
        held = looks.entries(value)
        if torch_modules.is_module(value):
            if torch_modules.convolves(value):
                yield name, value
        elif any(_is_state(inner, looks) for inner in held.values()) and (joined := _joined(held, looks)):
            yield name, joined
        elif _is_state(value, looks):
            yield name, held


def entries(value: Any) -> dict[Any, Any]:
    """The entries of a dictionary, list or object, with NumPy's arrays as tensors."""
    if isinstance(value, Record):
        value = value.items or value.state
    if isinstance(value, list | tuple):
        value = dict(enumerate(value[:_LONGEST]))
    if not isinstance(value, dict):
        return {}
    return {key: inner if (made := as_tensor(inner)) is None else made for key, inner in value.items()}


class _Looks:
    """The entries of dictionaries, counted each time. Raises ValueError for more than `_MOST`."""

    def __init__(self) -> None:
        self._left = _MOST

    def entries(self, value: Any) -> dict[Any, Any]:
        found = entries(value)
        self._left -= len(found)
        if self._left < 0:
            raise ValueError("a pickle that refers to its dictionaries too often")
        return found


def summary(content: Any) -> str:
    """What a file holds instead of a network: the first keys, with their shapes or kinds."""
    held = entries(content)
    if not held or torch_modules.is_module(content):
        return "nothing" if held == content else f"one {_kind(content).strip('()')}"
    return listed(f"{key} {_kind(value)}" for key, value in held.items())


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return str([*value.shape])
    return f"({value.name if isinstance(value, Record) else type(value).__name__})"


def _walk(name: str, value: Any, depth: int, seen: set[int], looks: _Looks) -> Iterator[tuple[str, Any]]:
    """The dictionaries, lists and records in a value, itself included, each once, with the keys that lead to it."""
    if not isinstance(value, dict | list | tuple | Record) or id(value) in seen:
        return
    seen.add(id(value))
    yield name, value
    if depth and not torch_modules.is_module(value):
        held = looks.entries(value)
        if not _joined(held, looks):
            for key, inner in held.items():
                yield from _walk(f"{name}.{key}" if name else str(key), inner, depth - 1, seen, looks)


def _is_state(value: Any, looks: _Looks) -> bool:
    """Whether a value is a dictionary with the weight of a convolution."""
    held = looks.entries(value).items()
    return any(isinstance(one, Tensor) and len(one.shape) == 4 and _WEIGHT.search(str(key)) for key, one in held)


def _joined(held: Mapping[Any, Any], looks: _Looks) -> dict[str, Tensor]:
    """One state dictionary from those of a network's parts, such as `features` and `classifier`; empty if there are none."""
    inners = [id(inner) for inner in held.values() if isinstance(inner, dict) and inner]
    if len({*inners}) < len(inners):  # a network's parts are different ones
        return {}
    parts = {str(key): looks.entries(inner) for key, inner in held.items() if isinstance(inner, dict) and inner}
    tensors = {
        f"{part}.{key}": value for part, inner in parts.items() for key, value in inner.items() if isinstance(value, Tensor)
    }
    ranks = {part: {len(v.shape) for v in inner.values() if isinstance(v, Tensor)} for part, inner in parts.items()}
    trunks = [part for part, found in ranks.items() if 4 in found]
    rest = [part for part, found in ranks.items() if found and 4 not in found]
    whole = len(trunks) == 1 and 2 not in ranks[trunks[0]] and rest
    return tensors if whole and all(2 in ranks[part] for part in rest) else {}
