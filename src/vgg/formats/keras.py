"""Keras's HDF5 files: the weights-only `.h5` of keras.applications, and whole models saved as `.h5`.

Layout from keras/src/legacy/saving/legacy_h5_format.py: the root, or its group `model_weights`, lists `layer_names`, and
each layer's group lists `weight_names`. Kernels are [height, width, in, out] and [in, out]; the map is flattened with the
channels last.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelError
from ..files import map_file
from .layouts import Bare, Found, Layer, assemble

MAGIC = b"\x89HDF\r\n\x1a\n"
EPSILON = 1e-3  # Keras's own, where a file doesn't say
_NORM_ROLES = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "variance"}


def read(path: Path) -> Bare:
    """The parameters in a file: views of it where its data lie in one piece, as Keras writes them."""
    import h5py

    mapped = map_file(path)
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise ModelError(f"{path}: is an HDF5 file without Keras's layer_names; `.weights.h5` is not read yet")
            layers = []
            for name in map(_text, root.attrs["layer_names"]):
                group = root[name]
                arrays = {key: _view(mapped, group[key]) for key in map(_text, group.attrs["weight_names"])}
                if arrays:
                    layers.append(_layer(path, name, arrays))
            epsilon = _epsilon(file.attrs.get("model_config"))
    except ModelError:
        raise
    except Exception as error:  # h5py raises nearly anything on a broken file
        raise ModelError(f"{path}: is a damaged or truncated HDF5 file ({error})") from None
    return assemble(path, layers, epsilon=epsilon, channels_last=True)


def _layer(path: Path, name: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Layer:
    """One layer, its kernel turned to [out, in, height, width] or [out, in]."""
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
            raise ModelError(f"{path}: is not a VGG network: {key} {list(value.shape)} of layer {name} has no place in one")
    if "mean" in layer:  # Keras can leave out what it doesn't train
        size = layer["mean"].value.shape
        layer.setdefault("scale", Found(f"{name}/gamma", np.ones(size, np.float32)))
        layer.setdefault("bias", Found(f"{name}/beta", np.zeros(size, np.float32)))
    return layer


def _view(mapped: Any, dataset: Any) -> np.ndarray[Any, Any]:
    """A dataset as a view of the mapped file, or, where it is chunked or compressed, a copy."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype.byteorder == ">":
        return np.asarray(dataset[()])
    return np.frombuffer(mapped, dataset.dtype, dataset.size, offset).reshape(dataset.shape)


def _epsilon(config: Any) -> float:
    """The batch normalisation's epsilon in a whole model's configuration."""
    if config is None:
        return EPSILON
    layers = json.loads(_text(config)).get("config", {}).get("layers", [])
    found = (layer["config"]["epsilon"] for layer in layers if layer.get("class_name") == "BatchNormalization")
    return float(next(found, EPSILON))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
