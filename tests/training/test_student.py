"""The initial parameters of a new network."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from training_helpers import QUICK, class_folders, options
from vgg.architectures import Architecture
from vgg.module import Module
from vgg.network import Provenance
from vgg.training.setup import prepare
from vgg.training.student import whiten


@pytest.mark.parametrize("width", [1 / 16, 1 / 4, 1])
def test_the_first_filters_whiten_the_patches_of_the_images(width):
    torch.manual_seed(0)
    images = 100 * functional.avg_pool2d(torch.randn(64, 3, 36, 36), 3, stride=1).cumsum(1)  # neighbours and colours correlate
    module = Module(Architecture("vgg11", 10, width, 32))
    module.initialise(identity=True)
    [first, *_] = [layer for layer in module if isinstance(layer, nn.Conv2d)]
    before = first.weight.detach().clone()
    whiten(module, images)
    count = int((first.weight != before).any((1, 2, 3)).sum()) // 2
    assert 2 <= count <= len(first.weight) // 2
    with torch.inference_mode():
        outputs = functional.conv2d(images, first.weight, stride=3).transpose(0, 1).flatten(1)
    covariance = outputs[:count].cov()
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(count), rtol=0.01, atol=1e-3)
    assert torch.equal(first.weight[count : 2 * count], -first.weight[:count])
    assert torch.equal(first.weight[2 * count :], before[2 * count :])
    torch.testing.assert_close(first.weight.norm(), before.norm())


@pytest.mark.parametrize(
    ("filters", "images", "whitened"),
    [
        (32, torch.randn(8, 3, 33, 33), 32),
        (5, torch.randn(8, 3, 33, 33), 4),
        (1, torch.randn(8, 3, 33, 33), 0),
        (64, torch.randn(8, 1, 33, 33).expand(-1, 3, -1, -1), 18),  # grey: of 27 components, 9 have a variance
        (64, torch.ones(8, 3, 33, 33), 0),
        (64, torch.zeros(0, 3, 33, 33), 0),
    ],
)
def test_only_components_with_a_variance_become_filters(filters, images, whitened):
    module = Module(Architecture("vgg11", 10, filters / 64, 32))
    module.initialise()
    [first, *_] = [layer for layer in module if isinstance(layer, nn.Conv2d)]
    before = first.weight.detach().clone()
    assert len(before) == filters
    whiten(module, images)
    changed = (first.weight != before).any((1, 2, 3))
    assert changed.tolist() == [True] * whitened + [False] * (filters - whitened)
    assert first.weight.isfinite().all()


def test_only_the_filters_of_a_new_network_are_whitened(tmp_path):
    data, recipe = class_folders(tmp_path / "data"), replace(QUICK, filters="whitened")

    def first(**others):
        setup = prepare(options(data, tmp_path / "run", **others), log=print)
        return setup, next(layer.weight.detach().numpy() for layer in setup.module if isinstance(layer, nn.Conv2d))

    _, random = first()
    setup, whitened = first(recipe=recipe)
    np.testing.assert_array_equal(whitened[2:4], -whitened[:2])
    assert not np.array_equal(whitened, random)
    network = setup.module.network(setup.preprocessing, setup.labels, Provenance())
    for name in ("init", "start"):
        _, found = first(recipe=recipe, seed=1, **{name: network})
        np.testing.assert_array_equal(found, whitened)
