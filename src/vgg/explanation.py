"""Where a network looked."""

from typing import Any

import numpy as np

from .errors import ModelError
from .network import Network
from .preprocessing import Preprocessing

Array = np.ndarray[Any, np.dtype[Any]]

VALUE = "pool5"  # what a map is made from


def can_explain(network: Network) -> bool:
    """Whether `activation_map` has an answer: the network pools globally before its one linear layer."""
    return network.architecture.head == "gap"


def activation_map(network: Network, pool5: Array, index: int) -> Array:
    """How much each place of a picture speaks for a class: the class activation map of Zhou et al., arXiv 1512.04150.

    It is exact, not a guess: the class's logit is the mean of the map, plus the class's bias.

    Args:
        network: one with global average pooling.
        pool5: its value `pool5` for one picture, float32 [channels, rows, columns].
        index: of the class.

    Returns:
        float32 [rows, columns], in the logit's unit; negative where a place speaks against the class.

    Raises:
        ModelError: the network has the paper's head, between whose layers there are no places any more.
    """
    if not can_explain(network):
        raise ModelError(f"{network.architecture.name} with the paper's head has no class activation map")
    weight = network.parameters["fc8.weight"]
    row = weight[index] if isinstance(weight, np.ndarray) else weight.rows(index, index + 1)[0]
    return np.tensordot(np.asarray(row, np.float32), pool5, 1)


def seen(preprocessing: Preprocessing, width: int, height: int) -> tuple[float, float, float, float]:
    """The part of a picture that the network sees after the crop: left, top, right, bottom, as shares of its sides."""
    across, down = preprocessing.resized(width, height)
    left, top = preprocessing.offset(across), preprocessing.offset(down)
    return left / across, top / down, (left + preprocessing.crop) / across, (top + preprocessing.crop) / down
