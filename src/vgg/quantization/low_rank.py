"""Linear layers of low rank: a weight becomes left [units, rank] @ right [rank, inputs], which has fewer parameters.

The columns of `left` are the directions in which the layer's outputs vary most, and right = left.T @ weight. Computed from the
weight alone, this is its truncated singular value decomposition. With calibration images, the directions are those of the
layer's actual outputs, which requires a fraction of the rank; the mean of the omitted part is added to the bias. X. Zhang et
al., "Accelerating very deep convolutional networks for classification and detection", TPAMI 2016, do so for convolutions.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array
from ..errors import Error, ModelError
from ..extras import require
from ..network import Network
from ..parameters import LowRank, Parameter, contiguous, expanded
from ..progress import Progress, silent
from ..sources import Dataset
from .calibration import responses
from .weights import linear_layers

STEP = 64  # ranks are multiples of it
TRUST = 0.9  # weight of the images' covariance; the rest is that of independent inputs, for outputs that no image has


@dataclass(frozen=True)
class Directions:
    """The directions in which a linear layer's outputs vary, in descending order."""

    vectors: Array  # float32 [units, units], orthonormal columns
    energy: Array  # float64 [units], descending, with the sum 1
    mean: Array  # float32 [units], of the outputs before the bias

    def rank(self, share: float) -> int:
        """The number of directions, a multiple of STEP, with this share of the energy, 0..1."""
        needed = int(np.searchsorted(np.cumsum(self.energy), share)) + 1
        return min(-(-needed // STEP) * STEP, len(self.energy))


def directions(network: Network, images: Dataset | None = None, progress: Progress = silent) -> dict[str, Directions]:
    """The directions of the hidden linear layers by name; with `images`, those of their outputs for these images.

    Args:
        network: its batch normalisation in the head is folded.
        images: a sample of the images that the network is for.
        progress: called for each batch of them.

    Raises:
        Error: scipy is missing.
        ImageError: an image can't be read.
    """
    require("--rank", "quantize", "scipy")
    from scipy.linalg import eigh  # takes a quarter of the memory and half the time of NumPy's

    observed = responses(network, images, progress) if images else {}
    found = {}
    for name in list(linear_layers(network.architecture))[:-1]:
        weight = _matrix(network.parameters[f"{name}.weight"])
        gram = weight @ weight.T
        gram /= np.trace(gram)
        mean = np.zeros(len(weight), np.float32)
        if (one := observed.get(name)) and np.trace(one.covariance) > 0:  # 0 of a single image
            covariance, mean = one.covariance, one.mean
            gram *= 1 - TRUST
            gram += np.float32(TRUST / np.trace(covariance)) * covariance
        energy, vectors = eigh(gram.T, overwrite_a=True, check_finite=False, driver="evd")
        energy = energy[::-1].clip(0).astype(np.float64)
        found[name] = Directions(np.ascontiguousarray(vectors[:, ::-1]), energy / energy.sum(), mean)
    return found


def factored(network: Network, found: Mapping[str, Directions], ranks: Mapping[str, int]) -> Network:
    """A network whose linear layers have these ranks; a layer that would not become smaller is unchanged.

    Args:
        network: with float parameters.
        found: the directions of its layers.
        ranks: by layer.
    """
    parameters = dict(network.parameters)
    for name, rank in ranks.items():
        value, bias = network.parameters[f"{name}.weight"], expanded(network.parameters[f"{name}.bias"])
        weight = _matrix(value)
        if saves(weight.shape, rank):
            left = np.ascontiguousarray(found[name].vectors[:, :rank])
            right = left.T @ weight
            omitted = found[name].mean - left @ (left.T @ found[name].mean)
            parameters[f"{name}.weight"] = LowRank(left, right.reshape(rank, *value.shape[1:]))
            parameters[f"{name}.bias"] = (bias + omitted).astype(np.float32)
    return replace(network, parameters=parameters)


def parse(rank: str) -> tuple[float, str]:
    """The number and the unit of a `--rank`: none, `%` (of the energy) or `MB` (of the file). Raises Error if it is invalid."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%|MB)?", rank.strip())
    number, unit = (float(match[1]), match[2] or "") if match else (0.0, "")
    if not number or (unit == "%" and number > 100) or (not unit and number != int(number)):
        raise Error(f"invalid rank {rank!r}; use an integer, a share of the energy such as 90%, or a size such as 45MB")
    return number, unit


def check(network: Network, rank: str) -> None:
    """Raise an error if a `--rank` is invalid, or can't make a hidden linear layer smaller.

    The last linear layer, whose outputs are the logits, keeps its rank.

    Raises:
        ModelError: the network has no hidden linear layer, or none is large enough.
        Error: see `parse`.
    """
    number, unit = parse(rank)
    smallest, head = STEP if unit else int(number), network.architecture.head
    hidden = list(linear_layers(network.architecture))[:-1]
    if not hidden:
        raise ModelError(f"--rank requires a linear layer before the last one; the head {head!r} has none")
    weights = [network.architecture.parameters[f"{name}.weight"] for name in hidden]
    if unit != "MB" and not any(saves((units, math.prod(inputs)), smallest) for units, *inputs in weights):
        raise ModelError(f"--rank {rank}: no linear layer of the head {head!r} becomes smaller with rank {smallest}")


def ranks(found: Mapping[str, Directions], rank: str, stored: Callable[[Mapping[str, int]], int]) -> dict[str, int]:
    """The rank of each layer for a `--rank`. For a size, all layers keep the largest share of the energy that fits.

    Args:
        found: the layers' directions.
        rank: see `parse`.
        stored: returns the size in bytes of the file with given ranks.

    Raises:
        Error: the file is larger than the requested size at any rank.
    """
    number, unit = parse(rank)
    if not unit:
        return {name: min(int(number), len(one.energy)) for name, one in found.items()}
    if unit == "%":
        return {name: one.rank(number / 100) for name, one in found.items()}
    for share in np.linspace(1, 0, 1001):
        chosen = {name: one.rank(share) for name, one in found.items()}
        if stored(chosen) <= number * 1e6:
            return chosen
    raise Error(f"--rank {rank}: the file has {stored(chosen) / 1e6:.1f} MB even with the smallest rank, {STEP}")


def saves(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a matrix has fewer parameters as a product of this rank."""
    return rank * sum(shape) < shape[0] * shape[1]


def _matrix(weight: Parameter) -> Array:
    plain = contiguous(expanded(weight), np.float32)
    return plain.reshape(len(plain), -1)
