"""Smaller networks: weights, and activations too, as integers; linear layers of low rank; and what that costs."""

from .calibration import Pictures
from .quantizer import Configuration, Progress, Quantizer, ladder
from .tuning import Judge, LayerTrial, Trial, per_layer, speed, tune
from .weights import integers, noise, quantize_weights

__all__ = [
    "Configuration", "Judge", "LayerTrial", "Pictures", "Progress", "Quantizer", "Trial", "integers", "ladder", "noise",
    "per_layer", "quantize_weights", "speed", "tune",
]  # fmt: skip
