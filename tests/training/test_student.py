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
    before, count = first.weight.detach().clone(), min(len(first.weight) // 2, 27)
    whiten(module, images)
    with torch.inference_mode():
        outputs = functional.conv2d(images, first.weight, stride=3).transpose(0, 1).flatten(1)
    covariance = outputs[:count].cov()
    torch.testing.assert_close(covariance / covariance[0, 0], torch.eye(count), rtol=0.01, atol=1e-3)
    assert torch.equal(first.weight[count : 2 * count], -first.weight[:count])
    assert torch.equal(first.weight[2 * count :], before[2 * count :])
    torch.testing.assert_close(first.weight.norm(), before.norm())


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
