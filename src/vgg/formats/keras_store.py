"""The arrays of a Keras file: HDF5 in one of two layouts.

The old layout, from keras/src/legacy/saving/legacy_h5_format.py: the root, or its group `model_weights`, lists `layer_names`,
and each layer's group lists `weight_names`. The group of a model in the model has the arrays of all its layers, those that are
trained first. The new one, from keras/src/saving/saving_lib.py: `layers/functional/layers/conv2d_1/vars/0`, where the layers
of a model are numbered by class and arrays in the order of creation; Keras 2.12 has `_layer_checkpoint_dependencies` for
`layers`. Kernels are [height, width, in, out] and [in, out].
"""

import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from .keras_config import KerasLayer
from .layouts import Found

_MOST = 1.5  # compressed arrays may take up to so many times the file's size
_MAX_GROUPS = 10_000
_MAX_DEPTH = 32  # of groups in groups
_OLD = "_layer_checkpoint_dependencies"


class Part(io.RawIOBase):
    """A part of a mapped file as a file object."""

    def __init__(self, mapped: Any, begin: int, end: int) -> None:
        self.mapped, self.begin, self._size, self._place = mapped, begin, end - begin, 0
        self._copied = 0  # bytes of arrays that can't be views

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

    def view(self, dataset: Any) -> Array:
        """A dataset as a view of the mapped file, or as a copy if it is chunked or compressed."""
        if dataset.external or dataset.is_virtual:
            raise ValueError(f"{dataset.name} is in another file")
        offset = dataset.id.get_offset()
        if offset is None or dataset.dtype.byteorder == ">":
            self._copied += dataset.nbytes
            if self._copied > _MOST * len(self.mapped):
                raise ValueError(f"its arrays would take {self._copied} bytes of memory")
            return np.asarray(dataset[()])
        return np.frombuffer(self.mapped, dataset.dtype, dataset.size, self.begin + offset).reshape(dataset.shape)


class Store:
    """The arrays of an opened HDF5 file by layer.

    Attributes:
        listed: of the old layout, the layers in order, each with its arrays by name; otherwise None.
        groups: of the new layout, the layers by path, each with its arrays in order.
    """

    def __init__(self, path: object, part: Part, file: Any) -> None:
        self.path, self._part = path, part
        self.listed: dict[str, dict[str, Any]] | None = None
        self.groups: dict[str, list[Any]] = {}
        root = _member(file, "model_weights") if "model_weights" in file else file
        self._mxnet = root.attrs.get("backend") in ("mxnet", b"mxnet")  # keras-mxnet
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            self.listed = {}
            for name in _names(root, "layer_names"):
                group = _member(root, name)
                self.listed[name] = {key: _member(group, key) for key in _names(group, "weight_names")}
        elif "layers" in file or any(name.startswith(_OLD) for name in file):
            found = dict(_arrays(file))
            self.groups = _renumbered(found) if any(_OLD in name for name in found) else found
        else:
            raise ModelError(f"{path}: an HDF5 file, but not Keras's: it has neither layer_names nor layers")
        self._taken: set[str] = set()  # names of arrays in the old layout

    def arrays(self, layer: KerasLayer, roles: Sequence[str]) -> dict[str, Found]:
        """The arrays of a layer by role: `kernel`, `gamma`, …

        Raises:
            ModelError: the file has none, or others.
        """
        named = self._listed(layer, roles) if self.listed is not None else dict(enumerate(self.groups.get(layer.path, ())))
        if len(named) != len(roles):
            raise ModelError(f"{self.path}: not a VGG network: {layer} has {len(named)} arrays in the file, not {len(roles)}")
        found = {}
        for role, (key, dataset) in zip(roles, named.items(), strict=True):
            name = key if isinstance(key, str) else f"{layer.name}/{role}"
            found[role] = Found(name, oriented(self._part.view(dataset)))
        return found

    def found(self, key: str, dataset: Any) -> Found:
        """An array in our orientation, which is that of MXNet's kernels for channels first."""
        value = self._part.view(dataset)
        ours = self._mxnet and value.ndim == 4 and value.shape[2:] == (3, 3) != value.shape[:2]
        return Found(key, value if ours else oriented(value))

    def _listed(self, layer: KerasLayer, roles: Sequence[str]) -> dict[str, Any]:
        """The arrays of a layer in the old layout, in the order of the roles if their names show these."""
        assert self.listed is not None
        top, *inner = layer.names
        arrays = self.listed.get(top, {})
        if inner:
            arrays = {key: value for key, value in arrays.items() if key not in self._taken}
            # A graph of TensorFlow 1 numbers names that it has already.
            for number in ("", r"_\d+"):
                own = [key for key in arrays if re.fullmatch(f"(.*/)?{re.escape(layer.name)}{number}/[^/]*", key)]
                if own:
                    break
            arrays = {key: arrays[key] for key in own}
            if len(own) > len(roles):  # layers of the same name in several models
                first = [next((key for key in own if role(key) == wanted), "") for wanted in roles]
                arrays = {key: arrays[key] for key in first if key}
            self._taken.update(arrays)
        by_role = {role(key): key for key in arrays}
        return {by_role[wanted]: arrays[by_role[wanted]] for wanted in roles} if by_role.keys() == {*roles} else arrays


def oriented(value: Array) -> Array:
    """A kernel as [out, in, height, width] or [out, in]; other arrays as they are."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def role(key: str) -> str:
    """The last part of an array's name without numbers: `kernel` of `conv/kernel:0`, or `conv/kernel1` by keras-mxnet."""
    return re.sub(r"(_?\d+)?(:\d+)?$", "", key.split("/")[-1])


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names, which is split into several attributes if it is long."""
    values = group.attrs.get(attribute)
    if values is None:
        parts: list[Any] = []
        while f"{attribute}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{len(parts)}"])
        values = [name for part in parts for name in part]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in values]


def _member(group: Any, path: str) -> Any:
    """A group or dataset in a group. Raises ValueError if a link to another file or place leads to it."""
    import h5py

    for name in path.split("/"):
        if name:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path[:80]} is missing or in another file")
            group = group[name]
    return group


def _arrays(group: Any, place: str = "", depth: int = 0, count: list[int] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """The groups of the new layout by path, each with its arrays, the optimizer's left out."""
    import h5py

    count = [0] if count is None else count
    for name in group:
        count[0] += 1
        if depth > _MAX_DEPTH or count[0] > _MAX_GROUPS:
            raise ValueError("it has too many groups")
        path = f"{place}/{name}".replace("\\", "/").lstrip("/")  # of a file written by Windows
        if path == "optimizer":
            continue
        member = _member(group, name)
        if path.endswith("/vars") and isinstance(member, h5py.Group):
            yield path.removesuffix("/vars"), [_member(member, key) for key in sorted(member, key=int)]
        elif isinstance(member, h5py.Group):
            yield from _arrays(member, path, depth + 1, count)


def _renumbered(groups: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The groups of Keras 2.12 with the paths of later versions: there, layers with arrays count twice."""
    result: dict[str, list[Any]] = {}
    titles: dict[str, str] = {"": ""}
    count: dict[str, int] = {}
    for path in sorted(groups, key=natural):
        place = ""
        for name in path.split("/"):
            before, place = place, f"{place}/{name}".lstrip("/")
            if place not in titles:
                kind = "layers" if name == _OLD else re.sub(r"_\d+$", "", name)
                title = f"{titles[before]}/{kind}".lstrip("/")
                number = count.get(title, 0) if kind != "layers" else 0
                count[title] = number + 1
                titles[place] = title + (f"_{number}" if number else "")
        result[titles[path]] = groups[path]
    return result


def natural(name: str) -> list[tuple[int, str]]:
    """A key for sorting names by their numbers, `conv2d` before `conv2d_2` before `conv2d_10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
