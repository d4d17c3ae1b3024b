"""Training, fine-tuning and distillation in torch; the result is a Network in an ONNX file. docs/training.md tells how."""

from .loop import Outcome, train
from .recipes import RECIPES, Recipe
from .task import Options

__all__ = ["RECIPES", "Options", "Outcome", "Recipe", "train"]
