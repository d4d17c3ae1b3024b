"""The optimiser, its learning rates, and the moving average of the parameters."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..module import Module
from ..module_layers import BatchNorm
from .recipes import Recipe

# Newton and Schulz's iteration: coefficients of Jordan et al. 2024, number of iterations of airbench94_muon.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 3
PLAIN, HIDDEN, SCALE_FREE = range(3)  # kinds of parameters for Muon: SGD's; hidden layers'; those that batch norm follows


def make_optimizer(module: Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser.

    Parameters are grouped by block, counted from the last, by whether they have weight decay, and by their kind.
    """
    blocks = list(dict.fromkeys(block for block, _ in module.groups()))[::-1]
    kinds = _kinds(module) if recipe.optimizer == "muon" else {}
    groups: dict[tuple[int, bool, int], list[torch.Tensor]] = {}
    for block, layer in module.groups():
        for parameter in layer.parameters():
            decayed = recipe.decay_all or parameter.ndim > 1
            groups.setdefault((blocks.index(block), decayed, kinds.get(parameter, PLAIN)), []).append(parameter)
    listed = [
        {"params": parameters, "depth": depth, "weight_decay": recipe.weight_decay if decayed else 0.0, "kind": kind}
        for (depth, decayed, kind), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(listed, recipe.lr)
    if recipe.optimizer == "muon":
        return Muon(listed, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)
    return torch.optim.SGD(listed, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)


def _kinds(module: Module) -> dict[torch.Tensor, int]:
    """The weights of all layers but the first and the last one, each with its kind."""
    weights = [layer.weight for layer in module if isinstance(layer, nn.Conv2d | nn.Linear)]
    scale_free = {
        layer.weight for layer, after in pairwise(module) if isinstance(after, BatchNorm) and hasattr(layer, "weight")
    }
    return {weight: SCALE_FREE if weight in scale_free else HIDDEN for weight in weights[1:-1]}


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, github.com/KellerJordan/Muon) for the weights of hidden layers, SGD for all other parameters.

    A weight is a matrix [units, inputs], of a convolution [channels, all values of a filter]. It is changed by its momentum,
    orthogonalised: all singular values become about 1, so the learning rate is the change of the matrix in its spectral norm.

    As in airbench94_muon, a weight that batch normalisation follows is first scaled to the Frobenius norm sqrt(channels),
    which does not change the network's output. So its learning rate is the relative change in a step, and it needs no weight
    decay. Other weights keep their scale and have weight decay as in AdamW, lr * weight_decay.

    torch.optim.Muon takes only matrices, computes in bfloat16, and requires torch 2.9.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float, *, nesterov: bool) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the parameters by their gradients."""
        for group in self.param_groups:
            for value in group["params"] if group["lr"] else ():
                if value.grad is not None:
                    self._change(value, value.grad, group)

    def _change(self, value: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        lr, momentum, decay, kind = (group[name] for name in ("lr", "momentum", "weight_decay", "kind"))
        if kind == PLAIN:
            gradient = gradient.add(value, alpha=decay)
        state = self.state[value]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(value)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        change = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        if kind == SCALE_FREE:
            value.mul_(len(value) ** 0.5 / value.norm().clamp(min=1e-7))
        elif kind == HIDDEN:
            value.mul_(1 - lr * decay)
        value.sub_(change if kind == PLAIN else orthogonalised(change.flatten(1)).reshape(value.shape), alpha=lr)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with the singular vectors of the given one, and singular values near 1, by Newton and Schulz's iteration.

    All iterations are polynomials of one small matrix, wide @ wide.T, so they commute and are multiplied before they are
    applied; that takes half of the time, since the filters of a convolution have many more values than channels.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    linear, cubic, quintic = QUINTIC
    square, product = wide @ wide.T, torch.eye(len(wide), device=wide.device, dtype=wide.dtype)
    one = product
    for _ in range(ITERATIONS):
        factor = linear * one + cubic * square + quintic * square @ square
        product, square = factor @ product, factor @ square @ factor
    found: torch.Tensor = product @ wide
    return found if matrix.shape[0] <= matrix.shape[1] else found.T


def make_average(module: Module, recipe: Recipe) -> Any:
    """An AveragedModel of the module, also of batch normalisation's means and variances; None if the recipe has none.

    After n steps the decay is at most (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage, so the average
    follows the first steps instead of keeping the random start.
    """
    if not recipe.ema:
        return None

    def update(averages: Any, values: Any, count: torch.Tensor | int) -> None:
        decay = min(recipe.ema, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averages, values, count)  # type: ignore[no-untyped-call]

    return AveragedModel(module, multi_avg_fn=update, use_buffers=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, epoch: int, recipe: Recipe) -> None:
    """Set the learning rate of each block: deeper ones, counted from the last, thaw later and learn more slowly.

    Weights of the kinds that Muon changes learn at `muon_rate` times that rate.
    """
    for group in optimizer.param_groups:
        thawed = epoch >= group["depth"] * recipe.thaw
        scale = recipe.muon_rate if group["kind"] != PLAIN else 1.0
        group["lr"] = lr * scale / recipe.rate_decay ** group["depth"] if thawed else 0.0


def rate(recipe: Recipe, epoch: float, validations: Sequence[float]) -> float:
    """The learning rate of the last block by a recipe's schedule.

    Args:
        recipe: the schedule.
        epoch: number of epochs so far, with the fraction of the current one.
        validations: validation accuracy after each epoch so far.
    """
    if epoch < recipe.warm_up:
        return recipe.lr * epoch / recipe.warm_up if epoch else recipe.lr / 1000
    share = (epoch - recipe.warm_up) / max(recipe.epochs - recipe.warm_up, 1e-9)
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * share)) / 2
    if recipe.schedule == "linear":
        return recipe.lr * (1 - share)
    if recipe.schedule == "steps":
        return recipe.lr / 10.0 ** sum(int(epoch) >= round(share * recipe.epochs) for share in recipe.drops)
    drops, waited, best = 0, 0, float("-inf")
    for accuracy in validations:
        waited, best = (0, accuracy) if accuracy > best else (waited + 1, best)
        if waited == recipe.plateau and drops < 3:
            drops, waited = drops + 1, 0
    return recipe.lr / 10.0**drops
