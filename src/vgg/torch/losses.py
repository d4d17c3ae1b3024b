"""Losses: sums of terms on the layer outputs of a VGG, presets from papers, and style."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import Error, ModelError
from ..network import Network
from ..perceptual import network_of
from .pairs import PairLoss
from .terms import Difference, Found, Gram, MeanVariance, Term

BLOCKS = range(1, 6)


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


class FeatureLoss(PairLoss):
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
        if not terms:
            raise Error("a loss needs one term or more")
        names = [name for term in terms for name in term.layers]
        aligned = any(isinstance(term, Difference) for term in terms)
        super().__init__(network_of(model), names, aligned, signed, recompute)
        self.terms = tuple(terms)

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

    def compare(self, ours: Found, theirs: Found) -> torch.Tensor:
        """The sum of the terms."""
        return torch.stack([term(ours, theirs) for term in self.terms]).sum(0)


class StyleLoss(FeatureLoss):
    """Difference of style of two images: the squared difference of the Gram matrices of their channels.

    L. Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016: the first convolution of each of
    the five blocks, after the ReLU, with equal weights; of a backbone, those that it has. The images' sizes may differ.

    Args:
        model: see `vgg.perceptual.PerceptualDistance`.
    """

    def __init__(self, model: str | Path | Network | None = None) -> None:
        network = network_of(model)
        names = [name for name in network.architecture.values if name.startswith("conv") and name.endswith("_1")]
        super().__init__(network, [Gram(dict.fromkeys(names, 1 / (4 * len(names))))])
