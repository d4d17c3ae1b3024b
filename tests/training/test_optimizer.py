"""Optimisers, learning rates of groups, and the moving average, held to their formulas in float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from vgg.architectures import Architecture
from vgg.module import Module
from vgg.training import RECIPES
from vgg.training.optimizer import ITERATIONS, QUINTIC, make_average, make_optimizer, orthogonalised, set_rate
from vgg.training.recipes import changed

RECIPE = changed(RECIPES["cifar"], ["optimizer=muon", "lr=0.1", "muon_rate=0.5", "weight_decay=0.01"])


def network(name="vgg11-bn", head="gap"):
    torch.manual_seed(0)
    module = Module(Architecture(name, 5, 1 / 16, 32, head))
    module.initialise()
    return module


def by_svd(matrix):
    """What Newton and Schulz's iteration makes of a matrix: its singular vectors, and the polynomial of its singular values."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(ITERATIONS):
        values = sum(factor * values**power for factor, power in zip(QUINTIC, (1, 3, 5), strict=True))
    return left * values @ right


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16)])
def test_the_iteration_makes_singular_values_equal(shape):
    matrix = np.random.default_rng(0).normal(size=shape)
    found = orthogonalised(torch.from_numpy(matrix).float()).numpy()
    np.testing.assert_allclose(found, by_svd(matrix), rtol=0, atol=2e-5)
    before, after = (np.linalg.svd(one, compute_uv=False) for one in (matrix, found))
    assert after.max() / after.min() < before.max() / before.min()
    assert after.max() < 1.3
    assert torch.isfinite(orthogonalised(torch.zeros(shape))).all()


@pytest.mark.parametrize(("name", "head"), [("vgg11-bn", "gap"), ("vgg11", "average, 12 relu, classes")])
def test_muon_changes_hidden_weights_as_published_and_all_others_as_sgd_does(name, head):
    module = network(name, head)
    module.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(module, RECIPE)
    values = {name: value.detach().double().numpy().copy() for name, value in module.named_parameters()}
    momenta = {name: np.zeros_like(value) for name, value in values.items()}
    weights = [name for name, value in values.items() if value.ndim > 1]
    rng = np.random.default_rng(0)
    for lr in (0.1, 0.06, 0.02):
        set_rate(optimizer, lr, 0, RECIPE)
        for name, parameter in module.named_parameters():
            gradient = rng.normal(size=values[name].shape)
            parameter.grad = torch.from_numpy(gradient).float()
            if name in weights[1:-1]:
                momenta[name] = 0.9 * momenta[name] + gradient
                change = by_svd((gradient + 0.9 * momenta[name]).reshape(len(gradient), -1)).reshape(gradient.shape)
                if "bn" in "".join(values):  # each convolution has one after it
                    values[name] *= len(gradient) ** 0.5 / np.linalg.norm(values[name])
                else:
                    values[name] *= 1 - lr / 2 * 0.01
                values[name] -= lr / 2 * change
            else:
                gradient = gradient + (0.01 * values[name] if values[name].ndim > 1 else 0)
                momenta[name] = 0.9 * momenta[name] + gradient
                values[name] -= lr * (gradient + 0.9 * momenta[name])
        optimizer.step()
        assert all(parameter.grad is not None for parameter in module.parameters())
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), values[name], rtol=0, atol=2e-5, err_msg=name)


def test_muon_resumes_bit_for_bit():
    def step(module, optimizer, number):
        rng = torch.Generator().manual_seed(number)
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        set_rate(optimizer, 0.1, 0, RECIPE)
        optimizer.step()

    whole = network()
    optimizer = make_optimizer(whole, RECIPE)
    for number in range(2):
        step(whole, optimizer, number)
    resumed = copy.deepcopy(whole)
    other = make_optimizer(resumed, RECIPE)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for module, one in ((whole, optimizer), (resumed, other)):
        step(module, one, 2)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_muon_lets_frozen_layers_and_layers_that_have_not_thawed_be():
    module = network()
    module.freeze(module.end_of("conv2")[0])
    recipe = replace(RECIPE, thaw=1)
    optimizer = make_optimizer(module, recipe)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    set_rate(optimizer, 0.1, 1, recipe)  # the head and the block before it
    optimizer.step()
    moved = {name.split("_")[0] for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == {"fc8.weight", "fc8.bias", "conv5", "bn5"}


def test_only_weights_decay():
    for optimizer in ("sgd", "adamw", "muon"):
        groups = make_optimizer(network(), replace(RECIPE, optimizer=optimizer)).param_groups
        decayed = {group["weight_decay"] > 0 for group in groups for value in group["params"] if value.ndim == 1}
        assert decayed == {False}
        assert {group["weight_decay"] for group in groups for value in group["params"] if value.ndim > 1} == {0.01}
        total = sum(len(group["params"]) for group in groups)
        assert total == len(list(network().parameters()))


@pytest.mark.parametrize("decay", [0.999, 0.15])
def test_the_moving_average_follows_the_first_steps(decay):
    module = network()
    average = make_average(module, replace(RECIPE, ema=decay))
    expected = None
    for step in range(6):
        with torch.no_grad():
            for value in (*module.parameters(), *module.buffers()):
                value.copy_(torch.rand(value.shape) if value.is_floating_point() else torch.tensor(step))
        current = module.conv1_1.weight.detach().double(), module.bn5_2.running_var.double()
        share = 1 - min(decay, (1 + step) / (10 + step))
        expected = current if step == 0 else tuple(
            old * (1 - share) + new * share for old, new in zip(expected, current, strict=True)
        )  # fmt: skip
        average.update_parameters(module)
    torch.testing.assert_close(average.module.conv1_1.weight.double(), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(average.module.bn5_2.running_var.double(), expected[1], rtol=0, atol=1e-6)
    assert make_average(module, replace(RECIPE, ema=0.0)) is None
