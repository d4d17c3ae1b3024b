"""Keras's files: the old `.h5`, weights alone or a whole model, and Keras 3's `.weights.h5` and `.keras`.

The old layout, from keras/src/legacy/saving/legacy_h5_format.py: the root, or its group `model_weights`, lists `layer_names`,
and each layer's group lists `weight_names`. The new one, from keras/src/saving/saving_lib.py: `layers/conv2d_1/vars/0`, where
layers are numbered by class and arrays in the order of creation; a `.keras` file is a zip of such a file and the model's
configuration. Kernels are [height, width, in, out] and [in, out]; the map is flattened with the channels last.
"""

import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file, stored
from .layouts import Bare, Found, Layer, assemble

MAGIC = b"\x89HDF\r\n\x1a\n"
EPSILON = 1e-3  # Keras's default, for files without one
_NORM_ROLES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "variance"}
_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"  # in a `.keras` file
_MAX_CONFIG = 2**24  # bytes
_MOST = 1.5  # compressed arrays may take up to so many times the file's size


def read(path: Path) -> Bare:
    """The parameters in a file: views of it where the data are contiguous, as Keras writes them."""
    import h5py

    mapped = map_file(path)
    config: Any = None
    begin, end = 0, len(mapped)
    if mapped[:8] != MAGIC:
        with zipfile.ZipFile(path) as archive:
            begin, end = stored(mapped, archive.getinfo(_WEIGHTS))
            if archive.getinfo(_CONFIG).file_size > _MAX_CONFIG:
                raise ValueError("its configuration is too long")
            config = archive.read(_CONFIG)
    part = _Part(mapped, begin, end)
    with h5py.File(part, "r") as file:
        root = file.get("model_weights", file)
        norms = _norms(config or file.attrs.get("model_config"))
        if "layer_names" in root.attrs:
            layers = [_layer(path, name, arrays) for name, arrays in _named(part, root)]
        elif "layers" in root:
            layers = _numbered(path, part, root["layers"], norms)
        else:
            raise ModelError(f"{path}: an HDF5 file, but not Keras's: it has neither layer_names nor layers")
    epsilons = {float(norm.get("epsilon", EPSILON)) for norm in norms} or {EPSILON}
    if len(epsilons) > 1:
        raise ModelError(f"{path}: not a VGG network: its batch normalisations have different epsilons")
    return assemble(path, layers, epsilon=epsilons.pop(), channels_last=True)


def is_archive(path: Path) -> bool:
    """Whether a zip file is a `.keras` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _WEIGHTS in archive.NameToInfo
    except Exception:  # zipfile raises nearly anything for a damaged file
        return False


class _Part(io.RawIOBase):
    """A part of a mapped file as a file object."""

    def __init__(self, mapped: Any, begin: int, end: int) -> None:
        self.mapped, self.begin, self._size, self._place = mapped, begin, end - begin, 0
        self.copied = 0  # bytes of arrays that can't be views

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        start = self.begin + self._place
        buffer[:count] = self.mapped[start : start + count]
        self._place += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _named(part: _Part, root: Any) -> list[tuple[str, dict[str, Array]]]:
    """The layers of the old layout that have arrays, in order."""
    layers = []
    for name in map(_text, root.attrs["layer_names"]):
        group = root[name]
        arrays = {key: _view(part, group[key]) for key in map(_text, group.attrs["weight_names"])}
        if arrays:
            layers.append((name, arrays))
    return layers


def _numbered(path: Path, part: _Part, root: Any, norms: Sequence[dict[str, Any]]) -> list[Layer]:
    """The layers of the new layout. Classes are numbered separately: a normalisation follows the convolution of its number."""
    found: list[tuple[tuple[int, int, int], str, list[Array]]] = []
    for name, group in root.items():
        variables = group.get("vars", {})
        arrays = [_view(part, variables[key]) for key in sorted(variables, key=int)]
        match = re.fullmatch(r"(conv2d|batch_normalization|dense)(?:_(\d+))?", name)
        if arrays and not match:
            raise ModelError(f"{path}: not a VGG network: unsupported layer {name}")
        if match and arrays:
            place = (int(match[1] == "dense"), int(match[2] or 0), int(match[1] == "batch_normalization"))
            found.append((place, name, arrays))
    layers = []
    for (_, number, norm), name, arrays in sorted(found, key=lambda entry: entry[0]):
        keys = ["kernel", "bias"][: len(arrays)]
        if norm:
            config = norms[number] if number < len(norms) else {"scale": len(arrays) == 4, "center": len(arrays) == 4}
            keys = [key for key, has in zip(_NORM_ROLES, (config["scale"], config["center"], True, True), strict=True) if has]
        if len(keys) != len(arrays):
            raise ModelError(f"{path}: ambiguous layer {name} with {len(arrays)} arrays; save the model as a .keras file")
        layers.append(_layer(path, name, {f"{name}/{key}": array for key, array in zip(keys, arrays, strict=True)}))
    return layers


def _layer(path: Path, name: str, arrays: dict[str, Array]) -> Layer:
    """One layer, its kernel transposed to [out, in, height, width] or [out, in]."""
    layer: Layer = {}
    for key, value in arrays.items():
        last = key.split("/")[-1].split(":")[0]
        if value.ndim == 4:
            layer["weight"] = Found(key, value.transpose(3, 2, 0, 1))
        elif value.ndim == 2:
            layer["weight"] = Found(key, value.T)
        elif value.ndim == 1:
            role = next((role for word, role in _NORM_ROLES.items() if last.endswith(word)), "bias")
            layer[role] = Found(key, value)
        else:
            raise ModelError(f"{path}: not a VGG network: unsupported array {key} {list(value.shape)} of layer {name}")
    if "mean" in layer:  # scale and bias are optional in Keras
        size = layer["mean"].value.shape
        layer.setdefault("scale", Found(f"{name}/gamma", np.ones(size, np.float32)))
        layer.setdefault("bias", Found(f"{name}/beta", np.zeros(size, np.float32)))
    return layer


def _view(part: _Part, dataset: Any) -> Array:
    """A dataset as a view of the mapped file, or as a copy if it is chunked or compressed."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype.byteorder == ">":
        part.copied += dataset.nbytes
        if part.copied > _MOST * len(part.mapped):
            raise ValueError(f"its arrays would take {part.copied} bytes of memory")
        return np.asarray(dataset[()])
    return np.frombuffer(part.mapped, dataset.dtype, dataset.size, part.begin + offset).reshape(dataset.shape)


def _norms(config: Any) -> list[dict[str, Any]]:
    """The configurations of the batch normalisations in a whole model's configuration."""
    if config is None:
        return []
    layers = json.loads(_text(config)).get("config", {}).get("layers", [])
    return [layer["config"] for layer in layers if layer.get("class_name") == "BatchNormalization"]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
