"""vgg.torch.PerceptualLoss: the packages of LPIPS's and DISTS's publishers judge its values and gradients."""

import numpy as np
import pytest
import torch
from PIL import Image

import judges
import vgg
from conftest import EXAMPLES

PHOTOS = [Image.open(EXAMPLES / name).convert("RGB").resize((50, 42)) for name in ("chelsea.png", "coffee.png")]
BATCH = torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255 for photo in PHOTOS])


@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("name", ["lpips", "lpips-0.0", "dists"])
def test_values_and_gradients_are_those_of_the_publishers_packages(name, tmp_path, monkeypatch):
    options = {"load_weights": False} if name == "dists" else {"version": "0.0"} if name == "lpips-0.0" else {}
    module = (judges.dists if name == "dists" else judges.lpips)(monkeypatch, **options)
    for key, value in module.named_parameters():
        if key.startswith("lin"):
            value.data *= torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)  # not the published weights
    torch.save(module.state_dict(), tmp_path / "state.pth")
    loss = vgg.torch.PerceptualLoss(weights=tmp_path / "state.pth", metric=name)
    given, same = BATCH.clone().requires_grad_(), BATCH.clone().requires_grad_()
    targets = (BATCH.roll(1, 0) + BATCH) / 2
    found = loss(given, targets)
    judged = module(same, targets, require_grad=True) if name == "dists" else module(2 * same - 1, 2 * targets - 1)
    expected = judged.flatten()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    found.sum().backward()
    expected.sum().backward()
    assert (given.grad - same.grad).norm() < 1e-4 * same.grad.norm()
