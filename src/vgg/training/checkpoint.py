"""Checkpoints: all that a training needs to go on as if it had never been cut, as plain tensors, numbers and text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import Error
from ..files import reason, replacing
from .pictures import Batch
from .task import Task


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all. Raises Error where that fails; what was there before then still is."""
    with replacing(path) as file:
        guarded = _Guarded(file)
        try:
            torch.save(state, guarded)  # type: ignore[arg-type]  # it asks for no more of a file than this
        except RuntimeError:  # torch's own words for it say nothing
            if guarded.error:
                raise guarded.error from None
            raise


def keep_step(path: Path, epoch: int, step: int, lr: float, used: Sequence[Batch], task: Task) -> None:
    """Write down what a step that went wrong was given."""
    names = [task.train.dataset.samples[place].name for batch in used for place in batch.places]
    state = {"epoch": epoch, "step": step, "lr": lr, "names": names, "config": task.config}
    state |= {"pixels": [torch.from_numpy(np.ascontiguousarray(batch.pixels)) for batch in used]}
    state |= {"targets": [torch.from_numpy(batch.targets) for batch in used]}
    save(path, state)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, on the CPU. Nothing in the file is run. Raises Error where it can't be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except Exception as error:  # a damaged zip file, a pickle of something else: torch raises nearly anything
        raise Error(f"{path}: is damaged, or no checkpoint of `vgg train` ({type(error).__name__})") from None
    if not isinstance(state, dict) or "config" not in state:
        raise Error(f"{path}: is no checkpoint of `vgg train`")
    return state


def differences(config: dict[str, Any], other: dict[str, Any], before: str = "") -> list[str]:
    """What two runs' configurations have otherwise: `recipe.lr: 0.1, not 0.05`."""
    found = []
    for key in dict.fromkeys([*config, *other]):
        one, two = config.get(key), other.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{before}{key}.")
        elif one != two:
            found.append(f"{before}{key} {one}, not {two}")
    return found


class _Guarded:
    """A file that remembers why a write failed, which torch forgets."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return int(self._file.write(content))
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
