"""The run's folder and its checkpoints: everything that is needed to resume, as plain tensors, numbers and text."""

import io
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import Error
from ..files import reason, replacing
from ..store import refuse_other_work

# In the run's folder; and in that of a cross-validation.
LAST, BEST, NAN, TEST, SCORES, CACHE = "last.pt", "model.onnx", "nan.pt", "test.json", "test.csv", "cache"
FOLDS, PREDICTIONS = "folds.json", "predictions.csv"


def create(folder: Path, *, fresh: bool) -> None:
    """Create the run's folder; with `fresh`, delete the files and folders of an earlier run. Raises Error if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{error.filename or folder}: can't be created: {reason(error)}") from None
    if fresh:
        delete(folder, LAST, BEST, NAN, TEST, SCORES, FOLDS, PREDICTIONS, "log.csv", "curves.png", "tensorboard", CACHE)
        for fold in folder.glob("fold-*"):
            if re.fullmatch(r"fold-[1-9]\d*", fold.name) and fold.is_dir():
                create(fold, fresh=True)
                with suppress(OSError):  # it has other files
                    fold.rmdir()


def delete(folder: Path, *names: str) -> None:
    """Delete files and folders in a run's folder, if they exist, in this order. Raises Error if that fails."""
    try:
        for path in (folder / name for name in names):
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
    except OSError as error:
        raise Error(f"{error.filename or folder}: can't be deleted: {reason(error)}") from None


def resume(folder: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of the last checkpoint; None if there is none. Raises Error if it is damaged, or of another run."""
    if not (folder / LAST).exists():
        return None
    state = load(folder / LAST)
    refuse_other_work(folder, key, state["key"])
    return state


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Nothing in the file is executed. Raises Error if it can't be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except Exception as error:  # a damaged zip file, a pickle of something else: torch raises nearly anything
        raise Error(
            f"{path}: damaged, or not a checkpoint of `vgg train` ({type(error).__name__}); use --fresh to start over"
        ) from None
    if isinstance(state, dict) and "config" in state:
        raise Error(f"{path}: checkpoint of an earlier version of vgg; use --fresh to start over, or another folder")
    if not isinstance(state, dict) or not isinstance(state.get("key"), dict):
        raise Error(f"{path}: not a checkpoint of `vgg train`; use --fresh to start over, or another folder")
    return state


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint. Raises Error if that fails; the file that was there before then stays."""
    content = io.BytesIO()  # torch, writing to the file itself, would not give the reason of an error
    torch.save(state, content)
    with replacing(path) as file:
        file.write(content.getbuffer())
