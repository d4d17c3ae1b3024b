"""Perceptual metrics: how different two images look to people, measured in the layer outputs of a VGG network.

LPIPS (R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, arXiv 1801.03924):
the output of the last convolution of each block, after the ReLU, scaled to length 1 over the channels of each position; the
squared differences are weighted, averaged over positions, and summed over the blocks. DISTS is described in
`vgg.perceptual.dists`. Their weights were fitted to human judgements and are in the package.
"""

from .distance import Comparison, PerceptualDistance, perceptual_distance
from .pairs import by_name, matched
from .parts import IMAGE, KINDS, METRICS, Metric, Parts, headless, network_of, parts, trunk
from .precision_recall import PrecisionRecall, feature_layer, precision_recall, set_features

__all__ = [
    "IMAGE", "KINDS", "METRICS", "Comparison", "Metric", "Parts", "PerceptualDistance", "PrecisionRecall", "by_name",
    "feature_layer", "headless", "matched", "network_of", "parts", "perceptual_distance", "precision_recall", "set_features",
    "trunk",
]  # fmt: skip
