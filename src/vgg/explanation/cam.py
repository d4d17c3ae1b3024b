"""Class activation maps: weighted sums of the channels of a layer output, from one forward pass.

All weights come from the gradient of a class's logit at that layer output, which is computed without torch.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import ModelError
from ..gradients import gradient, needed
from ..network import Network

EPSILON = 1e-6  # added to a denominator of Grad-CAM++, as in the package grad-cam


def chosen_layer(architecture: Architecture, layer: str | None = None) -> str:
    """The layer output whose positions are explained: by default the last convolution's, or the last one without a head.

    Raises ModelError if it is unknown, or no map.
    """
    names = architecture.values
    maps = names[: names.index("pool5") + 1] if architecture.classifier else names
    if layer is not None:
        architecture.check_values([layer])
        if layer not in maps:
            raise ModelError(f"layer output {layer} has no positions; choose from {', '.join(maps)}")
        return layer
    return maps[-2] if architecture.classifier else maps[-1]


def outputs(network: Network, layer: str | None = None) -> tuple[str, ...]:
    """The layer outputs that the functions below need; `layer` as in `chosen_layer`."""
    start = chosen_layer(network.architecture, layer)
    return needed(network.architecture, start) if network.architecture.classifier else (start,)


def signals(network: Network, classes: Sequence[int]) -> Array:
    """The factor of each logit in each class's score, float32 [classes, units].

    If one logit decides between two classes, it is the score of the second, and its negative that of the first.
    """
    units = np.array([[-1], [1]]) if network.architecture.output == "binary" else np.eye(network.architecture.units)
    return np.asarray(units[np.array(classes)], np.float32)


def grad_cam(network: Network, values: Mapping[str, Array], classes: Sequence[int], layer: str | None = None) -> Array:
    """Grad-CAM: Selvaraju et al., arXiv 1610.02391, equations 1 and 2.

    A channel's weight is the mean gradient of the logit over the channel's positions. Negative values of the map, which the
    definition clips to 0, are kept.

    Args:
        network: whose outputs `values` are.
        values: the `outputs(network, layer)` for one image of the network's input size, without the batch axis.
        classes: indices of classes.
        layer: see `chosen_layer`.

    Returns:
        float32 [classes, rows, columns].
    """
    channels, slopes = _at(network, values, classes, layer)
    return np.asarray(np.tensordot(slopes.mean((2, 3)), channels, 1))


def grad_cam_plus(network: Network, values: Mapping[str, Array], classes: Sequence[int], layer: str | None = None) -> Array:
    """Grad-CAM++: Chattopadhay et al., arXiv 1710.11063, equations 11 and 19; arguments and result as in `grad_cam`.

    A channel's weight is a weighted sum of its positive gradients, so the map is 0 or more behind a ReLU. As in the package
    grad-cam, the gradient is that of the logit, where the paper has that of its exponential, a constant factor.
    """
    channels, slopes = _at(network, values, classes, layer)
    positive = np.maximum(slopes, 0)
    square = positive**2
    alpha = square / (2 * square + channels.sum((1, 2))[:, None, None] * square * positive + EPSILON)
    return np.asarray(np.tensordot((alpha * positive).sum((2, 3)), channels, 1))


def layer_cam(network: Network, values: Mapping[str, Array], classes: Sequence[int], layer: str | None = None) -> Array:
    """LayerCAM: Jiang et al., IEEE TIP 30, 2021, equations 5 and 6; arguments and result as in `grad_cam`.

    Each position of a channel is weighted by its own positive gradient, which keeps the details of early layers.
    """
    channels, slopes = _at(network, values, classes, layer)
    return np.asarray((np.maximum(slopes, 0) * channels).sum(1))


def _at(network: Network, values: Mapping[str, Array], classes: Sequence[int], layer: str | None) -> tuple[Array, Array]:
    """A layer output [channels, rows, columns], and the gradients of the classes' scores at it [classes, channels, …]."""
    name = chosen_layer(network.architecture, layer)
    return values[name], gradient(network, values, signals(network, classes), name)


def energy(network: Network, values: Mapping[str, Array], layer: str | None = None) -> Array:
    """The activation energy of a network without a head: the mean square of the channels at each position of a layer output.

    It is the attention map of Zagoruyko & Komodakis, arXiv 1612.03928, section 3.1, with p = 2.

    Args:
        network: whose outputs `values` are.
        values: the `outputs(network, layer)` for one image, without the batch axis.
        layer: see `chosen_layer`.

    Returns:
        float32 [1, rows, columns].
    """
    return np.asarray(np.square(values[outputs(network, layer)[0]]).mean(0, keepdims=True))
