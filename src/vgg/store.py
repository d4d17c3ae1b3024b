"""Resumable work: its state is kept in a folder, under a key with everything that decides the result.

The same command resumes. Other inputs, options or versions have another key, and are other work. The keys of evaluations and
calibrations also have the engine and the instruction set. `fresh` starts over. State that only vgg reads is below the cache
folder, in a folder named by the key. Work with its own folder has the key in its files: a training run in its checkpoint, bulk
work in `_run.json`.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from . import json_output
from .arrays import Array
from .errors import Error, Notice, one_line
from .files import cache_folder, reason, replacing, reserve

KEY = "key.json"
STATE = "state.npz"


class Work:
    """The state of one piece of resumable work.

    Args:
        folder: location of the state; created when something is saved.
        key: everything that decides the result, as JSON; see `key_of`.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, key

    @classmethod
    def cached(cls, kind: str, key: Mapping[str, Any], *, fresh: bool = False) -> "Work":
        """Work below the cache folder, in a folder named by its key.

        Args:
            kind: the parent folder, such as `evaluations`.
            key: see `key_of`.
            fresh: delete the state of an earlier run.
        """
        work = cls(cache_folder() / kind / digest_of(key)[:32], key)
        if fresh:
            work.clear()
        return work

    @staticmethod
    def may_exist(kind: str, **entries: Any) -> bool:
        """Whether there is work of this kind below the cache folder whose key has these entries.

        Checking the entries that are known at once avoids computing a whole key, such as a hash of all parameters, if there is
        nothing to resume.
        """
        entries = json.loads(json_output.dumps(entries))
        for path in (cache_folder() / kind).glob(f"*/{KEY}"):
            try:
                key = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if isinstance(key, dict) and key.items() >= entries.items():
                return True
        return False

    def state(self) -> tuple[dict[str, Any], dict[str, Array]] | None:
        """The last saved state and its arrays; None if there is none. A damaged file counts as none."""
        try:
            with (self.folder / STATE).open("rb") as file, np.load(file) as saved:  # unpickles nothing
                arrays = {name: saved[name] for name in saved.files}
            return json.loads(str(arrays.pop("state"))), arrays
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def save(self, state: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        """Replace the saved state. Raises Error if it can't be written; the earlier state is kept in that case."""
        self._create()
        with replacing(self.folder / STATE) as file:
            np.savez(file, state=np.array(json_output.dumps(state)), **arrays)  # type: ignore[arg-type]

    def save_if_possible(self, state: Mapping[str, Any], arrays: Mapping[str, Array], otherwise: str) -> None:
        """Replace the saved state. If it can't be written, the work continues, with a Notice of what is then `otherwise`."""
        try:
            self.save(state, arrays)
        except Error as error:
            warnings.warn(Notice(f"{otherwise}: {error}"), stacklevel=2)

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Array:
        """A writable array mapped from a file: that of an earlier run, or zeros.

        Raises Error if the file can't be created. All its disk space is reserved at once, because writing to a mapped file on
        a full disk would kill the process.
        """
        self._create()
        path = self.folder / f"{name}.npy"
        try:
            if not path.exists():
                part = path.with_suffix(".part")
                try:
                    zeros: Any = np.lib.format.open_memmap(part, "w+", dtype, shape)
                    zeros.flush()
                    reserve(part, zeros.offset)
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
                file.write(json_output.dumps(self.key, indent=2).encode())


def key_of(**entries: Any) -> dict[str, Any]:
    """A key with everything that decides a result, and the version of vgg.

    Args:
        entries: JSON values, such as digests of inputs, options, and `vgg.engines.identity` of each engine in use, which has
            its name, its version and the instruction set.
    """
    from importlib.metadata import version

    return dict(json.loads(json_output.dumps({"vgg": version("vgg"), **entries})))


def digest_of(key: Mapping[str, Any]) -> str:
    """SHA-256 of a key."""
    return hashlib.sha256(json_output.dumps(key, sort_keys=True).encode()).hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], before: str = "") -> list[str]:
    """The entries that differ between two keys, such as `recipe.lr: 0.1, not 0.05`."""
    unlike = []
    for name in dict.fromkeys([*found, *wanted]):
        one, two = found.get(name), wanted.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            unlike += differences(one, two, f"{before}{name}.")
        elif one != two:
            unlike.append(f"{before}{name}: {one_line(one)}, not {one_line(two)}")
    return unlike


def refuse_other_work(place: object, key: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise Error if the folder `place`, with the key `found`, holds other work than that of `key`."""
    if unlike := differences(found, key):
        raise Error(f"{place}: holds other work ({'; '.join(unlike)}); use --fresh to start over, or choose another folder")
