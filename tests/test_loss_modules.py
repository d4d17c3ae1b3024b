"""vgg.torch: losses as modules in a training program: half precision, copies, recomputing, compiling, several processes."""

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import vgg
from conftest import random_network
from vgg.torch import Contextual, Difference, FeatureLoss, Gram, MeanVariance, TotalVariation

TERMS = (
    Difference({"conv3_3": 1.0, "conv2_2.raw": 1.0}, "l1"), Gram({"conv2_1": 100.0}), MeanVariance({"conv4_1": 1.0}),
    Contextual({"conv3_1": 1.0}), TotalVariation(0.1),
)  # fmt: skip
BATCH, OTHER = torch.rand(2, 3, 3, 48, 64, generator=torch.Generator().manual_seed(0))


def gradient(loss, images, targets):
    given = images.clone().requires_grad_()
    loss(given, targets).sum().backward()
    return given.grad


def similarity(one, other):
    return nn.functional.cosine_similarity(one.float().flatten(), other.flatten(), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    network = random_network("vgg16")
    loss = FeatureLoss(network, TERMS)
    expected, slope = loss(BATCH, OTHER), gradient(loss, BATCH, OTHER)
    given = BATCH.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        found = loss(given, OTHER)
        lpips = vgg.torch.PerceptualLoss(network)(given, OTHER)
    assert found.dtype == lpips.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
    found.sum().backward()
    assert similarity(given.grad, slope) > 0.95
    lpips.sum().backward()
    assert torch.isfinite(given.grad).all()
    half = copy.deepcopy(loss).to(dtype)
    halves = BATCH.to(dtype), OTHER.to(dtype)
    torch.testing.assert_close(half(*halves), expected, rtol=0.1, atol=0)
    assert similarity(gradient(half, *halves), slope) > 0.9


def test_the_network_is_fixed_whatever_the_caller_does():
    loss = FeatureLoss(random_network("vgg16-bn"), TERMS)
    before = loss(BATCH, OTHER)
    whole = nn.Sequential(nn.Conv2d(3, 3, 1), loss).train()
    whole.requires_grad_(True)
    optimiser = torch.optim.SGD(whole.parameters(), 1.0)
    loss(whole[0](BATCH), OTHER).sum().backward()
    optimiser.step()
    assert list(whole.state_dict()) == [name for name, _ in whole.named_parameters()] == ["0.weight", "0.bias"]
    assert not any(module.training for module in loss.values.modules())
    whole.load_state_dict(nn.Sequential(nn.Conv2d(3, 3, 1)).state_dict())  # as a model that was saved without its loss
    nn.Sequential(nn.Conv2d(3, 3, 1)).load_state_dict(whole.state_dict())
    torch.testing.assert_close(loss(BATCH, OTHER), before, rtol=0, atol=0)


def test_copies_compute_the_same():
    loss = FeatureLoss(random_network("vgg16"), TERMS)
    expected = loss(BATCH, OTHER), gradient(loss, BATCH, OTHER)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    last = copy.deepcopy(loss).to(memory_format=torch.channels_last)
    for found in (copy.deepcopy(loss), torch.load(file, weights_only=False), last):
        torch.testing.assert_close((found(BATCH, OTHER), gradient(found, BATCH, OTHER)), expected)
    wide = copy.deepcopy(loss).double()
    torch.testing.assert_close(wide(BATCH.double(), OTHER.double()).float(), expected[0])
    torch.testing.assert_close(loss(BATCH, OTHER), expected[0], rtol=0, atol=0)  # none of them shares memory with it


def test_transforms_of_functions():
    loss = FeatureLoss(random_network("vgg16"), TERMS)
    expected = gradient(loss, BATCH, OTHER)
    torch.testing.assert_close(torch.func.grad(lambda images: loss(images, OTHER).sum())(BATCH), expected)
    each = torch.func.vmap(torch.func.grad(lambda image, target: loss(image[None], target[None]).sum()))
    torch.testing.assert_close(each(BATCH, OTHER), expected)


def test_recomputing_gives_the_same_gradient_with_less_memory():
    network = random_network("vgg19")
    saved = []
    for recompute in (False, True):
        loss = FeatureLoss.preset("real-esrgan", network, recompute=recompute)
        given = BATCH.clone().requires_grad_()
        kept = []

        def keep(value, kept=kept):
            kept.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            total = loss(given, OTHER).sum()
        total.backward()
        saved.append((total.detach(), given.grad, sum(kept)))
    torch.testing.assert_close(saved[1][:2], saved[0][:2])
    assert saved[1][2] < saved[0][2] / 3


@pytest.mark.parametrize("recompute", [False, True])
def test_it_compiles_as_one_graph(recompute):
    loss = FeatureLoss(random_network("vgg19"), TERMS, recompute=recompute)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(BATCH, OTHER), loss(BATCH, OTHER))
    torch.testing.assert_close(gradient(compiled, BATCH, OTHER), gradient(loss, BATCH, OTHER))


# A generator beside the loss, which sees the generator's output, and a model that contains both; with a backbone that learns.
DISTRIBUTED = """
import gc
import sys
import torch
import torch.distributed.nn
from torch import distributed, nn
import vgg

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)

class Model(nn.Module):
    def __init__(self, loss):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = vgg.torch.backbone(f"{folder}/n.onnx", ["conv1_1", "conv2_1"], freeze="conv1")
        self.paint = nn.Conv2d(self.backbone.channels[0], 3, 1)
        self.more = nn.Conv2d(self.backbone.channels[1], 3, 1)
        self.loss = loss

    def forward(self, images):
        first, second = self.backbone(images)
        made = self.paint(first) + nn.functional.interpolate(self.more(second), images.shape[2:])
        return self.loss(made, images).mean() if self.loss else made

def gradients(images, recompute):
    terms = [vgg.torch.Difference({"conv2_1": 1.0}), vgg.torch.Gram({"conv1_1": 1.0})]
    loss = vgg.torch.FeatureLoss(f"{folder}/n.onnx", terms, recompute=recompute)
    found = []
    for inside in (False, True):
        module = model = Model(loss if inside else None)
        if world > 1:
            module = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            model.zero_grad()
            total = module(images) if inside else loss(module(images), images).mean()
            total.backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    torch.testing.assert_close(found[0], found[1])
    return found[0]

images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))[rank * 4 // world :][: 4 // world]
for recompute in (False, True):
    torch.save(gradients(images, recompute), f"{folder}/{world}-{rank}.pt")
if world > 1:
    distributed.barrier()
    distributed.destroy_process_group()
    gc.collect()  # the group's threads end with its last reference; a process that exits while one of them runs aborts
"""


def test_two_processes_get_the_gradient_of_one(tmp_path):
    random_network("vgg11").write(tmp_path / "n.onnx")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(Path(vgg.__file__).parents[1])}

    def start(rank, world):
        command = [sys.executable, "-c", DISTRIBUTED, str(rank), str(world), str(tmp_path)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    for process in [start(0, 1), start(0, 2), start(1, 2)]:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert "backbone.trunk.conv2_1.weight" in one
    torch.testing.assert_close(first, one)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
