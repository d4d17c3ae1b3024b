"""The optimiser, its learning rates, and the moving average of the parameters."""

import math
from collections.abc import Sequence

import torch

from ..module import Module
from .recipes import Recipe


def make_optimizer(module: Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser. Parameters are grouped by block, counted from the last, and by whether they have weight decay."""
    blocks = list(dict.fromkeys(block for block, _ in module.groups()))[::-1]
    groups: dict[tuple[int, bool], list[torch.Tensor]] = {}
    for block, layer in module.groups():
        for parameter in layer.parameters():
            decayed = recipe.decay_all or parameter.ndim > 1
            groups.setdefault((blocks.index(block), decayed), []).append(parameter)
    listed = [
        {"params": parameters, "depth": depth, "weight_decay": recipe.weight_decay if decayed else 0.0}
        for (depth, decayed), parameters in groups.items()
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(listed, recipe.lr)
    return torch.optim.SGD(listed, recipe.lr, recipe.momentum, nesterov=recipe.nesterov)


def set_rate(optimizer: torch.optim.Optimizer, lr: float, epoch: int, recipe: Recipe) -> None:
    """Set the learning rate of each block: deeper ones, counted from the last, thaw later and learn more slowly."""
    for group in optimizer.param_groups:
        thawed = epoch >= group["depth"] * recipe.thaw
        group["lr"] = lr / recipe.rate_decay ** group["depth"] if thawed else 0.0


def rate(recipe: Recipe, epoch: float, validations: Sequence[float]) -> float:
    """The learning rate of the last block by a recipe's schedule.

    Args:
        recipe: the schedule.
        epoch: number of epochs so far, with the fraction of the current one.
        validations: validation accuracy after each epoch so far.
    """
    if epoch < recipe.warm_up:
        return recipe.lr * epoch / recipe.warm_up if epoch else recipe.lr / 1000
    if recipe.schedule == "cosine":
        return recipe.lr * (1 + math.cos(math.pi * (epoch - recipe.warm_up) / max(recipe.epochs - recipe.warm_up, 1e-9))) / 2
    if recipe.schedule == "steps":
        return recipe.lr / 10.0 ** sum(int(epoch) >= round(share * recipe.epochs) for share in recipe.drops)
    drops, waited, best = 0, 0, float("-inf")
    for accuracy in validations:
        waited, best = (0, accuracy) if accuracy > best else (waited + 1, best)
        if waited == recipe.plateau and drops < 3:
            drops, waited = drops + 1, 0
    return recipe.lr / 10.0**drops
