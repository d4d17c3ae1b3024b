"""Losses: sums of terms on the layer outputs of a VGG, presets from papers, LPIPS and style."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import Error, ModelError
from ..network import Network
from ..perceptual import network_of, parts
from .terms import IMAGE, Difference, Gram, MeanVariance, Term, wide
from .values import Values

BLOCKS = range(1, 6)
EPSILON = 1e-10  # added to a length, as in LPIPS


@dataclass(frozen=True)
class Preset:
    """The loss of a paper."""

    architecture: str  # of its network, for which its layers and weights are meant
    terms: tuple[Term, ...]
    source: str


PRESETS = {
    "johnson": Preset(
        "vgg16",
        (
            Difference({"conv3_3": 1.0}),
            Gram({"conv1_2": 5 / 64**2, "conv2_2": 5 / 128**2, "conv3_3": 5 / 256**2, "conv4_3": 5 / 512**2}),
        ),
        "J. Johnson et al., ECCV 2016, section 4.1: style transfer; the authors' program has weights 1 and 5, and a mean over "
        "the entries of a Gram matrix",
    ),
    "johnson-super-resolution": Preset(
        "vgg16", (Difference({"conv2_2": 1.0}),), "J. Johnson et al., ECCV 2016, section 4.2",
    ),
    "srgan-vgg22": Preset(
        "vgg19", (Difference({"conv2_2": 1 / 12.75**2}),),
        "C. Ledig et al., CVPR 2017, equation 5: after the ReLU, layer outputs divided by 12.75",
    ),
    "srgan-vgg54": Preset(
        "vgg19", (Difference({"conv5_4": 1 / 12.75**2}),),
        "C. Ledig et al., CVPR 2017, equation 5: after the ReLU, layer outputs divided by 12.75",
    ),
    "esrgan": Preset(
        "vgg19", (Difference({"conv5_4.raw": 1.0}, "l1"),), "X. Wang et al., ECCV Workshops 2018, section 3.3: before the ReLU",
    ),
    "real-esrgan": Preset(
        "vgg19",
        (Difference({"conv1_2.raw": 0.1, "conv2_2.raw": 0.1, "conv3_4.raw": 1, "conv4_4.raw": 1, "conv5_4.raw": 1}, "l1"),),
        "X. Wang et al., ICCV Workshops 2021, section 4.1: before the ReLU",
    ),
    "pix2pixhd": Preset(
        "vgg19", (Difference({f"conv{block}_1": 2.0 ** (block - 6) if block < 5 else 1.0 for block in BLOCKS}, "l1"),),
        "T.-C. Wang et al., CVPR 2018, and its authors' program: weights 1/32, 1/16, 1/8, 1/4, 1",
    ),
    "gatys-style": Preset(
        "vgg19", (Gram({f"conv{block}_1": 1 / 20 for block in BLOCKS}),), "L. Gatys et al., CVPR 2016, equations 4 and 5",
    ),
    "adain-style": Preset(
        "vgg19", (MeanVariance({f"conv{block}_1": 1.0 for block in range(1, 5)}),),
        "X. Huang and S. Belongie, ICCV 2017, equation 13",
    ),
}  # fmt: skip


class FeatureLoss(nn.Module):
    """A weighted sum of terms on the layer outputs of a VGG, which are computed once for all terms.

        FeatureLoss("vgg19.onnx", [Difference({"conv5_4.raw": 1.0}, "l1"), Gram({"conv3_1": 100.0}), TotalVariation(0.1)])

    Args:
        model: any VGG: a file or name as in `vgg.load`, or a Network.
        terms: see `vgg.torch.Difference`, `Gram`, `MeanVariance`, `Contextual` and `TotalVariation`.
        signed: images and targets have values of -1..1, as generators with a tanh return them, not 0..1.
        recompute: compute the layer outputs again in the backward pass instead of keeping them. This needs a fraction of the
            memory and a third more time.

    Raises:
        ModelError: the file can't be read, or the network has no such layer output.
        Error: there are no terms.
    """

    def __init__(
        self, model: str | Path | Network, terms: Sequence[Term], *, signed: bool = False, recompute: bool = False
    ) -> None:
        super().__init__()
        self.terms, self.signed = tuple(terms), signed
        if not self.terms:
            raise Error("a loss needs one term or more")
        names = [name for term in self.terms for name in term.layers if name != IMAGE]
        self.values = Values(network_of(model), names, recompute) if names else None

    @classmethod
    def preset(cls, name: str, model: str | Path | Network, *, signed: bool = False, recompute: bool = False) -> "FeatureLoss":
        """The loss of a paper; `vgg.torch.PRESETS` has their terms and sources.

        Args:
            name: `johnson`, `johnson-super-resolution`, `srgan-vgg22`, `srgan-vgg54`, `esrgan`, `real-esrgan`, `pix2pixhd`,
                `gatys-style` or `adain-style`.
            model: a network of the preset's architecture, VGG-16 for Johnson's and VGG-19 for the others, also with batch
                normalisation.
            signed: see `FeatureLoss`.
            recompute: see `FeatureLoss`.

        Raises:
            ModelError: the network has another architecture.
            Error: the preset is unknown.
        """
        if name not in PRESETS:
            raise Error(f"unknown preset {name!r} of a loss; choose from {', '.join(PRESETS)}")
        preset = PRESETS[name]
        network = network_of(model)
        if network.architecture.name.removesuffix("-bn") != preset.architecture:
            raise ModelError(f"the loss {name!r} is defined on {preset.architecture}, not on {network.architecture.name}")
        return cls(network, preset.terms, signed=signed, recompute=recompute)

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each image.

        Args:
            images: [batch, 3, height, width], 0..1, or -1..1 with `signed`.
            targets: the same; as many images, or one for all. Only style and contextual terms take another size.

        Returns:
            float32 [batch], 0 or more.

        Raises:
            Error: the tensors are no batches of RGB images, or their sizes differ and a term compares positions.
        """
        self._check(images, targets)
        if self.signed:
            images, targets = (images + 1) / 2, (targets + 1) / 2
        ours, theirs = {IMAGE: images}, {IMAGE: targets}
        if self.values is not None and images.shape[2:] == targets.shape[2:] and targets.requires_grad == images.requires_grad:
            found = self.values(torch.cat([images, targets]))
            ours |= {name: value[: len(images)] for name, value in found.items()}
            theirs |= {name: value[len(images) :] for name, value in found.items()}
        elif self.values is not None:
            ours |= self.values(images)
            with torch.set_grad_enabled(torch.is_grad_enabled() and targets.requires_grad):
                theirs |= self.values(targets)
        with torch.autocast(images.device.type, enabled=False):
            return torch.stack([term(ours, theirs) for term in self.terms]).sum(0)

    def _check(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        for value in (images, targets):
            if value.ndim != 4 or value.shape[1] != 3 or not value.is_floating_point():
                raise Error(f"images must be float [batch, 3, height, width], not {value.dtype} {list(value.shape)}")
        if len(targets) not in (1, len(images)):
            raise Error(f"{len(targets)} targets for {len(images)} images; give equally many, or one for all")
        if images.shape[2:] != targets.shape[2:] and any(isinstance(term, Difference) for term in self.terms):
            sizes = f"{list(images.shape[2:])} and {list(targets.shape[2:])}"
            raise Error(f"images and targets differ in size, {sizes}; resize one of them")


class PerceptualLoss(nn.Module):
    """Perceptual distance of two images: `vgg.perceptual.PerceptualDistance` with gradients.

    Args:
        model: see `vgg.perceptual.PerceptualDistance`.
        weights: see `vgg.perceptual.PerceptualDistance`.
        layers: see `vgg.perceptual.PerceptualDistance`.
    """

    def __init__(
        self, model: str | Path | Network | None = None, weights: str | Path | None = None, layers: Sequence[str] = ()
    ) -> None:
        super().__init__()
        distance = parts(model, weights, layers)
        self.values = Values(distance.network, distance.taps)
        for tap, weight in zip(distance.taps, distance.weights, strict=True):
            self.register_buffer(tap, torch.tensor(weight)[:, None, None], persistent=False)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """The distance of each pair, [batch], 0 or more, of images [batch, 3, height, width], 0..1."""
        found = self.values(torch.cat([first, second]))
        with torch.autocast(first.device.type, enabled=False):
            return torch.stack([self._part(tap, value) for tap, value in found.items()]).sum(0)

    def _part(self, tap: str, value: torch.Tensor) -> torch.Tensor:
        weight, value = self.get_buffer(tap), wide(value)
        # The gradient of this norm is 0 where all channels are 0; that of a square root would be NaN.
        length = torch.linalg.vector_norm(value, dim=1, keepdim=True)
        one, other = (value / (length + EPSILON)).chunk(2)
        distance: torch.Tensor = (weight * (one - other).square()).sum(1)
        return distance.mean((1, 2))


class StyleLoss(FeatureLoss):
    """Difference of style of two images: the squared difference of the Gram matrices of their channels.

    L. Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016: the first convolution of each of
    the five blocks, after the ReLU, with equal weights; of a backbone, those that it has. The images' sizes may differ.

    Args:
        model: see `vgg.perceptual.PerceptualDistance`.
    """

    def __init__(self, model: str | Path | Network | None = None) -> None:
        network = parts(model).network
        names = [name for name in network.architecture.values if name.startswith("conv") and name.endswith("_1")]
        super().__init__(network, [Gram(dict.fromkeys(names, 1 / (4 * len(names))))])
