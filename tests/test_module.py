import numpy as np
import pytest
import torch
from torch import nn

from conftest import needs_native, random_network
from reference import torchvision_like
from vgg import Architecture, ModelError, Network, Provenance, engines, module_layers
from vgg.architectures import CONFIGURATIONS
from vgg.module import Module
from vgg.preprocessing import PRESETS


def module_of(network, dropout=0.0):
    module = Module(network.architecture, dropout)
    module.load(network)
    return module


def images(count=4, side=32):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, 3, side, side)).astype(np.float32))


@pytest.mark.parametrize("gap", [False, True])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradients_are_those_of_torchs_own_layers(name, gap):
    reference = torchvision_like(name, 1 / 16, 7, 32, gap).train()
    for layer in reference.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    ours = Module(Architecture(name, 7, 1 / 16, 32, "gap" if gap else "fc")).train()
    layers = [[one for one in net.modules() if list(one.parameters(recurse=False))] for net in (ours, reference)]
    for mine, theirs in zip(*layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    targets = torch.arange(4)
    for net in (ours, reference):
        nn.functional.cross_entropy(net(images()), targets).backward()
    for (label, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda text, label=label: f"{label}: {text}")
    for mine, theirs in zip(ours.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("vgg11", "gap"),
        ("vgg16-bn", "fc"),
        *(pytest.param(name, "fc", marks=pytest.mark.full) for name in CONFIGURATIONS if name != "vgg16-bn"),
    ],
)
def test_every_architecture_memorises_a_batch_of_sixteen(name, head):
    torch.manual_seed(0)
    module = Module(Architecture(name, 10, 1 / 8, 32, head)).train()
    module.initialise()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3, weight_decay=0)
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(images(16)), torch.arange(16) % 10)
        loss.backward()
        optimizer.step()
        if loss.item() < 1e-3:
            break
    assert loss.item() < 1e-3


@pytest.mark.parametrize("side", [1, 2, 4])
def test_gradients_on_small_maps_are_exact(side):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, dtype=torch.double, generator=generator) for shape in ((3, 4, side, side), (5, 4, 3, 3), (5,))]
    assert torch.autograd.gradcheck(module_layers._OnSmallMaps.apply, [one.requires_grad_() for one in given])


@pytest.mark.parametrize("trained", ["input", "weight", "both"])
@pytest.mark.parametrize("side", [2, 4, 5])
def test_gradients_on_small_maps_in_bfloat16_are_those_of_torch(side, trained, monkeypatch):
    used, apply = [], module_layers._OnSmallMaps.apply
    monkeypatch.setattr(module_layers, "cpu_has", lambda *names: True)
    monkeypatch.setattr(module_layers._OnSmallMaps, "apply", lambda *given: used.append(side) or apply(*given))
    generator = torch.Generator().manual_seed(0)
    start, wanted = torch.randn(8, 16, side, side, generator=generator), torch.randn(8, 24, side, side, generator=generator)
    ours = module_layers.Convolution(16, 24, 3, padding=1)
    theirs = nn.Conv2d(16, 24, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        value = start.clone().requires_grad_(trained != "weight")
        layer.requires_grad_(trained != "input")
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(value)
        (output.float() * wanted).sum().backward()
        found.append([one for one in (output, value.grad, layer.weight.grad, layer.bias.grad) if one is not None])
    assert used == [side] * (side < 5)
    for mine, reference in zip(*found, strict=True):
        assert mine.dtype == reference.dtype
        assert (mine - reference).abs().max() <= 0.01 * reference.abs().max()


def test_identity_filters_pass_on_the_channels_and_the_first_filters_stay_random():
    module = Module(Architecture("vgg11", 10, 1 / 4, 32, "gap"))
    module.initialise(identity=True)
    first, *others = [layer for layer in module if isinstance(layer, nn.Conv2d)]
    assert first.weight.abs().min() > 0
    for layer in others:
        batch = torch.rand(2, layer.in_channels, 4, 4)
        assert torch.equal(layer(batch)[:, : layer.in_channels], batch)
        assert layer.weight[layer.in_channels :].abs().gt(0).all()


@needs_native
@pytest.mark.parametrize("head", ["fc", "gap"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_was_learnt_gives_the_same_in_torch_onnxruntime_and_the_native_engine(name, head, tmp_path):
    module = module_of(random_network(name, head=head, width=0.1, classes=3)).eval()
    module.network(PRESETS["torchvision"], None, Provenance()).write(tmp_path / "model.onnx")
    with torch.inference_mode():
        expected = module(images()).numpy()
    for engine in ("onnxruntime", "native", "torch"):
        found = engines.open(tmp_path / "model.onnx", engine).logits(images().numpy())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_network_comes_back_as_it_was():
    network = random_network("vgg13-bn")
    again = module_of(network).network(network.preprocessing, None, Provenance())
    assert again.sha256() == network.sha256()


@pytest.mark.parametrize(
    ("name", "head", "freeze", "value", "next_layer"),
    [
        ("vgg16", "fc", "conv4", "pool4", "conv5_1"),
        ("vgg16-bn", "fc", "conv4_2", "conv4_2", "conv4_3"),
        ("vgg16", "fc", "conv5", "pool5", "flatten"),
        ("vgg16", "gap", "conv5", "pool6", "flatten"),
        ("vgg16", "fc", "fc6", "fc6", "drop6"),
        ("vgg11-lrn", "fc", "conv1", "pool1", "conv2_1"),
        ("vgg11", "flatten batch-norm, 20 relu, classes", "conv5", "pool5", "flatten"),
        ("vgg11", "average, 20 batch-norm gelu dropout, 9 tanh batch-norm, classes", "fc6", "fc6", "drop6"),
        ("vgg11", "average, 20 batch-norm gelu dropout, 9 tanh batch-norm, classes", "fc7", "fc7", "bn7"),
        ("vgg11", "average, 20 batch-norm, classes sigmoid", "fc6", "fc6", "fc7"),
    ],
)
def test_layers_are_frozen_up_to_a_block_or_layer(name, head, freeze, value, next_layer):
    network = random_network(name, head=head)
    module = module_of(network)
    end, found = module.end_of(freeze)
    assert found == value
    assert list(dict(module.named_children()))[end] == next_layer
    cut = engines.open(network, "onnxruntime").run(images().numpy(), [value])[value]
    with torch.inference_mode():
        torch.testing.assert_close(module.eval()(torch.from_numpy(cut), start=end), module(images()), rtol=1e-4, atol=1e-4)
    module.freeze(end)
    module.train()
    blocks = dict.fromkeys(block for block, _ in module.groups())
    assert ("conv1" in blocks) == (freeze == "conv0")
    assert not any(layer.training for layer in list(module)[:end])


def test_a_normalisation_learns_with_its_layer():
    head = "flatten batch-norm, 20 batch-norm relu, 9 relu batch-norm, classes"
    module = Module(Architecture("vgg11-bn", 7, 1 / 16, 64, head))
    blocks = {}
    for block, layer in module.groups():
        blocks.setdefault(block, []).append(type(layer).__name__)
    assert list(blocks) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert [blocks[name] for name in ("conv1", "fc6", "fc7", "fc8")] == [
        ["Convolution", "BatchNorm"], ["BatchNorm", "Linear", "BatchNorm"], ["Linear", "BatchNorm"], ["Linear"],
    ]  # fmt: skip


def test_layers_that_cannot_be_frozen_are_refused():
    module = Module(Architecture("vgg16", 7, 1 / 16, 32))
    with pytest.raises(ModelError, match="unknown layer 'conv6' of vgg16; choose from conv1, conv2"):
        module.end_of("conv6")
    with pytest.raises(ModelError, match="no layer is left to train"):
        module.end_of("fc8")


def test_a_deeper_network_is_initialised_from_the_shallowest_as_in_the_paper():
    shallow = random_network("vgg11")
    module = Module(Architecture("vgg16", 7, 1 / 16, 32))
    module.initialise()
    before = module.network(PRESETS["torchvision"], None, Provenance()).parameters
    module.load_matching(shallow)
    after = module.network(PRESETS["torchvision"], None, Provenance()).parameters
    taken = {name for name in after if name in shallow.parameters and np.array_equal(after[name], shallow.parameters[name])}
    first = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")
    assert {name.split(".")[0] for name in taken} == set(first)
    assert all(np.array_equal(after[name], before[name]) for name in after if name not in taken)
    with pytest.raises(ModelError, match=r"no layer of vgg11 fits vgg16 of width 0\.125"):
        Module(Architecture("vgg16", 5, 1 / 8, 32)).load_matching(shallow)


def test_named_values_are_those_of_onnxruntime():
    network: Network = random_network("vgg16-bn")
    names = ("conv5_3", "pool2", "fc7", "logits")
    with torch.inference_mode():
        found = module_of(network).eval()(images(), names)
    expected = engines.open(network, "onnxruntime").run(images().numpy(), names)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4)


def test_a_module_for_inference_reads_the_networks_parameters_in_place_and_trains_none():
    network = random_network("vgg11")
    module = Module.of(network)
    for name, value in network.parameters.items():
        layer, role = name.split(".")
        assert getattr(module.get_submodule(layer), role).data_ptr() == value.ctypes.data
    assert not list(module.parameters())
    assert not module.state_dict()


def test_nothing_is_computed_after_the_last_value_that_is_needed():
    module, computed = Module.of(random_network("vgg11")), []
    for name, layer in module.named_children():
        layer.register_forward_hook(lambda *_, name=name: computed.append(name))
    module(images(), ("conv1_1", "pool2"))
    assert computed == ["conv1_1", "relu1_1", "pool1", "conv2_1", "relu2_1", "pool2"]


def test_a_layer_that_takes_the_place_of_another_is_computed():
    module = module_of(random_network("vgg11-bn")).eval()
    expected = module(images(), ("conv1_1", "logits"))
    module.conv1_1 = nn.Sequential(module.conv1_1, nn.Tanh())
    found = module(images(), ("conv1_1", "logits"))
    assert not torch.allclose(found["conv1_1"], expected["conv1_1"])
    assert not torch.allclose(found["logits"], expected["logits"])
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    seen = []
    converted.bn1_1.register_forward_hook(lambda *_: seen.append(True))
    assert torch.equal(converted(images()), found["logits"])
    assert seen == [True]
