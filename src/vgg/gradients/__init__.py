"""Gradients of a network's logits at any layer output and at its input, and the head at each position, without torch."""

from .backward import INPUT, gradient, needed
from .linear import at_positions

__all__ = ["INPUT", "at_positions", "gradient", "needed"]
