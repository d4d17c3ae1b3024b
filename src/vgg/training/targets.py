"""Training targets: labels, or the scores and values of teachers; and the loss against them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from ..arrays import Array
from ..heads import Output
from ..module import Module, Normalisation
from ..network import Network
from .cache import Cache
from .loader import Batch

Target = tuple[torch.Tensor, list[torch.Tensor]]  # scores [batch, classes], and the first teacher's matched values


@dataclass
class Targets:
    """Targets that are known in advance: labels as 0 and 1, or what teachers computed once for each view."""

    classes: int
    output: Output
    temperature: float  # divides the teachers' logits
    logits: list[Cache] = field(default_factory=list)  # of each teacher
    val_logits: list[Cache] = field(default_factory=list)  # of each teacher, if the validation images have no labels
    matched: list[Cache] = field(default_factory=list)  # values of the first teacher

    def __call__(self, batch: Batch, view: int) -> Target:
        """The targets of a training batch, on the CPU; the scores are the mean over the teachers."""
        matched = [torch.from_numpy(cache.rows(batch.indices, view)) for cache in self.matched]
        if self.logits:
            return self._mean_scores(self.logits, batch, view, self.temperature), matched
        labels = torch.from_numpy(batch.targets)
        return (labels if labels.ndim == 2 else functional.one_hot(labels, self.classes)).float(), matched

    def val(self, batch: Batch) -> Array:
        """The labels of validation images, as in a `Batch`; for unlabelled ones, the teachers' predictions."""
        if not self.val_logits:
            return batch.targets
        found = self._mean_scores(self.val_logits, batch, None)
        return np.asarray(found > 0.5 if self.output == "sigmoid" else found.argmax(1))

    def _mean_scores(self, caches: Sequence[Cache], batch: Batch, view: int | None, temperature: float = 1.0) -> torch.Tensor:
        logits = (torch.from_numpy(cache.rows(batch.indices, view)) for cache in caches)
        return torch.stack([scores(one / temperature, self.output) for one in logits]).mean(0)


class Teachers:
    """Teachers that compute the targets of each step's images as the student gets them: cropped, coloured and mixed.

    So the student never sees an image twice, and mixed images have the teachers' own scores; Beyer et al., arXiv 2106.05237,
    found both to matter. `matched` names values of the first teacher that are targets too.
    """

    def __init__(
        self, networks: Sequence[Network], matched: tuple[str, ...], device: torch.device, layout: torch.memory_format
    ) -> None:
        self._matched, self._layout, self._output = matched, layout, networks[0].architecture.output
        self._teachers = [
            (
                Normalisation(network.preprocessing).to(device),
                Module.of(network).to(device, memory_format=layout),  # type: ignore[call-overload]
            )
            for network in networks
        ]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, temperature: float) -> Target:
        """The targets for images float32 [batch, 3, side, side], RGB, 0..255; float32."""
        found, matched = [], list[torch.Tensor]()
        for number, (normalise, module) in enumerate(self._teachers):
            names = self._matched if number == 0 else ()
            values = module(normalise(images).contiguous(memory_format=self._layout), ("logits", *names))
            matched += [values[name].float() for name in names]
            found.append(scores(values["logits"].float() / temperature, self._output))
        return torch.stack(found).mean(0), matched


def by_class(logits: torch.Tensor, output: Output | None) -> torch.Tensor:
    """Logits with a column for each class: one logit for two classes is that of the second, and 0 that of the first."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if output == "binary" else logits


def scores(logits: torch.Tensor, output: Output | None) -> torch.Tensor:
    """The scores of the classes, 0..1, [batch, classes], as `vgg.predictions.scores`."""
    return logits.sigmoid() if output == "sigmoid" else by_class(logits, output).softmax(1)


def loss(logits: torch.Tensor, wanted: torch.Tensor, output: Output | None, smoothing: float = 0.0) -> torch.Tensor:
    """The cross-entropy with scores [batch, classes], the mean over images; of sigmoids, also over classes."""
    if output == "sigmoid":
        return functional.binary_cross_entropy_with_logits(logits, wanted * (1 - smoothing) + smoothing / 2)
    return functional.cross_entropy(by_class(logits, output), wanted, label_smoothing=smoothing)


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
    found = zip(names, accuracies, strict=True)
    return {"val_loss": loss, **{name: 0.0 if math.isnan(value) else 100 * value for name, value in found}}
