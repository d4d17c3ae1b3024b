"""Which network the numbers of LPIPS and DISTS were fitted to: torchvision's VGG-16, `vgg16-397923af.pth`.

Its convolutions are recognised by random projections, u^T W v with fixed signs u and v, of which fitted.npz has 16 for each
layer. The root mean square of the differences of two networks' projections is an estimate of the length of the difference of
their weights (W. Johnson and J. Lindenstrauss, 1984). Rounding to float16 or bfloat16 changes the weights by 0.2%, to int8 by
1% to 2%; after fine-tuning, they differ by more, and an independently trained VGG-16 by 140%.
"""

import hashlib

import numpy as np

from ..arrays import Array
from ..network import Network
from ..parameters import expanded
from .fitted import numbers

PROJECTIONS = 16  # of each convolution
NEAR = 0.03  # of the length of a layer's weights


def is_reference(network: Network) -> bool:
    """Whether a network's convolutions are those of torchvision's VGG-16, rounded to 8 bits at most."""
    architecture = network.architecture
    if architecture.name != "vgg16" or architecture.channels or architecture.width != 1:
        return False
    convolutions = [layer.name for layer in architecture.layers if layer.operation == "convolution"]
    known = numbers()["projections"]
    if len(convolutions) < len(known):
        return False
    return all(
        _distance(known[index], projections(name, expanded(network.parameters[f"{name}.weight"]))) < NEAR
        for index, name in reversed([*enumerate(convolutions)])  # the last ones, which are fine-tuned first
    )


def projections(name: str, weight: Array) -> Array:
    """The length of a convolution's weights, float32 [out, in, 3, 3], and their projections, float32 [1 + PROJECTIONS]."""
    matrix = np.asarray(weight, np.float32).reshape(len(weight), -1)
    left, right = (_signs(f"{name}.{axis}", side) for axis, side in enumerate(matrix.shape))
    length = np.sqrt(np.square(matrix, dtype=np.float64).sum())
    return np.array([length, *((left @ matrix) * right).sum(1)], np.float32)


def _distance(known: Array, found: Array) -> float:
    """The estimated difference of a layer's weights from the known ones, relative to their length."""
    return float(np.sqrt(np.square(found[1:] - known[1:]).mean()) / known[0])


def _signs(seed: str, count: int) -> Array:
    """Random signs, float32 [PROJECTIONS, count]."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_128(seed.encode()).digest(PROJECTIONS * count // 8), np.uint8))
    return bits.reshape(PROJECTIONS, count).astype(np.float32) * 2 - 1
