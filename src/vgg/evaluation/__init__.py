"""How good models are on labelled pictures: metrics, the paper's protocols, a report."""

from .run import Run, evaluate
from .summary import predictions, read_real, records

__all__ = ["Run", "evaluate", "predictions", "read_real", "records"]
