"""Keras's files: the old `.h5`, weights alone or a whole model, and Keras 3's `.weights.h5` and `.keras`.

A whole model has its configuration, JSON: an attribute of an `.h5` file, or an entry of a `.keras` file, which is a zip of it
and a `.weights.h5` file. `keras_config` makes a list of its layers, `keras_layers` a network. Of weights alone, the order and
the kinds of layers are taken from their names, and the rest of the head is the usual one.
"""

import re
import zipfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .. import heads
from ..errors import ModelError
from ..extras import require
from ..files import map_file, stored
from ..heads import Head, Pooling, Step
from ..parameters import expanded
from . import keras_config, keras_layers
from .keras_layers import EPSILON, NORM_ROLES
from .keras_store import Part, Store, natural, role
from .layouts import Bare, Found, Layer, assemble

MAGIC = b"\x89HDF\r\n\x1a\n"
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"  # in a `.keras` file
_LARGEST, _FEWEST = 3, 8  # side of a convolution's kernel, and number of convolutions of a VGG
# Of files of weights: layers that show the pooling, that weights don't describe, and that only preprocess.
_POOLINGS: dict[str, Pooling] = {"global_max_pooling2d": "max", "global_average_pooling2d": "average", "flatten": "flatten"}
_STRANGE = frozenset(("average_pooling2d", "elu", "leaky_re_lu", "p_re_lu"))
_LEFT_OUT = frozenset(("lambda", "normalization", "rescaling"))
# Names of kerascv's and tf2cv's convolutions. Converted from Gluon, they have its epsilon and its order of a flattened map.
_GLUON = re.compile(r"(.*/)?stage\d+/unit\d+/conv/.*")
_GLUON_EPSILON = 1e-5


def read(path: Path) -> Bare:
    """The network in a file. Its parameters are views of the file where the data are contiguous, as Keras writes them."""
    require(f"{path}: a Keras file", "keras", "h5py")
    import h5py

    mapped = map_file(path)
    config: Any = None
    begin, end = 0, len(mapped)
    if mapped[:8] != MAGIC:
        with zipfile.ZipFile(path) as archive:
            begin, end = stored(mapped, archive.getinfo(_WEIGHTS))
            entry = archive.getinfo(_CONFIG)
            if max(entry.file_size, entry.compress_size) > keras_config.MAX_BYTES:
                raise ValueError("its configuration is too long")
            config = archive.read(_CONFIG)
    part = Part(mapped, begin, end)
    with h5py.File(part, "r") as file:
        store = Store(path, part, file)
        config = file.attrs.get("model_config") if config is None else config
        if config is None:
            return _by_convention(path, store)
        text = config.decode() if isinstance(config, bytes) else str(config)
        return keras_layers.read(path, keras_config.layers(path, text), store)


def is_archive(path: Path) -> bool:
    """Whether a zip file is a `.keras` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.NameToInfo
    except Exception:  # zipfile raises nearly anything for a damaged file
        return False


def _by_convention(path: Path, store: Store) -> Bare:
    """The network in a file of weights alone."""
    kinds = {_kind(name) for name in (*(store.listed or ()), *store.groups)}
    if strange := sorted(kinds & _STRANGE):
        raise ModelError(f"{path}: its weights don't show what {strange[0]} computes; save the whole model as a .keras file")
    layers = _matrices(_listed(path, store) if store.listed is not None else _grouped(path, store))
    pooling = next((one for name, one in _POOLINGS.items() if name in kinds), None)
    gluon = any(_GLUON.fullmatch(key) for arrays in (store.listed or {}).values() for key in arrays)
    epsilon = _GLUON_EPSILON if gluon else EPSILON
    head = _head(layers, pooling) if pooling else None
    bare = assemble(path, layers, epsilon=epsilon, channels_last=not gluon, head=head)
    assumed = [] if bare.architecture.head in ("fc", heads.NONE) else [f"the head {bare.architecture.head!r}"]
    assumed += [f"a network without its layer {name}" for name in sorted(kinds & _LEFT_OUT)]
    sized = not bare.architecture.classifier
    return bare._replace(assumed=" and ".join(assumed), preset="gluon" if gluon else "", sized=sized)


def _kind(name: str) -> str:
    """A layer's class in snake case, if its name shows it."""
    return re.sub(r"_\d+$", "", name.split("/")[-1])


def _matrices(layers: Iterable[Layer]) -> list[Layer]:
    """The layers with linear ones as matrices, also where these are convolutions: the first one over the whole map."""
    result: list[Layer] = []
    head = False
    for layer in layers:
        head = head or (len(result) >= _FEWEST and _dimensions(layer) == 4 and layer["weight"].value.shape[2] > _LARGEST)
        if head and _dimensions(layer) == 4:
            key, kernel = layer["weight"].key, expanded(layer["weight"].value)
            layer = {**layer, "weight": Found(key, kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel)).T)}
        result.append(layer)
    return result


def _dimensions(layer: Layer) -> int:
    """4 of a convolution, 2 of a linear layer, 0 of a batch normalisation."""
    return len(layer["weight"].value.shape) if "weight" in layer else 0


def _head(layers: list[Layer], pooling: Pooling) -> Head | None:
    """The head with these layers, with the usual activations and dropout between them; None without any."""
    kinds = [_dimensions(layer) for layer in layers]
    count = kinds.count(2)
    steps: list[Step] = []
    normalised = kinds[1:2] == [0]  # after each convolution
    for place, layer in enumerate(layers):
        before, after = kinds[:place], kinds[place + 1 :]
        if kinds[place] == 2:
            steps.append(Step("linear", layer["weight"].value.shape[0] if 2 in after else 0))
        elif kinds[place] == 0 and 4 not in after and not (normalised and before[-1:] == [4]):
            steps.append(Step("batch_norm"))
        if 2 in (*before, kinds[place]) and 2 in after and after[0] != 0:
            steps += [Step("relu"), heads.DROPOUT]
    if not count:
        return None
    units = next(layer["weight"].value.shape[0] for layer in layers[::-1] if _dimensions(layer) == 2)
    return Head(tuple(steps), pooling, 1, "binary" if units == 1 else "softmax")


def _listed(path: Path, store: Store) -> Iterator[Layer]:
    """The layers of the old layout that have arrays, in order."""
    for name, arrays in (store.listed or {}).items():
        owners: dict[str, dict[str, Found]] = {}
        for key, dataset in arrays.items():
            owner = key.rpartition("/")[0] or name
            if _kind(owner) not in _LEFT_OUT:
                owners.setdefault(owner, {})[key] = store.found(key, dataset)
        layers = {owner: _layer(path, name, found) for owner, found in owners.items()}
        shapes = [layer["weight"].value.shape for layer in layers.values() if _dimensions(layer) == 4]
        if all(before[0] == after[1] for before, after in pairwise(shapes)):
            yield from layers.values()
        else:  # layers that are trained come first in the group of a model
            yield from _merged([layers[owner] for owner in sorted(layers, key=natural)], ())


def _grouped(path: Path, store: Store, place: str = "") -> Iterator[Layer]:
    """The layers of the new layout in a model, where each class is numbered by itself."""
    prefix = f"{place}layers/"
    names = sorted({name.removeprefix(prefix).split("/")[0] for name in store.groups if name.startswith(prefix)}, key=natural)
    own: list[Layer] = []
    nested: list[Layer] = []
    for name in names:
        arrays = store.groups.get(prefix + name, [])
        if any(one.startswith(f"{prefix}{name}/layers/") for one in store.groups):
            nested += _grouped(path, store, f"{prefix}{name}/")
        elif arrays and _kind(name) in ("conv2d", "batch_normalization", "dense"):
            own.append(_numbered(path, store, name, arrays))
        elif arrays and _kind(name) not in _LEFT_OUT:
            raise ModelError(f"{path}: not a VGG network: unsupported layer {name}")
    yield from _merged(own, nested)


def _merged(own: Iterable[Layer], nested: Iterable[Layer]) -> Iterator[Layer]:
    """The layers of a model, ordered in each class, with those of models in it: a normalisation follows what it fits."""
    by_kind: dict[int, list[Layer]] = {4: [], 0: [], 2: []}
    for layer in own:
        by_kind[_dimensions(layer)].append(layer)
    convolutions, norms, linear = by_kind.values()
    nested = list(nested)
    if any(_dimensions(layer) == 4 for layer in nested):  # then these are linear layers as convolutions
        convolutions, linear = [], [*convolutions, *linear]
    paired = len(convolutions) if len(norms) >= len(convolutions) else 0
    for place, layer in enumerate(convolutions):
        yield from (layer, norms[place]) if paired else (layer,)
    yield from nested
    norms = norms[paired:]
    for layer in linear:
        while norms and norms[0]["mean"].value.shape[0] != layer["weight"].value.shape[0]:
            yield norms.pop(0)
        yield layer
        if norms:
            yield norms.pop(0)
    yield from norms


def _numbered(path: Path, store: Store, name: str, arrays: list[Any]) -> Layer:
    """A layer of the new layout, whose arrays have no names."""
    keys = ("kernel", "bias")[: len(arrays)]
    if name.startswith("batch"):
        keys = tuple(NORM_ROLES) if len(arrays) == 4 else tuple(NORM_ROLES)[2:]
    if len(keys) != len(arrays):
        raise ModelError(f"{path}: ambiguous layer {name} with {len(arrays)} arrays; save the model as a .keras file")
    return _layer(path, name, {key: store.found(f"{name}/{key}", value) for key, value in zip(keys, arrays, strict=True)})


def _layer(path: Path, name: str, arrays: dict[str, Found]) -> Layer:
    """One layer. Scale and bias of a batch normalisation are optional in Keras."""
    layer: Layer = {}
    for found in arrays.values():
        last = role(found.key)
        if len(found.value.shape) in (2, 4):
            layer["weight"] = found
        elif len(found.value.shape) == 1:
            layer[next((ours for word, ours in NORM_ROLES.items() if last.endswith(word)), "bias")] = found
        else:
            raise ModelError(
                f"{path}: not a VGG network: unsupported array {found.key} {list(found.value.shape)} of layer {name}"
            )
    if "mean" in layer:
        count = layer["mean"].value.shape
        layer.setdefault("scale", Found(f"{name}/gamma", np.ones(count, np.float32)))
        layer.setdefault("bias", Found(f"{name}/beta", np.zeros(count, np.float32)))
    return layer
