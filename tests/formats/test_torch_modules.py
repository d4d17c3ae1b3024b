"""Whole modules and TorchScript: they say their own layers, and are read without running anything in them."""

import sys
import types
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference import D
from torch_files import CLASSES, IMAGES, Own, check, features, output, randomised, read
from vgg import ModelError

MAP = 32 * 4
S = nn.Sequential


def linear(inputs: int, units: int = CLASSES, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, units, bias=bias)


# A head, with what its output means, and its text.
HEADS = {
    "one linear": (lambda: S(linear(MAP)), "logits", "classes"),
    "leaky": (lambda: S(linear(MAP, 24), nn.LeakyReLU(0.2), linear(24)), "logits", "24 leaky-relu 0.2, classes"),
    "gelu": (lambda: S(linear(MAP, 24), nn.GELU(), linear(24)), "logits", "24 gelu, classes"),
    "gelu tanh": (lambda: S(linear(MAP, 24), nn.GELU("tanh"), linear(24)), "logits", "24 gelu-tanh, classes"),
    "silu, tanh": (
        lambda: S(linear(MAP, 24), nn.SiLU(), nn.Dropout(0.3), linear(24, 16), nn.Tanh(), linear(16)),
        "logits",
        "24 silu dropout 0.3, 16 tanh, classes",
    ),
    "elu": (lambda: S(linear(MAP, 24), nn.ELU(0.5), linear(24)), "logits", "24 elu 0.5, classes"),
    "sigmoid between": (lambda: S(linear(MAP, 24), nn.Sigmoid(), linear(24)), "logits", "24 sigmoid, classes"),
    "no activation": (lambda: S(linear(MAP, 24), linear(24)), "logits", "24, classes"),
    "softmax": (lambda: S(linear(MAP), nn.Softmax(dim=1)), "softmax", "classes"),
    "log-softmax": (lambda: S(linear(MAP), nn.LogSoftmax(dim=-1)), "log_softmax", "classes"),
    "sigmoid": (lambda: S(linear(MAP, 24), nn.ReLU(), linear(24), nn.Sigmoid()), "sigmoid", "24 relu, classes sigmoid"),
    "one unit": (lambda: S(linear(MAP, 1)), "logits", "classes binary"),
    "one sigmoid": (lambda: S(linear(MAP, 1), nn.Sigmoid()), "binary", "classes binary"),
    "norm": (
        lambda: S(linear(MAP, 24), nn.BatchNorm1d(24, eps=1e-3), nn.ReLU(), linear(24)),
        "logits",
        "24 batch-norm relu, classes",
    ),
    "norm first, without bias": (
        lambda: S(nn.BatchNorm1d(MAP), nn.Dropout(0.25), linear(MAP, CLASSES, False)),
        "logits",
        "flatten batch-norm dropout 0.25, classes",
    ),
    "norm without scale": (
        lambda: S(linear(MAP, 24), nn.ReLU(), nn.BatchNorm1d(24, affine=False), linear(24)),
        "logits",
        "24 relu batch-norm, classes",
    ),
    "identity": (lambda: S(nn.Identity(), S(), S(linear(MAP)), nn.Identity()), "logits", "classes"),
    "dropout of maps": (lambda: S(nn.Dropout(0.5), linear(MAP)), "logits", "flatten dropout 0.5, classes"),
}


def saved(module: nn.Module, form: str, path) -> None:
    """Save a module in one of the forms."""
    example = torch.from_numpy(IMAGES[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        if form in ("module", "legacy"):
            torch.save(module, path, _use_new_zipfile_serialization=form == "module")
        else:
            script = torch.jit.script(module) if "script" in form else torch.jit.trace(module, example, check_trace=False)
            (torch.jit.freeze(script) if "frozen" in form else script).save(path)


FORMS = ("module", "legacy", "trace", "script", "frozen trace", "frozen script")


def cases(kinds, *often: str) -> list[tuple[str, str]]:
    """Kinds and forms: some forms for each kind, the others for a few."""
    return [
        (kind, form) for place, kind in enumerate(kinds) for form in FORMS if form in often or place % 6 == FORMS.index(form)
    ]


@pytest.mark.parametrize(("kind", "form"), cases(HEADS, "module", "script"))
def test_a_sequential_is_read_exactly(tmp_path, kind, form):
    head, meaning, text = HEADS[kind]
    module = randomised(
        S(OrderedDict(features=features(bn=kind == "norm"), avgpool=nn.Identity(), flatten=nn.Flatten(), classifier=head()))
    )
    saved(module, form, tmp_path / "n.pt")
    network, notices = check(tmp_path / "n.pt", output(module), meaning)
    assert network.architecture.input_size == 64
    assert ("assumed one logit for two classes" in notices) == ("assumed" in notices) == (kind == "one unit")
    if form in ("module", "legacy"):
        assert network.architecture.classifier.text == text


USUAL = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
POOLINGS = {
    "average": (lambda: nn.AdaptiveAvgPool2d(1), 32, "average, classes"),
    "average of both": (lambda: nn.AdaptiveAvgPool2d((1, 1)), 32, "average, classes"),
    "max": (lambda: nn.AdaptiveMaxPool2d((1, 1)), 32, "max, classes"),
    "one position": (lambda: nn.AvgPool2d(kernel_size=1, stride=1), MAP, "classes"),
    "average of a window": (lambda: nn.AvgPool2d(2), 32, "average, classes"),
    "max of a window": (lambda: nn.MaxPool2d(2), 32, "max, classes"),
    "map": (lambda: nn.AdaptiveAvgPool2d(2), MAP, "average 2, classes"),
    "dropout before": (lambda: S(nn.Dropout2d(0.1), nn.AdaptiveAvgPool2d(1)), 32, "average, classes"),
}


@pytest.mark.parametrize(("kind", "form"), cases(POOLINGS, "module", "script"))
def test_every_pooling_is_read(tmp_path, kind, form):
    make, inputs, text = POOLINGS[kind]
    module = randomised(S(features(), make(), nn.Flatten(), linear(inputs)))
    saved(module, form, tmp_path / "n.pt")
    images = USUAL if kind == "map" and form != "trace" else IMAGES
    network, _ = check(tmp_path / "n.pt", output(module, images), images=images)
    assert network.architecture.classifier.bare().text == text


@pytest.mark.parametrize(
    ("form", "positions", "traced", "size", "text"),
    [
        ("module", 1, 0, 224, "average, classes"), ("module", 4, 0, 224, "average 4, classes"),
        ("script", 4, 0, 224, "average 4, classes"), ("module", 7, 0, 224, "classes"),
        ("trace", 7, 448, 448, "average 7, classes"), ("trace", 7, 32, 32, "average 7, classes"),
        ("trace", 7, 230, 230, "classes"), ("trace", 4, 64, 64, "average 4, classes"),
        ("trace", 1, 96, 96, "average, classes"),
    ],
)  # fmt: skip
def test_the_size_of_the_input_is_that_of_the_trace_or_else_the_usual_one_which_is_stated(
    tmp_path, monkeypatch, form, positions, traced, size, text
):
    module = randomised(S(features(), nn.AdaptiveAvgPool2d(positions), nn.Flatten(), linear(32 * positions**2)))
    images = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
    monkeypatch.setitem(globals(), "IMAGES", images)  # what is traced
    saved(module, form, tmp_path / "n.pt")
    network, notices = check(tmp_path / "n.pt", output(module, images), images=images)
    assert (network.architecture.input_size, network.preprocessing.crop) == (size, size)
    assert network.architecture.classifier.bare().text == text
    assert ("using preprocessing 'torchvision' and 224 x 224 pixels" in notices) == (not traced)


class Functional(nn.Module):
    """What users write in forward methods."""

    def __init__(self) -> None:
        super().__init__()
        self.features = features()
        self.fc1, self.bn, self.fc2 = linear(32, 24), nn.BatchNorm1d(24), linear(24)

    def forward(self, x):
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, 1)
        x = x.view(x.size(0), -1)
        x = F.dropout(F.leaky_relu(self.bn(self.fc1(x)), 0.1), 0.5, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


class Mean(Functional):
    def forward(self, x):
        x = self.features(x).mean(dim=(2, 3))
        return torch.softmax(self.fc2(F.elu(self.bn(self.fc1(x)))), -1)


class Reshaped(Functional):
    def forward(self, x):
        x = torch.amax(self.features(x), dim=[2, 3], keepdim=True).reshape(-1, 32)
        return torch.sigmoid(self.fc2(F.gelu(self.fc1(x))))


class Squeezed(Functional):
    def forward(self, x):
        x = F.adaptive_max_pool2d(self.features(x), (1, 1)).squeeze(-1).squeeze(-1)
        return self.fc2(torch.tanh(self.fc1(x)))


@pytest.mark.parametrize("form", ["trace", "script", "frozen script"])
@pytest.mark.parametrize(
    ("kind", "meaning"), [(Functional, "log_softmax"), (Mean, "softmax"), (Reshaped, "sigmoid"), (Squeezed, "logits")]
)
def test_torchscript_has_the_real_order_of_a_users_own_class(tmp_path, kind, meaning, form):
    module = randomised(kind())
    saved(module, form, tmp_path / "n.pt")
    _, notices = check(tmp_path / "n.pt", output(module), meaning)
    assert "assumed" not in notices


def test_a_script_in_training_mode_is_read_for_inference(tmp_path):
    module = randomised(Functional())
    expected = output(module)
    saved(module.train(), "script", tmp_path / "n.pt")
    check(tmp_path / "n.pt", expected, "log_softmax")


def test_a_users_own_class_is_read_in_the_order_of_its_modules(tmp_path):
    module = randomised(Own(S(linear(MAP, 24), nn.Tanh(), linear(24)), nn.AdaptiveAvgPool2d(2), column=D))
    torch.save(module, tmp_path / "n.pt")
    _, notices = check(tmp_path / "n.pt", output(module, USUAL), images=USUAL)
    assert "assumed that torch_files.Own runs its modules in the order features, avgpool, classifier" in notices


class Shared(nn.Module):
    """One activation for all linear layers."""

    def __init__(self, activation: nn.Module | None) -> None:
        super().__init__()
        self.features, self.fc1, self.fc2, self.fc3 = features(), linear(MAP, 24), linear(24, 16), linear(16)
        self.dropout = nn.Dropout(0.2)
        if activation:
            self.activation = activation

    def forward(self, x):
        function = getattr(self, "activation", F.relu)
        x = function(self.fc1(torch.flatten(self.features(x), 1)))
        return self.fc3(self.dropout(function(self.fc2(x))))


@pytest.mark.parametrize("activation", [None, nn.Tanh(), nn.ReLU()])
def test_an_activation_is_assumed_between_linear_layers_that_follow_each_other(tmp_path, activation):
    module = randomised(Shared(activation))
    torch.save(module, tmp_path / "n.pt")
    _, notices = check(tmp_path / "n.pt", output(module))
    name = "activation" if activation else "relu"
    assert f"in the order features, fc1, {name}, fc2, {name}, fc3" in notices


@pytest.fixture
def torchvision(monkeypatch):
    """A class with the name of torchvision's, which isn't installed."""
    for name in ("torchvision", "torchvision.models", "torchvision.models.vgg"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    kind = type("VGG", (Own,), {"__module__": "torchvision.models.vgg"})
    sys.modules["torchvision.models.vgg"].VGG = kind
    return kind


class Compiled:
    """A module after torch.compile, in its pickled form."""

    __module__, __qualname__ = "torch._dynamo.eval_frame", "OptimizedModule"

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __reduce__(self):
        return Compiled, (self.module, None)


@pytest.mark.parametrize("wrap", [lambda one: one, nn.DataParallel, lambda one: {"model": one, "epoch": 3}, Compiled])
def test_torchvisions_class_is_known(tmp_path, torchvision, wrap, monkeypatch):
    compiled = types.ModuleType("torch._dynamo.eval_frame")
    compiled.OptimizedModule = Compiled
    monkeypatch.setitem(sys.modules, compiled.__name__, compiled)
    head = S(linear(32 * 49, 256), nn.ReLU(True), nn.Dropout(), linear(256, 256), nn.ReLU(True), nn.Dropout(), linear(256))
    module = randomised(torchvision(head, nn.AdaptiveAvgPool2d((7, 7)), column=D))
    torch.save(wrap(module), tmp_path / "n.pt")
    network, notices = check(tmp_path / "n.pt", output(module, USUAL), images=USUAL)
    assert (network.architecture.head, network.architecture.input_size) == ("fc", 224)
    assert "assumed" not in notices
    torch.save(module.state_dict(), tmp_path / "n.pth")
    assert read(tmp_path / "n.pth")[0].sha256() == network.sha256()


@pytest.mark.parametrize(("stop", "form"), cases([None, 23, 30, 10], "module"))
def test_features_alone_are_a_backbone(tmp_path, form, stop):
    module = randomised(features(D, stop=stop))
    saved(module, form, tmp_path / "n.pt")
    check(tmp_path / "n.pt", output(module), "map")


def test_a_network_without_its_last_layers_is_a_backbone(tmp_path):
    module = randomised(S(features(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity()))
    torch.save(module, tmp_path / "n.pt")
    _, notices = check(tmp_path / "n.pt", output(module[0]), "map")
    assert "assumed pool5 as its output, without the average or maximum behind it" in notices


def test_classes_beside_a_module_are_its_labels(tmp_path):
    torch.save({"model": randomised(S(features(), nn.Flatten(), linear(MAP))), "classes": list("abcde")}, tmp_path / "n.pt")
    assert read(tmp_path / "n.pt")[0].labels.names == tuple("abcde")


class Flatten(nn.Module):
    def forward(self, x):
        return x.view(x.size(0), -1)


class Scale(nn.Module):
    def forward(self, x):
        return 2 * x


class Bias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x + self.bias


def test_a_users_own_flatten_is_known_by_its_name(tmp_path):
    module = randomised(S(features(), Flatten(), linear(MAP)))
    torch.save(module, tmp_path / "n.pt")
    check(tmp_path / "n.pt", output(module))


def hooked() -> nn.Module:
    made = linear(MAP)
    made.register_forward_hook(print)
    return made


def changed(**attributes: object) -> nn.Module:
    """The network, with the second convolution changed."""
    module = features()
    for name, value in attributes.items():
        setattr(module[3], name, value)
    return S(module, nn.Flatten(), linear(MAP))


REFUSED = {
    "layer norm": (
        lambda: S(features(), nn.Flatten(), nn.LayerNorm(MAP), linear(MAP)),
        r"module 2 \(torch\.nn\.\S*\.LayerNorm\)",
    ),
    "unknown class": (
        lambda: S(features(), nn.Flatten(), linear(MAP), Scale()),
        r"unsupported module 3 \(\S*test_torch_modules\.Scale\)",
    ),
    "parameters": (
        lambda: S(features(), nn.Flatten(), linear(MAP), Bias()),
        r"unsupported module 3 \(\S*test_torch_modules\.Bias\)",
    ),
    "hardswish": (
        lambda: S(features(), nn.Flatten(), linear(MAP), nn.Hardswish(), linear(5)),
        r"module 3 \(torch\.nn\.\S*\.Hardswish\)",
    ),
    "hooks": (lambda: S(features(), nn.Flatten(), hooked()), r"2 \(torch\.nn\.\S*\.Linear\) has hooks"),
    "stride": (lambda: changed(stride=(2, 2)), r"0\.3\.weight has stride \(2, 2\)"),
    "dilation": (lambda: changed(dilation=(2, 2)), r"0\.3\.weight has dilation \(2, 2\)"),
    "padding": (lambda: changed(padding=(0, 0)), r"0\.3\.weight has padding \(0, 0\)"),
    "padding mode": (lambda: changed(padding_mode="reflect"), r"0\.3 has padding_mode reflect"),
    "leaky trunk": (lambda: S(features()[:1], nn.LeakyReLU(), features()[2:], nn.Flatten(), linear(MAP)), "found leaky_relu"),
    "average trunk": (
        lambda: S(features()[:2], nn.AvgPool2d(2), features()[3:], nn.Flatten(), linear(MAP)),
        r"1 has kernel_size 2",
    ),
    "softmax of another axis": (lambda: S(features(), nn.Flatten(), linear(MAP), nn.Softmax(dim=0)), "3 has dim 0"),
    "flatten of all": (lambda: S(features(), nn.Flatten(0), linear(MAP)), "1 has start_dim 0"),
    "ceil": (lambda: S(*features()[:-1], nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), linear(MAP)), "20 has ceil_mode True"),
    "batch statistics": (
        lambda: S(features(), nn.Flatten(), nn.BatchNorm1d(MAP, track_running_stats=False), linear(MAP)),
        "statistics of each batch",
    ),
    "transformer": (lambda: S(features(), nn.Flatten(), nn.TransformerEncoderLayer(MAP, 2)), r"TransformerEncoderLayer\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_module_that_does_not_fit_is_refused_by_name(tmp_path, kind):
    make, message = REFUSED[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(make(), tmp_path / "n.pt")
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path / "n.pt")
    assert str(caught.value).startswith(f"{tmp_path}/n.pt: not a VGG network: ")


class Residual(Functional):
    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return self.fc2(self.fc1(x)) + 1.0


class Skip(Functional):
    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        y = torch.relu(self.fc1(x))
        return self.fc2(y + torch.tanh(self.fc1(x)))


class Decision(Functional):
    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        if bool(x.sum() > 0):
            x = -x
        return self.fc2(self.fc1(x))


class Two(Functional):
    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return self.fc1(x), x


class Flat(Functional):
    def forward(self, x):
        return self.fc1(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1)))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Residual, r"unsupported operation torch\.add"),
        (Skip, r"the network branches at torch\.(tanh|linear|add|relu)"),
        (Decision, "unsupported operation"),
        (Two, "does not return one tensor"),
        (Flat, "flatten has start_dim 0"),
    ],
)
def test_code_that_is_no_chain_is_refused_by_its_operation(tmp_path, kind, message):
    saved(randomised(kind()), "script", tmp_path / "n.pt")
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path / "n.pt")
    assert str(caught.value).startswith(f"{tmp_path}/n.pt: not a VGG network: ")


@pytest.mark.parametrize("save", ["state", "module", "script"])
def test_a_quantized_network_is_refused_by_name(tmp_path, save):
    module = S(features(), nn.Flatten(), linear(MAP)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
        if save == "script":
            torch.jit.script(quantized).save(tmp_path / "n.pt")
        else:
            torch.save(quantized.state_dict() if save == "state" else quantized, tmp_path / "n.pt")
    with pytest.raises(ModelError, match=r"not a VGG network: .*([Qq]uantized|_packed_params)"):
        read(tmp_path / "n.pt")
