"""The measures of validation images, which decide the epoch that is kept."""

import math

import numpy as np
import torch
from torch.nn import functional

from ..arrays import Array
from ..evaluation.metrics import balanced_accuracy, macro_auc, recalls
from ..heads import Output
from .processes import Process
from .targets import by_class, scores

AUC_CLASSES = 100  # up to which the area under the ROC curve is measured, which takes the scores of all validation images


class Measures:
    """The measures of validation images, batch by batch.

    Args:
        classes: number of classes.
        output: of the network.
    """

    def __init__(self, classes: int, output: Output | None) -> None:
        self._classes, self._output = classes, output
        self._sums, self._recalls = np.zeros((3, 2)), np.zeros((classes, 2))
        width = classes if classes <= AUC_CLASSES else 0
        self._truth, self._scores = [np.zeros((0, width), np.bool_)], [np.zeros((0, width), np.float32)]

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Measure some images; see `measured`."""
        self._sums += measured(logits, targets, self._output)
        found, truth = scores(logits, self._output).cpu().numpy(), targets.cpu().numpy()
        if self._output != "sigmoid":
            self._recalls += recalls(truth, found.argmax(1), self._classes)
            truth = truth[:, None] == np.arange(self._classes)
        if self._classes <= AUC_CLASSES:
            self._truth.append(truth)
            self._scores.append(found)

    def row(self, process: Process) -> dict[str, float]:
        """The measures by name over the images of all processes, as in log.csv; all but the loss in percent.

        Besides those of `measures`, they are `val_balanced`, the mean recall of the classes, if an image has one class;
        `val_auc`, the area under the ROC curve, the mean over the classes against the rest, of up to 100 classes; and of two
        classes `val_sensitivity` and `val_specificity`, the recalls of the second and of the first one. What is undefined,
        without images of a class, is nan.
        """
        row, counts = measures(process.sum(self._sums), self._output), process.sum(self._recalls)
        if self._output != "sigmoid":
            row["val_balanced"] = 100 * balanced_accuracy(counts)
        if self._classes <= AUC_CLASSES:
            truth, found = (process.gather(np.concatenate(parts)) for parts in (self._truth, self._scores))
            row["val_auc"] = 100 * macro_auc(truth, found, exclusive=self._output != "sigmoid")
        if self._classes == 2 and self._output != "sigmoid":
            specificity, sensitivity = (100 * right / count if count else math.nan for right, count in counts.tolist())
            row |= {"val_sensitivity": sensitivity, "val_specificity": specificity}
        return row


def measured(logits: torch.Tensor, targets: torch.Tensor, output: Output | None) -> Array:
    """The measures of some validation images, each as a sum and what to divide it by, float64 [3, 2].

    They are the loss, and top-1 and top-5 accuracy. If images have several labels, they are the loss, F1 over all labels of all
    images, and the share of images with exactly the right labels.

    Args:
        logits: float32 [batch, units].
        targets: int64 [batch], or bool [batch, classes] if images have several labels.
        output: of the network.
    """
    count = len(logits)
    if output == "sigmoid":
        chosen = logits > 0  # a score above 0.5
        total = functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1).sum()
        both, either = 2 * (chosen & targets).sum(), chosen.sum() + targets.sum()
        pairs = [(total, count), (both, either), ((chosen == targets).all(1).sum(), count)]
    else:
        logits = by_class(logits, output)
        correct = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
        total = functional.cross_entropy(logits, targets, reduction="sum")
        pairs = [(total, count), (correct[:, 0].sum(), count), (correct.sum(), count)]
    return torch.tensor(pairs, dtype=torch.float64).numpy()


def measures(sums: Array, output: Output | None) -> dict[str, float]:
    """The measures by name from the sum of `measured`; accuracies in percent."""
    names = ("val_f1", "val_exact") if output == "sigmoid" else ("val_top1", "val_top5")
    loss, *accuracies = (part / whole if whole else math.nan for part, whole in sums.tolist())
    return {"val_loss": loss, **{name: 100 * value for name, value in zip(names, accuracies, strict=True)}}
