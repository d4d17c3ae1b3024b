"""What training adds to a network's weights: wrappers in the keys, weights made of several tensors, the parameters of losses,
and other networks in the same file.

timm's `load_checkpoint`, torchvision's `references/classification` with `--model-ema` and ultralytics' `attempt_load` take the
average of the weights if a file has one, so it is read here too. MMEngine's EMAHook and Lightning's WeightAveraging store the
average as `state_dict`, and the weights of the last step beside it.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..parameters import expanded
from ..preprocessing import Preprocessing
from .layouts import Bare, Found
from .pixels import Pixels

# Attributes under which wrappers hold a module: DataParallel and AveragedModel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"))
_AVERAGED = frozenset(("ema", "average", "averaged", "avg", "swa"))
# Keys of the weights of the last step, by a key that only files with the average as `state_dict` have beside them.
_EXCHANGED = {"message_hub": "ema_state_dict", "averaging_state": "current_model_state"}
# Parts of keys of what takes part in training only.
_BESIDE = re.compile(
    r"n_averaged|criterion\w*|(\w+_)?loss(es)?(_\w+)?|(\w+_)?metrics?|(\w+_)?aux(iliary)?\d*(_\w+)?|class_weights?|pos_weight"
    r"|cross_entropy|ce|bce|nll|objective|steps?|initted"
)
_AVERAGES = re.compile(r"(\w+_)?ema(_\w+)?")  # in other forms than a state dictionary, or their settings
_LONGEST = 80  # characters of a part of a key, since the time that these patterns take is quadratic in the length
_MOST = 20  # networks in a file or state dictionary, each of which is tried
_ALONE = "save the one to read alone: torch.save(model.state_dict(), path)"
_COUNTER = "num_batches_tracked"
_NORMALISATIONS = (("mean", "std"), ("pixel_mean", "pixel_std"), ("mu", "sigma"))  # buffers in front of the network
# Names of torch.nn.utils.parametrizations as those of the hooks that they replace.
_PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations\.(\w+)\.(original[01]?|0\._[uv])")
_PARTS = {"original": "orig", "original0": "g", "original1": "v", "0._u": "u", "0._v": "v"}
_PART = re.compile(r"(.*)_(orig|mask|g|u|v)")


def _pruned(orig: Array, mask: Array) -> Array:
    """torch.nn.utils.prune."""
    if orig.shape != mask.shape:
        raise ValueError("shapes that don't fit")
    return orig * mask


def _weight_normalised(g: Array, v: Array) -> Array:
    """torch.nn.utils.weight_norm: of direction v and length g, for each index of the axes along which g has many."""
    if np.broadcast_shapes(g.shape, v.shape) != v.shape:
        raise ValueError("shapes that don't fit")
    axes = tuple(axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1)
    length: Array = np.sqrt(np.square(v).sum(axes, keepdims=True))
    return v * (g / length)


def _spectrally_normalised(orig: Array, u: Array, v: Array) -> Array:
    """torch.nn.utils.spectral_norm, at inference."""
    if (u.ndim, v.ndim) != (1, 1):
        raise ValueError("shapes that don't fit")
    norm: Array = np.dot(u, orig.reshape(len(orig), -1) @ v)
    return orig / norm


_FORMS: dict[frozenset[str], Callable[..., Array]] = {
    frozenset(("orig", "mask")): _pruned,
    frozenset(("g", "v")): _weight_normalised,
    frozenset(("orig", "u", "v")): _spectrally_normalised,
}


def tidied(state: Mapping[str, Array]) -> dict[str, Found]:
    """A state dictionary as that of the network without wrappers, each weight as one array, and without counters."""
    names = {key: ".".join(part for part in key.split(".") if part not in _WRAPPERS) for key in state}
    if "" in names.values() or len({*names.values()}) < len(names):  # of two networks, one of which is wrapped
        names = {key: key for key in state}
    found = {name: Found(_short(key), state[key]) for key, name in names.items() if not key.endswith(_COUNTER)}
    return _whole(found)


def combined(parts: Mapping[str, Array]) -> Array | None:
    """The weight that several tensors stand for, by the ends of their names; None if that is not known."""
    made = _FORMS.get(frozenset(parts))
    try:
        return made(**{part: expanded(value).astype(np.float32, copy=False) for part, value in parts.items()}) if made else None
    except ValueError:  # shapes that don't fit
        return None


def parts_of(entries: Iterable[str]) -> dict[str, dict[str, str]]:
    """By the name of a weight, the names of the tensors that it is made of, by their ends."""
    groups: dict[str, dict[str, str]] = {}
    for name in entries:
        parametrized = _PARAMETRIZED.fullmatch(name)
        if parametrized:
            module, own, part = parametrized.groups()
            groups.setdefault(f"{module}.{own}" if module else own, {})[_PARTS[part]] = name
        elif match := _PART.fullmatch(name):
            groups.setdefault(match[1], {})[match[2]] = name
    return groups


def _whole(found: dict[str, Found]) -> dict[str, Found]:
    """The state dictionary with one array for each weight. What is not understood stays, and is refused as unknown."""
    made = dict(found)
    for name, names in parts_of(found).items():
        whole = None if name in found else combined({part: expanded(found[key].value) for part, key in names.items()})
        if whole is not None:
            made[name] = Found(found[next(iter(names.values()))].key, whole)
            for key in names.values():
                del made[key]
    return made


def is_beside(path: Sequence[str], start: Sequence[str] = ()) -> int:
    """How many parts of a path name something of training only, beside a network whose first layer is `start`; or 0."""
    for place, part in enumerate(path):
        if _is(_BESIDE, part) or _is(_AVERAGES, part):
            other = start[place] if place < len(start) else ""
            inside = place and other.isdigit()  # a Sequential, all of whose modules are in use
            return place + 1 if tuple(path[:place]) == tuple(start[:place]) and part != other and not inside else 0
    return 0


def within_beside(path: Sequence[str]) -> bool:
    """Whether a part of a path names something of training only."""
    return any(_is(_BESIDE, part) for part in path)


def _is(pattern: re.Pattern[str], part: str) -> bool:
    return len(part) <= _LONGEST and pattern.fullmatch(part) is not None


def normalisation(found: Mapping[str, Found]) -> tuple[list[str], Preprocessing | None]:
    """The names of the mean and standard deviation that a module in front of the network has, and the preprocessing they are.

    Each has three numbers. Without them, or with several of them, there is none.
    """
    pairs = [
        [name, name[: -len(mean)] + std]
        for name in found
        for mean, std in _NORMALISATIONS
        if name.rpartition(".")[2] == mean and name[: -len(mean)] + std in found
    ]
    if len(pairs) != 1 or any(math.prod(found[name].value.shape) != 3 for name in pairs[0]):
        return [], None
    mean, std = (expanded(found[name].value).reshape(-1).astype(np.float64) for name in pairs[0])
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        return [], None
    found_range = Pixels().then(1 / std, -mean / std).preprocessing(False, "torchvision")
    return pairs[0], found_range[0] if found_range else None


def listed(keys: Iterable[str], most: int = 4) -> str:
    """Names in a message, of which the last may be left out."""
    names = [*dict.fromkeys(map(_short, keys))]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(key: str) -> str:
    return key if len(key) <= 2 * _LONGEST else f"{key[: 2 * _LONGEST]}…"


def exchanged(entries: Mapping[Any, Any]) -> str:
    """The key of the weights without the average, in a checkpoint whose `state_dict` is the average; empty in others."""
    return next((key for mark, key in _EXCHANGED.items() if {mark, key, "state_dict"} <= {*entries}), "")


def _words(name: str) -> set[str]:
    return {*re.split(r"[._]+", name.lower())}


def chosen(path: object, candidates: Mapping[str, Callable[[], Bare]], stepped: str = "") -> Bare:
    """The network to read of those in a file, each with the keys that lead to it.

    Of a network and its average, the average; otherwise the only one that is a VGG.

    Args:
        path: the file, for errors.
        candidates: functions that read them.
        stepped: the name of one that has the weights of another without the average.

    Raises:
        ModelError: none of them is a VGG network, or several are.
    """
    if len(candidates) == 1:
        return next(iter(candidates.values()))()
    check_few(path, candidates)
    made: dict[str, Bare] = {}
    refused: dict[str, str] = {}
    for name, read in candidates.items():
        try:
            bare = read()
        except _SeveralError:
            raise
        except ModelError as error:
            refused[name] = str(error)
        else:
            if not any(_part_of(bare, other) for other in made.values()):
                made = {kept: other for kept, other in made.items() if not _part_of(other, bare)} | {name: bare}
    if not made:
        first, reason = next(iter(refused.items()))
        reason = reason.removeprefix(f"{path}: not a VGG network: ").removeprefix(f"{path}: ")
        raise ModelError(f"{path}: not a VGG network: none of {_quoted(candidates)} is one; {first!r}: {reason}")
    name, average = _pick(path, made, stepped)
    beside = [other for other in (*made, *refused) if other != name]
    if not beside:
        return made[name]
    part = f"reading {name!r}, the average of {average!r}" if average else f"reading {name!r}, not {_quoted(beside)}"
    return made[name]._replace(part="; ".join(filter(None, (part, made[name].part))))


def check_few(path: object, names: Collection[str]) -> None:
    """Raise ModelError if so many networks are in a file that trying each of them takes long."""
    if len(names) > _MOST:
        raise _SeveralError(f"{path}: {len(names)} networks in the file: {_quoted(names)}; {_ALONE}")


class _SeveralError(ModelError):
    """Several VGG networks, none of which is the average of another."""


def _pick(path: object, made: Mapping[str, Bare], stepped: str) -> tuple[str, str]:
    """The network to read, and the one whose average it is, if it is one."""
    if len(made) == 1:
        return next(iter(made)), ""
    averages = [name for name in made if name != stepped and (stepped in made or _words(name) & _AVERAGED)]
    others = [name for name in made if name not in averages]
    if len(averages) == len(others) == 1 and _shapes(made[averages[0]]) == _shapes(made[others[0]]):
        return averages[0], others[0]
    raise _SeveralError(f"{path}: several VGG networks in the file: {_quoted(made)}; {_ALONE}")


def _shapes(bare: Bare) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in bare.parameters.items()}


def _part_of(one: Bare, other: Bare) -> bool:
    """Whether a network's weights are also another's, at the same places in the file, as a module's and its state's."""

    def places(bare: Bare) -> set[tuple[str, int]]:
        return {(name, value.ctypes.data) for name, value in bare.parameters.items() if isinstance(value, np.ndarray)}

    return places(one) <= places(other)


def _quoted(names: Iterable[str]) -> str:
    return listed(map(repr, names))
