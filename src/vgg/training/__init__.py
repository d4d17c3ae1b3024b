"""Training, fine-tuning and distillation in torch; the result is a Network in an ONNX file. See docs/training.md."""

from ..extras import require

require("training", "train", "torch", "kornia", "tensorboardX", "matplotlib")

from .cross_validation import CrossValidation, cross_validate  # noqa: E402
from .lr_finder import RateTest, find_rate  # noqa: E402
from .options import Options  # noqa: E402
from .recipes import RECIPES, Recipe  # noqa: E402
from .run import Outcome, train  # noqa: E402

__all__ = ["RECIPES", "CrossValidation", "Options", "Outcome", "RateTest", "Recipe", "cross_validate", "find_rate", "train"]
