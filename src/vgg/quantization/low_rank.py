"""Linear layers of low rank: a weight becomes left [units, rank] @ right [rank, inputs], which is smaller than itself.

The columns of `left` are the directions in which the layer's values vary most, and right = left.T @ weight. Taken from the
weight alone, this is its truncated singular value decomposition. With pictures, the directions are those of the values that
the layer really has, which needs a fraction of the rank; the mean of what is left out goes into the bias. X. Zhang et al.,
"Accelerating very deep convolutional networks for classification and detection", TPAMI 2016, do so with convolutions.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..arrays import Array
from ..errors import Error, ModelError
from ..network import Network
from ..parameters import LowRank, Parameter, contiguous, expanded
from .calibration import Pictures, Progress, responses

LAYERS = ("fc6", "fc7")
STEP = 64  # ranks are multiples of it
TRUST = 0.9  # in the pictures' covariance; the rest is that of independent inputs, for what no picture shows


@dataclass(frozen=True)
class Directions:
    """The directions in which a linear layer's values vary, the strongest first."""

    vectors: Array  # float32 [units, units], orthonormal columns
    energy: Array  # float64 [units], descending; the sum is 1
    mean: Array  # float32 [units], of the values before the bias

    def rank(self, share: float) -> int:
        """How many directions hold this share of the energy, 0..1, as a multiple of STEP."""
        needed = int(np.searchsorted(np.cumsum(self.energy), share)) + 1
        return min(-(-needed // STEP) * STEP, len(self.energy))


def directions(
    network: Network, pictures: Pictures | None = None, progress: Progress = lambda done: None
) -> dict[str, Directions]:
    """The directions of fc6 and fc7, by the layer's name; with `pictures`, those of a network that looks at them.

    Raises:
        ModelError: the network has no fc6 and fc7; Error: scipy is missing; ImageError: a picture can't be read.
    """
    if network.architecture.head != "fc":
        raise ModelError("this network has no fc6 and fc7, which are what --rank makes smaller")
    try:
        from scipy.linalg import eigh  # in a quarter of the memory that NumPy's takes, and half the time
    except ModuleNotFoundError:
        raise Error("--rank needs scipy; `pip install 'vgg[quantize]'` brings it") from None
    seen = responses(network, pictures, progress) if pictures else {}
    found = {}
    for name in LAYERS:
        weight = _matrix(network.parameters[f"{name}.weight"])
        gram = weight @ weight.T
        gram /= np.trace(gram)
        mean = np.zeros(len(weight), np.float32)
        if one := seen.get(name):
            covariance, mean = one.covariance, one.mean
            gram *= 1 - TRUST
            gram += np.float32(TRUST / np.trace(covariance)) * covariance
        energy, vectors = eigh(gram.T, overwrite_a=True, check_finite=False, driver="evd")
        energy = energy[::-1].clip(0).astype(np.float64)
        found[name] = Directions(np.ascontiguousarray(vectors[:, ::-1]), energy / energy.sum(), mean)
    return found


def factored(network: Network, found: Mapping[str, Directions], ranks: Mapping[str, int]) -> Network:
    """A network whose linear layers have these ranks; a layer that would not become smaller stays as it is."""
    parameters = dict(network.parameters)
    for name, rank in ranks.items():
        value, bias = network.parameters[f"{name}.weight"], expanded(network.parameters[f"{name}.bias"])
        weight = _matrix(value)
        if saves(weight.shape, rank):
            left = np.ascontiguousarray(found[name].vectors[:, :rank])
            right = left.T @ weight
            lost = found[name].mean - left @ (left.T @ found[name].mean)
            parameters[f"{name}.weight"] = LowRank(left, right.reshape(rank, *value.shape[1:]))
            parameters[f"{name}.bias"] = (bias + lost).astype(np.float32)
    return replace(network, parameters=parameters)


def parse(rank: str) -> tuple[float, str]:
    """What `--rank` says: a number and its unit, none, `%` (of the energy) or `MB` (of the file). Raises Error."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%|MB)?", rank.strip())
    number, unit = (float(match[1]), match[2] or "") if match else (0.0, "")
    if not number or (unit == "%" and number > 100) or (not unit and number != int(number)):
        raise Error(f"a rank is a whole number, a share of the energy such as 90%, or a size such as 45MB, not {rank!r}")
    return number, unit


def ranks(found: Mapping[str, Directions], rank: str, stored: Callable[[Mapping[str, int]], int]) -> dict[str, int]:
    """The rank of each layer, by what `--rank` says.

    Of a size, the largest share of the energy is taken whose file is not larger; the layers keep the same share.

    Args:
        found: the layers' directions.
        rank: see `parse`.
        stored: the bytes of the file with such ranks.

    Raises:
        Error: no rank gives a file that small.
    """
    number, unit = parse(rank)
    if not unit:
        return {name: min(int(number), len(one.energy)) for name, one in found.items()}
    if unit == "%":
        return {name: one.rank(number / 100) for name, one in found.items()}
    for share in np.linspace(1, 0, 1001):
        made = {name: one.rank(share) for name, one in found.items()}
        if stored(made) <= number * 1e6:
            return made
    raise Error(f"--rank {rank}: even with the rank {STEP}, the file takes {stored(made) / 1e6:.1f} MB")


def saves(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a matrix is smaller as a product."""
    return rank * sum(shape) < shape[0] * shape[1]


def _matrix(weight: Parameter) -> Array:
    plain = contiguous(expanded(weight), np.float32)
    return plain.reshape(len(plain), -1)
