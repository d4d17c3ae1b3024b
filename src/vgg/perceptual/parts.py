"""What a metric is made of: a network, layer outputs, and the weights of their channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..engines import Kind
from ..errors import Error, ModelError
from ..formats import read
from ..heads import NONE
from ..network import Network
from ..preprocessing import PRESETS, Preprocessing
from ..zoo import locate
from . import fitted
from .fitted import Fitted, FittedMetric
from .reference import is_reference

Metric = FittedMetric | Literal["features"]
METRICS: tuple[Metric, ...] = ("lpips", "lpips-0.0", "dists", "features")
KINDS: tuple[Kind, ...] = get_args(Kind)
IMAGE = "image"  # DISTS's first stage, the image itself in 0..1
BLOCKS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")  # the layer outputs of LPIPS and DISTS
# What the published numbers were fitted with. LPIPS 0.0 scaled images to -1..1 only.
PREPROCESSING = {
    "lpips": PRESETS["torchvision"],
    "lpips-0.0": Preprocessing("lpips-0.0", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "dists": PRESETS["torchvision"],
}


@dataclass(frozen=True)
class Parts:
    """A perceptual metric as a value, from which engines and torch modules compute it."""

    metric: Metric
    network: Network  # the convolutions with the metric's pooling and preprocessing, without a head
    taps: tuple[str, ...]  # the compared layer outputs, by default one for each block; DISTS has IMAGE before them
    # Of the taps' channels, 0 or more: float32 [channels]; DISTS: float32 [2, channels], alpha for the means and beta for the
    # structure, whose sum over all taps is 1.
    weights: tuple[Array, ...]
    kind: Kind = "cosine"  # how vectors of channels differ; not used by DISTS

    def __post_init__(self) -> None:
        names = [tap for tap in self.taps if tap != IMAGE]
        self.network.check_values(names)


def parts(
    model: str | Path | Network | None = None,
    weights: str | Path | None = None,
    layers: Sequence[str] | Mapping[str, float] = (),
    *,
    metric: Metric | None = None,
    kind: Kind | None = None,
) -> Parts:
    """The parts of a metric; the arguments are those of `PerceptualDistance`."""
    if metric not in (*METRICS, None):
        raise Error(f"unknown metric {metric!r}; choose from {', '.join(METRICS)}")
    if kind not in (*KINDS, None):
        raise Error(f"unknown kind of difference {kind!r}; choose from {', '.join(KINDS)}")
    if layers and weights is not None:
        raise ModelError(
            f"{weights}: the weights are for the layers of LPIPS; omit the weights, or the layers {', '.join(layers)}"
        )
    if kind and weights is not None:
        raise Error(f"{weights}: the weights are for the difference of LPIPS or DISTS; omit the weights, or the kind {kind}")
    if metric == "features" and weights is not None:
        raise Error(f"{weights}: the metric features has no fitted weights; omit them, or the metric")
    if metric not in ("features", None) and (layers or kind):
        raise Error(f"{metric} has its own layers and difference; use the metric features to choose them")
    numbers = None if weights is None or metric == "features" else fitted.read(Path(weights), metric)
    network = numbers.network if numbers else None
    if model is not None or numbers is None:
        network = network_of(model)
    if network is None:
        raise ModelError(f"{weights}: has linear weights only; give their network too, which is torchvision/vgg16")
    network = trunk(network)
    if metric is None and numbers is None:
        metric = "features" if layers or kind or not is_reference(network) else "lpips"
    if metric == "features":
        return _features(network, layers, kind or "cosine")
    if numbers is None:
        assert metric is not None
        return _fitted(network, fitted.published(metric), metric)
    return _fitted(network, numbers, f"{weights}: {numbers.metric}")


def _features(network: Network, layers: Sequence[str] | Mapping[str, float], kind: Kind) -> Parts:
    architecture = network.architecture
    taps = tuple(dict.fromkeys(layers or last_of_blocks(architecture)))
    factors = layers if isinstance(layers, Mapping) else dict.fromkeys(taps, 1.0)
    for tap in taps:
        if not (np.isfinite(factors[tap]) and factors[tap] >= 0):
            raise Error(f"the weight of layer {tap} is {factors[tap]}; it must be 0 or more")
    weights = tuple(np.full(_channels(architecture, tap), factors[tap], np.float32) for tap in taps)
    return Parts("features", network, taps, weights, kind)


def _fitted(network: Network, numbers: Fitted, name: str) -> Parts:
    """LPIPS or DISTS. Raises ModelError if the network is not the one that the numbers are for."""
    architecture = network.architecture
    taps = (IMAGE, *BLOCKS) if numbers.metric == "dists" else BLOCKS
    if architecture.name == "vgg16" and {*BLOCKS} <= {*architecture.values}:
        channels = [3 if tap == IMAGE else _channels(architecture, tap) for tap in taps]
    else:
        channels = []
    if [weight.shape[-1] for weight in numbers.weights] != channels:
        raise ModelError(f"{name}: the weights are for a vgg16 of full width, not for {_described(architecture)}")
    if numbers.published and not is_reference(network):
        raise ModelError(
            f"{name} is defined on torchvision's VGG-16, and this network's convolutions are others; give torchvision/vgg16, "
            "or use the metric features"
        )
    if numbers.published or numbers.network:
        network = replace(network, preprocessing=PREPROCESSING[numbers.metric])
    weights = numbers.weights
    if numbers.metric == "dists":
        network = replace(network, architecture=replace(network.architecture, pooling="l2"))
        total = np.float32(sum(weight.sum(dtype=np.float64) for weight in weights))
        weights = tuple(weight / total for weight in weights)
    return Parts(numbers.metric, network, taps, weights)


def _described(architecture: Architecture) -> str:
    taps = last_of_blocks(architecture)
    return f"{architecture.name} with {[_channels(architecture, tap) for tap in taps]} channels"


def _channels(architecture: Architecture, value: str) -> int:
    return architecture.shape(value, 1, 32, 32)[1]


def last_of_blocks(architecture: Architecture) -> tuple[str, ...]:
    """The last convolution of each block that a network has."""
    return tuple({name[:5]: name for name in architecture.values if name.startswith("conv")}.values())


def network_of(model: str | Path | Network | None) -> Network:
    """A network itself, or that of a file or name as in `vgg.load`."""
    return model if isinstance(model, Network) else read(locate(model))


def trunk(network: Network) -> Network:
    """A network's convolutions, without batch normalisation, for images of any size from 32 on."""
    return headless(network).fold_batch_norm()


def headless(network: Network, last: str = "") -> Network:
    """A network without its head, up to a layer output; by default to its last one."""
    architecture = network.architecture
    architecture = replace(architecture, head=NONE, classes=0, last=last or architecture.last)
    parameters = {name: network.parameters[name] for name in architecture.parameters}
    return replace(network, architecture=architecture, parameters=parameters, labels=None)
