"""Training targets: labels, or the scores and values of teachers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from ..arrays import Array
from ..module import Module, Normalisation
from ..network import Network
from .cache import Cache
from .loader import Batch

Target = tuple[torch.Tensor, list[torch.Tensor]]  # scores [batch, classes], and the first teacher's matched values


@dataclass
class Targets:
    """Targets that are known in advance: one-hot labels, or what teachers computed once for each view."""

    classes: int
    temperature: float  # divides the teachers' logits
    logits: list[Cache] = field(default_factory=list)  # of each teacher
    val_logits: list[Cache] = field(default_factory=list)  # of each teacher, if the validation images have no labels
    matched: list[Cache] = field(default_factory=list)  # values of the first teacher

    def __call__(self, batch: Batch, view: int) -> Target:
        """The targets of a training batch, on the CPU; the scores are the mean over the teachers."""
        matched = [torch.from_numpy(cache.rows(batch.indices, view)) for cache in self.matched]
        if not self.logits:
            return functional.one_hot(torch.from_numpy(batch.targets), self.classes).float(), matched
        return _mean_scores(self.logits, batch, view, self.temperature), matched

    def val(self, batch: Batch) -> Array:
        """The true classes of validation images, int64 [batch]; for unlabelled ones, the teachers' predictions."""
        return np.asarray(_mean_scores(self.val_logits, batch, None).argmax(1)) if self.val_logits else batch.targets


def _mean_scores(caches: Sequence[Cache], batch: Batch, view: int | None, temperature: float = 1.0) -> torch.Tensor:
    logits = (torch.from_numpy(cache.rows(batch.indices, view)) for cache in caches)
    return torch.stack([(one / temperature).softmax(1) for one in logits]).mean(0)


class Teachers:
    """Teachers that compute the targets of each step's images as the student gets them: cropped, coloured and mixed.

    So the student never sees an image twice, and mixed images have the teachers' own scores; Beyer et al., arXiv 2106.05237,
    found both to matter. `matched` names values of the first teacher that are targets too.
    """

    def __init__(
        self, networks: Sequence[Network], matched: tuple[str, ...], device: torch.device, layout: torch.memory_format
    ) -> None:
        self._matched, self._layout = matched, layout
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
        scores, matched = [], list[torch.Tensor]()
        for number, (normalise, module) in enumerate(self._teachers):
            names = self._matched if number == 0 else ()
            values = module(normalise(images).contiguous(memory_format=self._layout), ("logits", *names))
            matched += [values[name].float() for name in names]
            scores.append((values["logits"].float() / temperature).softmax(1))
        return torch.stack(scores).mean(0), matched
