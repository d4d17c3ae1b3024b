"""Quantization: integer weights and activations, linear layers of low rank, and the accuracy that they cost."""

from .quantizer import Quantizer, Scheme, fallbacks
from .tuning import Evaluator, LayerTrial, Trial, per_layer, speed, tune
from .weights import integers, noise, quantize_weights

__all__ = [
    "Evaluator", "LayerTrial", "Quantizer", "Scheme", "Trial", "fallbacks", "integers", "noise",
    "per_layer", "quantize_weights", "speed", "tune",
]  # fmt: skip
