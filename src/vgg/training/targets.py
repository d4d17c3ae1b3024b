"""Training targets: labels, or the scores and values of teachers; and the loss against them."""

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


def loss(
    logits: torch.Tensor,
    wanted: torch.Tensor,
    output: Output | None,
    smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The cross-entropy with scores, the mean over images; of sigmoids, also over classes.

    Args:
        logits: float32 [batch, units].
        wanted: float32 [batch, classes], the target scores.
        output: of the network.
        smoothing: share of the target scores that is spread over the classes.
        weights: of the classes, see `balance.loss_weights`; by default, all are 1.
    """
    if output == "sigmoid":
        smoothed = wanted * (1 - smoothing) + smoothing / 2
        each = None if weights is None else wanted * weights[1] + (1 - wanted) * weights[0]
        return functional.binary_cross_entropy_with_logits(logits, smoothed, each)
    if weights is None:
        return functional.cross_entropy(by_class(logits, output), wanted, label_smoothing=smoothing)
    losses = functional.cross_entropy(by_class(logits, output), wanted, label_smoothing=smoothing, reduction="none")
    return (losses * (wanted @ weights)).mean()
