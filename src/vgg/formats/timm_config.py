"""`config.json`, which timm writes beside a model file for the Hugging Face Hub: preprocessing and labels.

Its form is that of timm/models/_hub.py, `save_config_for_hf`.
"""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..architectures import STRIDE
from ..errors import Error, Notice, one_line
from ..files import open_file
from ..labels import Labels, from_data, mismatch
from ..preprocessing import PRESETS, Preprocessing
from .layouts import Bare

NAME = "config.json"
MAX_BYTES = 4 * 2**20


def completed(path: Path, content: Bare) -> Bare:
    """The content of a file with the preprocessing and labels that timm's `config.json` beside it has, where it has none."""
    beside = path.with_name(NAME)
    try:
        with open_file(beside) as file:
            config = json.loads(file.read(MAX_BYTES))
        described = config["pretrained_cfg"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # none, or another program's
        return content
    if not isinstance(described, dict):
        return content
    preprocessing, labels = content.preprocessing, content.labels
    try:
        preprocessing = preprocessing or _preprocessing(described)
    except (ValueError, KeyError, TypeError, ArithmeticError, Error) as error:
        warnings.warn(Notice(f"{beside}: preprocessing not used ({one_line(error)})"), stacklevel=4)
    names = config.get("label_names") or described.get("label_names")
    if names and not labels:
        try:
            labels = _labels(names, content.architecture.classes)
        except ValueError as error:
            warnings.warn(Notice(f"{beside}: labels not used ({one_line(error)})"), stacklevel=4)
    architecture = content.architecture
    if preprocessing and preprocessing is not content.preprocessing and architecture.fixed_size:
        side = architecture.input_size // STRIDE  # of the map that the head reads
        if preprocessing.crop // STRIDE == side:
            architecture = replace(architecture, input_size=preprocessing.crop)
        else:
            used = f"{preprocessing.crop} pixels not used, but {architecture.input_size}"
            warnings.warn(Notice(f"{beside}: input size of {used}, since the head reads a map of {side}x{side}"), stacklevel=4)
    return content._replace(
        architecture=architecture, preprocessing=preprocessing, labels=labels, sized=content.sized or bool(preprocessing)
    )


def _preprocessing(described: dict[str, Any]) -> Preprocessing:
    """timm's evaluation transform (timm/data/transforms_factory.py) of a `pretrained_cfg`."""
    _, height, width = described["input_size"]
    interpolation, mode = described["interpolation"], described.get("crop_mode", "center")
    if interpolation != "bilinear" or height != width or mode not in ("center", "squash"):
        raise ValueError(f"unsupported: {interpolation} interpolation, {height}x{width} pixels, crop mode {mode}")
    (red, green, blue), spread = described["mean"], described["std"]
    found = Preprocessing(
        "timm", resize="squash" if mode == "squash" else "short-floor", size=math.floor(height / described["crop_pct"]),
        crop=height, mean=(red, green, blue), std=(spread[0], spread[1], spread[2]),
    )  # fmt: skip
    return next((one for one in PRESETS.values() if replace(found, name=one.name) == one), found)


def _labels(names: Any, classes: int) -> Labels:
    labels = from_data(names)
    if len(labels) != classes:
        raise ValueError(mismatch(labels, classes))
    return labels
