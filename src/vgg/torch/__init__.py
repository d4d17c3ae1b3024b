"""Losses and backbones for training in torch.

    loss = vgg.torch.FeatureLoss.preset("esrgan", "torchvision/vgg19")
    loss(generated, target).mean().backward()

Images are float tensors [batch, 3, height, width], RGB, 0..1, of 32x32 pixels or more; the network's preprocessing is applied
to them. A loss returns one number for each image, float32 [batch].

The networks of losses are fixed: they always compute in evaluation mode, their parameters are buffers that don't learn, move
with `.to(device)`, and are not in the state dictionary.
"""

from ..extras import require

require("vgg.torch", "torch", "torch")

from .backbone import Backbone, backbone  # noqa: E402
from .losses import PRESETS, FeatureLoss, StyleLoss  # noqa: E402
from .metrics import PerceptualLoss  # noqa: E402
from .terms import Contextual, Difference, Gram, MeanVariance, Term, TotalVariation, gram  # noqa: E402

__all__ = [
    "PRESETS", "Backbone", "Contextual", "Difference", "FeatureLoss", "Gram", "MeanVariance", "PerceptualLoss", "StyleLoss",
    "Term", "TotalVariation", "backbone", "gram",
]  # fmt: skip
