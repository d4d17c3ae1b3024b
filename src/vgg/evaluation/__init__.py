"""Evaluation on labelled images: accuracy, calibration, comparison and localisation, with the paper's protocols."""

from .results import Evaluation, ModelResults, predictions
from .run import evaluate
from .summary import main_figure, read_real, records

__all__ = ["Evaluation", "ModelResults", "evaluate", "main_figure", "predictions", "read_real", "records"]
