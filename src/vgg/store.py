"""Resumable work: what is finished of it is kept in a folder, under a key of everything that decides the result.

There is one contract. The same command resumes; a change of inputs, options, engine, instruction set or versions is other
work; `fresh` starts over. Work that only vgg looks at is kept below the cache folder, named by its key. Work that has a
folder of its own, such as a training run, has the key in `key.json` there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from .arrays import Array
from .errors import Error
from .files import cache_folder, reason, replacing, reserve

KEY = "key.json"


class Work:
    """The state of one piece of resumable work.

    Args:
        folder: where the state is kept; created when something is saved.
        key: everything that decides the result, as JSON; see `key_of`.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, key

    @classmethod
    def cached(cls, kind: str, key: Mapping[str, Any], *, fresh: bool = False) -> "Work":
        """Work below the cache folder. The folder is named by the key, so other work never has it.

        Args:
            kind: the folder's parent, such as `evaluations`.
            key: of `key_of`.
            fresh: delete the state of an earlier run.
        """
        work = cls(cache_folder() / kind / digest_of(key)[:32], key)
        if fresh:
            work.clear()
        return work

    def state(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """The last saved state and its arrays; None if there is none. A damaged file counts as none."""
        try:
            with (self.folder / "state.npz").open("rb") as file, np.load(file) as saved:  # which unpickles nothing
                arrays = {name: saved[name] for name in saved.files}
            return json.loads(str(arrays.pop("state"))), arrays
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def save(self, state: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Replace the saved state. Raises Error if it can't be written; the earlier state is kept then."""
        self._create()
        with replacing(self.folder / "state.npz") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)  # type: ignore[arg-type]

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Array:
        """An array of zeros in a file of this work, mapped and writable; the array of an earlier run if there is one.

        Raises Error if it can't be created. All its disk space is reserved at once: a mapped file that found no space later
        would end the process.
        """
        self._create()
        path = self.folder / f"{name}.npy"
        try:
            if not path.exists():
                part = path.with_suffix(".part")
                try:
                    made: Any = np.lib.format.open_memmap(part, "w+", dtype, shape)
                    made.flush()
                    reserve(part, made.offset)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
            return np.lib.format.open_memmap(path, "r+")
        except OSError as error:
            raise Error(f"{path}: can't be written: {reason(error)}") from None

    def clear(self) -> None:
        """Delete the state."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _create(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(f"{self.folder}: can't be created: {reason(error)}") from None
        if not (self.folder / KEY).exists():
            with replacing(self.folder / KEY) as file:
                file.write(json.dumps(self.key, indent=2).encode())


def key_of(**decides: Any) -> dict[str, Any]:
    """A key of everything that decides a result, with the version of vgg.

    Args:
        decides: JSON values: digests of inputs, options, and `engine`, which is `vgg.engines.identity` of the engines that
            compute: name, version, instruction set.
    """
    from importlib.metadata import version

    return dict(json.loads(json.dumps({"vgg": version("vgg"), **decides})))


def digest_of(key: Mapping[str, Any]) -> str:
    """SHA-256 of a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def differences(key: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> list[str]:
    """Where two keys differ, such as `recipe.lr: 0.1, not 0.05`."""
    found = []
    for name in dict.fromkeys([*key, *other]):
        one, two = key.get(name), other.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{before}{name}.")
        elif one != two:
            found.append(f"{before}{name}: {one}, not {two}")
    return found


def refuse_other_work(place: object, key: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise Error if a folder named by the user holds other work than that of `key`."""
    if unlike := differences(found, key):
        raise Error(f"{place}: holds other work ({'; '.join(unlike)}); use --fresh to start over, or another folder")
