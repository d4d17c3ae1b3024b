"""Perceptual metrics with gradients: those of `vgg.perceptual`, from the same parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..engines import Kind
from ..network import Network
from ..perceptual import Metric
from ..perceptual import parts as parts_of
from ..perceptual.dists import C1, C2
from .pairs import PairLoss
from .terms import Found, wide

EPSILON = 1e-10  # added to a length, as in LPIPS


class PerceptualLoss(PairLoss):
    """Perceptual distance of two images, LPIPS, DISTS or others: `vgg.perceptual.PerceptualDistance` with gradients.

    Args:
        model: see `vgg.perceptual.PerceptualDistance`.
        weights: see `vgg.perceptual.PerceptualDistance`.
        metric: see `vgg.perceptual.PerceptualDistance`.
        layers: see `vgg.perceptual.PerceptualDistance`.
        kind: see `vgg.perceptual.PerceptualDistance`.
        signed: see `FeatureLoss`.
        recompute: see `FeatureLoss`.

    Attributes:
        metric: the metric's name.
        taps: names of the compared layer outputs.

    Raises:
        ModelError: as `vgg.perceptual.PerceptualDistance`.
        Error: arguments contradict each other.
    """

    def __init__(
        self,
        model: str | Path | Network | None = None,
        weights: str | Path | None = None,
        *,
        metric: Metric | None = None,
        layers: Sequence[str] | Mapping[str, float] = (),
        kind: Kind | None = None,
        signed: bool = False,
        recompute: bool = False,
    ) -> None:
        found = parts_of(model, weights, layers, metric=metric, kind=kind)
        super().__init__(found.network, found.taps, True, signed, recompute)
        self.metric, self.taps, self.kind = found.metric, found.taps, found.kind
        for tap, weight in zip(found.taps, found.weights, strict=True):
            self.register_buffer(tap, torch.tensor(weight), persistent=False)

    def compare(self, ours: Found, theirs: Found) -> torch.Tensor:
        """The distance of each pair."""
        compare = _statistics if self.metric == "dists" else self._positions
        return torch.stack([compare(wide(ours[tap]), wide(theirs[tap]), wide(self.get_buffer(tap))) for tap in self.taps]).sum(
            0
        )

    def _positions(self, one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.kind == "cosine":
            one, other = _directions(one), _directions(other)
        difference = (one - other).abs() if self.kind == "l1" else (one - other).square()
        return torch.einsum("nchw,c->nhw", difference, weight).mean((1, 2))


def _directions(value: torch.Tensor) -> torch.Tensor:
    # The gradient of this norm is 0 where all channels are 0; that of a square root would be NaN.
    length: torch.Tensor = torch.linalg.vector_norm(value, dim=1, keepdim=True)
    return value / (length + EPSILON)


def _statistics(one: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One stage of DISTS with alpha and beta [2, channels]; see `vgg.perceptual.dists.distances`."""
    (variance, mean), (other_variance, other_mean) = (torch.var_mean(value, (2, 3), correction=0) for value in (one, other))
    texture = (mean - other_mean).square() / (mean.square() + other_mean.square() + C1)
    # The variance of the difference is that of both less twice their covariance, without its rounding errors.
    structure = (one - other).var((2, 3), correction=0) / (variance + other_variance + C2)
    distance: torch.Tensor = texture @ weight[0] + structure @ weight[1]
    return distance
