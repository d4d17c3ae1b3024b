"""State dictionaries as people save them: any prefix, wrapping and head; what they don't say is stated."""

import argparse
import collections
import datetime
import enum
import pathlib

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from reference import D, save_tiny, timm_state, torchvision_like
from torch_files import CLASSES, IMAGES, Own, check, features, output, randomised, read
from vgg import ModelError

MAP = 32 * 4  # values of pool5 for 64 x 64 pixels
S = nn.Sequential


def linear(inputs: int, units: int = CLASSES, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, units, bias=bias)


def replaced(last: nn.Module) -> nn.Sequential:
    return S(linear(MAP, 64), nn.ReLU(), nn.Dropout(), linear(64, 64), nn.ReLU(), nn.Dropout(), last)


HEADS = {
    "one linear": (lambda: linear(MAP), "classes"),
    "two": (lambda: S(linear(MAP, 48), nn.ReLU(), nn.Dropout(0.4), linear(48)), "48 relu dropout, classes"),
    "without dropout": (lambda: S(linear(MAP, 48), nn.ReLU(), linear(48)), "48 relu, classes"),
    "four": (
        lambda: S(linear(MAP, 48), nn.ReLU(), linear(48, 40), nn.ReLU(), linear(40, 24), nn.ReLU(), linear(24)),
        "48 relu, 40 relu, 24 relu, classes",
    ),
    "last replaced": (
        lambda: replaced(S(linear(64, 24), nn.ReLU(), nn.Dropout(0.2), linear(24))),
        "64 relu dropout, 64 relu dropout, 24 relu dropout, classes",
    ),
    "layer appended": (
        lambda: S(*replaced(linear(64, 100)), linear(100)),
        "64 relu dropout, 64 relu dropout, 100, classes",
    ),
    "activation and layer appended": (
        lambda: S(*replaced(linear(64, 100)), nn.ReLU(), linear(100)),
        "64 relu dropout, 64 relu dropout, 100 relu, classes",
    ),
    "dropout first": (
        lambda: S(nn.Dropout(), linear(MAP, 48), nn.ReLU(True), nn.Dropout(), linear(48)),
        "48 relu dropout, classes",
    ),
    "norm": (lambda: S(linear(MAP, 48), nn.BatchNorm1d(48), nn.ReLU(), linear(48)), "48 batch-norm relu, classes"),
    "norm after the activation": (
        lambda: S(linear(MAP, 48), nn.ReLU(), nn.BatchNorm1d(48), nn.Dropout(), linear(48)),
        "48 relu batch-norm dropout, classes",
    ),
    "norm first": (lambda: S(nn.BatchNorm1d(MAP), nn.Dropout(), linear(MAP)), "flatten batch-norm, classes"),
    "norm without scale": (
        lambda: S(linear(MAP, 48), nn.BatchNorm1d(48, affine=False), nn.ReLU(), linear(48)),
        "48 batch-norm relu, classes",
    ),
    "without bias": (lambda: S(linear(MAP, 48, False), nn.ReLU(), linear(48, CLASSES, False)), "48 relu, classes"),
    "one unit": (lambda: S(linear(MAP, 48), nn.ReLU(), linear(48, 1)), "48 relu, classes binary"),
    "nested": (lambda: S(S(linear(MAP, 48), nn.ReLU()), S(nn.Dropout(), linear(48))), "48 relu, classes"),
}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("format", "bn"), [("pth", True), ("safetensors", False)])
def test_any_head_is_read(tmp_path, kind, bn, format):
    make, text = HEADS[kind]
    module = randomised(Own(make(), bn=bn))
    path = tmp_path / f"n.{format}"
    if format == "pth":
        torch.save(module.state_dict(), path)
    else:
        safetensors.torch.save_file(module.state_dict(), path)  # which sorts the keys as text
    network, notices = check(path, output(module))
    assert network.architecture.head == text
    assert "assumed flattening, " in notices
    assert ("ReLU between linear layers" in notices) == ("relu" in text)
    assert ("one logit for two classes" in notices) == ("binary" in text)
    assert ("no activation between classifier.6.weight and classifier.7.weight" in notices) == (kind == "layer appended")


def test_the_papers_head_needs_no_statement(tmp_path):
    save_tiny(tmp_path / "n.pth", "vgg16")
    network, notices = read(tmp_path / "n.pth")
    assert network.architecture.head == "fc"
    assert "assumed" not in notices
    torch.save(timm_state(torchvision_like("vgg16", 1 / 16, 7, 64)), tmp_path / "timm.pth")
    assert "assumed" not in read(tmp_path / "timm.pth")[1]


class Named(nn.Module):
    """A head of attributes, whose names don't sort in the order of execution."""

    def __init__(self, *names: str, norms: bool = False) -> None:
        super().__init__()
        self.backbone = features(D)
        sizes = [MAP, *(40 + 8 * place for place, _ in enumerate(names[1:])), CLASSES]
        self.names = names
        for name, before, after in zip(names, sizes, sizes[1:], strict=False):
            setattr(self, name, linear(before, after))
            if norms and name != names[-1]:
                setattr(self, name.replace("fc", "bn"), nn.BatchNorm1d(after))

    def forward(self, x):
        x = torch.flatten(self.backbone(x), 1)
        for name in self.names:
            x = getattr(self, name)(x)
            if name != self.names[-1]:
                x = torch.relu(getattr(self, name.replace("fc", "bn"))(x) if "fc" in name and hasattr(self, "bn1") else x)
        return x


@pytest.mark.parametrize(
    "names", [("fc1", "fc2", "fc3"), ("hidden", "fc"), ("fc_a", "dense", "b"), ("last_linear",), ("fc2", "fc1"), ("head",)]
)
@pytest.mark.parametrize("format", ["pth", "safetensors"])
def test_linear_layers_are_ordered_by_what_they_read(tmp_path, names, format):
    module = randomised(Named(*names))
    if format == "pth":
        torch.save(dict(reversed(module.state_dict().items())), tmp_path / "n.pth")
    else:
        safetensors.torch.save_file(module.state_dict(), tmp_path / "n.safetensors")
    network, _ = check(tmp_path / f"n.{format}", output(module))
    assert network.architecture.name == "vgg16"


@pytest.mark.parametrize("format", ["pth", "safetensors"])
def test_normalisations_follow_the_layer_of_their_number(tmp_path, format):
    module = randomised(Named("fc1", "fc2", "fc3", norms=True))
    if format == "pth":
        torch.save(module.state_dict(), tmp_path / "n.pth")
    else:
        safetensors.torch.save_file(module.state_dict(), tmp_path / "n.safetensors")
    check(tmp_path / f"n.{format}", output(module))


PREFIXES = (
    "module.",
    "model.",
    "model.0.",
    "module.backbone.",
    "_orig_mod.module.",
    "net.vgg16.",
    "encoder.",
    "a.b.c.d.e.f.",
    "0.1.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_no_part_of_the_network(tmp_path, prefix):
    module = randomised(Own(HEADS["two"][0](), bn=True))
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, tmp_path / "n.pth")
    check(tmp_path / "n.pth", output(module))


@pytest.mark.parametrize("inner", ["features.module.", "module.features.0.", "feature_extractor.", "0.", "0.0.", "layers_", ""])
@pytest.mark.parametrize("bn", [False, True], ids=["", "bn"])
def test_a_prefix_may_stand_within_the_keys(tmp_path, inner, bn):
    module = randomised(Own(HEADS["two"][0](), bn=bn))
    last = "classifier." if inner[:1] not in ("0", "") else "0.2." if inner == "0.0." else "2."
    state = {
        key.replace("features.", inner).replace("classifier.", last if inner else "7"): value
        for key, value in module.state_dict().items()
    }
    torch.save(state, tmp_path / "n.pth")
    check(tmp_path / "n.pth", output(module))


def test_a_flat_sequential_is_read(tmp_path):
    module = randomised(S(*features(D), nn.Flatten(), *HEADS["norm after the activation"][0]()))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "n.safetensors")
    network, _ = check(tmp_path / "n.safetensors", output(module))
    assert network.architecture.head == "48 relu batch-norm dropout, classes"


class Colour(enum.Enum):
    RED = 1


def objects() -> dict:
    """What training scripts store beside the weights."""
    model = linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2)).sum().backward()
    optimizer.step()
    return {
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu")),
        "best": np.float64(0.5),
        "step": torch.tensor(3),
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list),
        "colour": Colour.RED,
        "path": pathlib.PurePosixPath("/data"),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "dtype": torch.float16,
        "array": np.zeros(3),
        "rng": torch.get_rng_state(),
        "set": {1, 2},
        "frozen": frozenset((1,)),
        "complex": 1j,
        "date": datetime.date(2014, 9, 4),
        "config": {"model": {"name": "vgg16"}, "classes": 17},
        "float8": torch.zeros(2, dtype=torch.float8_e4m3fn),
        "function": np.mean,
        "loss": [0.5, 0.25],
        "sparse": torch.eye(2).to_sparse(),
        "none": None,
        "big": 2**400,
    }


WRAPPINGS = {
    "state_dict": lambda state: {**objects(), "state_dict": state},
    "model after the objects": lambda state: {"model": state, **objects()},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state, "optimizer_state_dict": objects()["optimizer"]},
    "net": lambda state: {"net": state, "acc": 93.1, "epoch": 4},
    "ema alone": lambda state: {"ema": state},
    "params": lambda state: {"params": dict(state), "scheduler": None},
    "nested": lambda state: {"checkpoint": {"model": {"state_dict": state}}, **objects()},
    "namespace": lambda state: argparse.Namespace(state_dict=state, epoch=3),
    "parts": lambda state: {
        part: {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(part)}
        for part in ("features", "classifier")
    },
    "parameters": lambda state: {"weights": {key: nn.Parameter(value, False) for key, value in state.items()}},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_wrapping_is_opened_and_what_stands_beside_is_left(tmp_path, wrapping, zipped):
    module = randomised(Own(HEADS["two"][0]()))
    content = WRAPPINGS[wrapping](module.state_dict())
    torch.save(content, tmp_path / "n.pth", _use_new_zipfile_serialization=zipped)
    _, notices = check(tmp_path / "n.pth", output(module))
    assert "several" not in notices


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickles_is_read(tmp_path, protocol):
    module = randomised(Own(HEADS["two"][0]()))
    torch.save({**objects(), "model": module.state_dict()}, tmp_path / "n.pth", pickle_protocol=protocol)
    check(tmp_path / "n.pth", output(module))


@pytest.mark.parametrize("prefix", ["features.", "", "encoder.features.", "0."])
@pytest.mark.parametrize("bn", [False, True], ids=["", "bn"])
def test_features_alone_are_a_backbone(tmp_path, prefix, bn):
    module = randomised(features(D, bn))
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(module), "map")
    assert network.architecture.head == "none"
    assert "assumed pool5 as the last layer output" in notices


@pytest.mark.parametrize(("stop", "last"), [(4, "conv1_2"), (9, "conv2_2"), (16, "conv3_3"), (23, "conv4_3"), (21, "conv4_2")])
@pytest.mark.parametrize("bn", [False, True], ids=["", "bn"])
def test_the_beginning_of_the_features_ends_at_its_last_convolution(tmp_path, stop, last, bn):
    stop = {4: 6, 9: 13, 16: 23, 23: 33, 21: 30}[stop] if bn else stop
    module = randomised(features(D, bn, stop))
    torch.save(module.state_dict(), tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(module), "map")
    assert network.architecture.last == last
    assert f"{last} as the last layer output" in notices


def test_a_classifier_that_is_not_a_number_is_none(tmp_path):
    module = randomised(Own(replaced(linear(64)), column=D))
    state = {key: value * float("nan") if "classifier" in key else value for key, value in module.state_dict().items()}
    torch.save(state, tmp_path / "features.pth")
    network, notices = check(tmp_path / "features.pth", output(module.features), "map")
    assert network.architecture.head == "none"
    assert "a backbone, since the values of classifier.0.weight are not numbers" in notices


def test_an_encoder_is_read_without_the_decoder_beside_it(tmp_path):
    module = nn.Module()
    module.encoder, module.decoder, module.segmentation_head = Own(None, column=D), nn.Module(), S(nn.Conv2d(16, 2, 3))
    module.decoder.blocks = nn.ModuleList([S(nn.Conv2d(64, 16, 3, bias=False), nn.BatchNorm2d(16)), S(nn.Conv2d(16, 16, 3))])
    torch.save(randomised(module).state_dict(), tmp_path / "unet.pth")
    _, notices = check(tmp_path / "unet.pth", output(module.encoder), "map")
    assert "a backbone, without decoder, segmentation_head" in notices


def test_timms_network_without_its_last_layer_is_a_backbone(tmp_path):
    module = torchvision_like("vgg16", 1 / 16, 7, 64)
    state = {key: value for key, value in timm_state(module).items() if not key.startswith("head")}
    torch.save(state, tmp_path / "n.pth")
    _, notices = check(tmp_path / "n.pth", output(module.features), "map")
    assert "a backbone, without pre_logits" in notices
    flat = {key.replace("features.", "features_"): value for key, value in state.items() if "features" in key}
    torch.save(flat, tmp_path / "flat.pth")
    check(tmp_path / "flat.pth", output(module.features), "map")


def test_ssds_trunk_is_read_up_to_its_own_layers(tmp_path):
    module = randomised(
        S(
            *features(D, stop=30),
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(32, 64, 3, padding=6, dilation=6),
            nn.ReLU(),
            nn.Conv2d(64, 64, 1),
        )
    )
    torch.save(module.state_dict(), tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(module[:30]), "map")
    assert network.architecture.last == "conv5_3"
    assert "a backbone, without 31, 33" in notices


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("head", ["one linear", "512-512"])
def test_cifars_networks_pool_the_whole_map(tmp_path, head, size):
    heads = {
        "one linear": lambda: linear(32),
        "512-512": lambda: S(nn.Dropout(), linear(32, 32), nn.ReLU(), nn.Dropout(), linear(32, 32), nn.ReLU(), linear(32)),
    }
    module = randomised(Own(heads[head](), nn.AdaptiveAvgPool2d(1) if head == "one linear" else None, bn=True))
    torch.save({"net": module.state_dict(), "acc": 90.0, "epoch": 7}, tmp_path / "n.pth")
    images = IMAGES[:, :, :size, :size]
    if head == "one linear":
        _, notices = check(tmp_path / "n.pth", output(module, images), images=images)
        assert "assumed global average pooling" in notices
    elif size == 32:
        check(tmp_path / "n.pth", output(module, images), images=images)


class Blocks(nn.Module):
    """Blocks with a name each, as many write them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, channels, self.order = kind, 3, []
        for block, (depth, out) in enumerate(zip((1, 1, 2, 2, 2), (4, 8, 16, 32, 32), strict=True), 1):
            for index in range(1, depth + 1):
                name = {
                    "paper": f"conv{block}_{index}",
                    "keras": f"block{block}_conv{index}",
                    "counted": f"conv{len(self.order) + 1}",
                }[kind]
                self.order.append((name, index == depth))
                setattr(self, name, nn.Conv2d(channels, out, 3, padding=1))
                channels = out
        self.fc = linear(MAP)

    def forward(self, x):
        for name, last in self.order:
            x = torch.relu(getattr(self, name)(x))
            x = nn.functional.max_pool2d(x, 2) if last else x
        return self.fc(torch.flatten(x, 1))


@pytest.mark.parametrize("kind", ["paper", "keras", "counted"])
def test_convolutions_may_have_names(tmp_path, kind):
    module = randomised(Blocks(kind))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "n.safetensors")
    _, notices = check(tmp_path / "n.safetensors", output(module))
    assert ("the max poolings of vgg11" in notices) == (kind == "counted")


def blocks(bn: bool, nested: bool) -> nn.Sequential:
    """A Sequential of blocks, or of modules with one convolution each."""
    parts, channels = [], 3
    for depth, out in zip((2, 2, 2, 2, 2), (4, 8, 16, 32, 32), strict=True):
        block = []
        for _ in range(depth):
            block.append(S(nn.Conv2d(channels, out, 3, padding=1), *([nn.BatchNorm2d(out)] if bn else []), nn.ReLU()))
            channels = out
        parts += [S(*[one for made in block for one in made], nn.MaxPool2d(2))] if nested else [*block, nn.MaxPool2d(2)]
    return S(*parts)


@pytest.mark.parametrize("bn", [False, True], ids=["", "bn"])
@pytest.mark.parametrize("nested", [False, True], ids=["modules", "blocks"])
def test_convolutions_may_stand_in_modules(tmp_path, bn, nested):
    module = randomised(S(blocks(bn, nested), nn.Flatten(), linear(MAP)))
    torch.save(module.state_dict(), tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(module))
    assert network.architecture.name == ("vgg13-bn" if bn else "vgg13")
    assert "max poolings" not in notices


LABELS = {
    "classes": list("abcde"),
    "class_to_idx": {name: index for index, name in reversed([*enumerate("abcde")])},
    "idx_to_class": dict(enumerate("abcde")),
    "class_names": tuple("abcde"),
    "labels": {str(index): name for index, name in enumerate("abcde")},
    "categories": [f"{name}\n" for name in "abcde"],  # of `readlines`
}


@pytest.mark.parametrize("key", LABELS)
@pytest.mark.parametrize("deep", [False, True])
def test_a_checkpoints_own_classes_are_its_labels(tmp_path, key, deep):
    module = randomised(Own(HEADS["two"][0]()))
    beside = {key: LABELS[key], "classes_seen": 3}
    torch.save({"model": module.state_dict(), **({"meta": beside} if deep else beside)}, tmp_path / "n.pth")
    network, notices = read(tmp_path / "n.pth")
    assert network.labels.names == tuple("abcde")
    assert "labels" not in notices


@pytest.mark.parametrize("wrong", [list("abcd"), 5, {"a": 0, "b": 2}, [1, 2, 3, 4, 5], {0: "a"}, "abcde", {"a": "b"}])
def test_classes_of_another_number_or_form_are_none(tmp_path, wrong):
    torch.save({"model": randomised(Own(HEADS["two"][0]())).state_dict(), "classes": wrong}, tmp_path / "n.pth")
    assert read(tmp_path / "n.pth")[0].labels is None


def altered(**options) -> dict:
    """A state dictionary of another network, or with something else in it."""
    state = Own(HEADS["two"][0](), column=D).state_dict()
    return {**state, **{key.replace("__", "."): value for key, value in options.items()}}


def poolings_elsewhere() -> dict:
    columns = [64, "M", 64, 128, "M", 128, 256, "M", 256, 256, 512, "M", 512, 512, 512, "M", 512, 512]
    return Own(linear(MAP), column=columns).state_dict()


def without_relu() -> dict:
    return {key.replace("features.2.", "features.1."): value for key, value in altered().items()}


REFUSED = {
    "layer norm": (altered(classifier__1__weight=torch.ones(48)), r"classifier\.1\.weight \[48\]"),
    "two heads": (altered(head2__weight=torch.ones(3, 48)), r"found (head2|classifier\.3)\.weight"),
    "attention": (altered(attn__in_proj_weight=torch.ones(96, 32)), r"attn\.in_proj_weight \[96, 32\]"),
    "a map that is not square": (altered(classifier__0__weight=torch.ones(48, 64)), r"found classifier\.0\.weight \[48, 64\]"),
    "poolings elsewhere": (poolings_elsewhere(), "its keys show blocks of 1, 2, 2, 3, 3, 2 convolutions"),
    "no ReLU": (without_relu(), r"no ReLU between features\.0\.weight and features\.1\.weight"),
    "one channel": (altered(features__0__weight=torch.ones(4, 1, 3, 3)), r"found features\.0\.weight \[4, 1, 3, 3\]"),
    "weight normalisation": (altered(features__0__weight_g=torch.ones(4, 1, 1, 1)), r"features\.0\.weight_g"),
    "integers": (altered(features__0__weight=torch.ones(4, 3, 3, 3).long()), r"features\.0\.weight has int64 numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_chain_is_refused_by_what_does_not_fit(tmp_path, kind):
    state, message = REFUSED[kind]
    torch.save(state, tmp_path / "n.pth")
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path / "n.pth")
    assert str(caught.value).startswith(f"{tmp_path}/n.pth: not a VGG network: ")


def test_a_residual_network_is_no_backbone(tmp_path):
    block = {f"layer1.{index}.conv{conv}.weight": torch.zeros(16, 16, 3, 3) for index in range(4) for conv in (1, 2)}
    torch.save({"conv1.weight": torch.zeros(16, 3, 3, 3), **block, "fc.weight": torch.zeros(10, 16)}, tmp_path / "n.pth")
    with pytest.raises(ModelError, match=r"not a (complete )?VGG network"):
        read(tmp_path / "n.pth")


def test_a_decoder_with_few_convolutions_is_no_backbone(tmp_path):
    state = {"down.0.weight": (16, 3, 3, 3), "down.2.weight": (16, 16, 3, 3), "up.0.weight": (8, 32, 3, 3)}
    torch.save({key: torch.zeros(shape) for key, shape in state.items()}, tmp_path / "n.pth")
    with pytest.raises(ModelError, match=r"not a (complete )?VGG network"):
        read(tmp_path / "n.pth")


def test_the_reduced_vgg_of_ssd_is_a_backbone(tmp_path):
    module = randomised(S(collections.OrderedDict(
        features=features(D),
        fc6=nn.Conv2d(MAP // 4, 64, 3, padding=6, dilation=6), fc7=nn.Conv2d(64, 64, 1), fc8=nn.Conv2d(64, CLASSES, 1),
    )))  # fmt: skip
    torch.save(module.state_dict(), tmp_path / "n.pth")
    network, notices = read(tmp_path / "n.pth")
    assert (network.architecture.name, network.architecture.head) == ("vgg16", "none")
    assert "assumed a backbone, without fc6, fc7, fc8" in notices


def test_the_size_of_the_input_is_stated_for_every_head(tmp_path):
    module = S(collections.OrderedDict(features=features(), classifier=linear(32)))
    torch.save(module.state_dict(), tmp_path / "n.pth")
    network, notices = read(tmp_path / "n.pth")
    assert network.architecture.input_size == 224
    assert "no preprocessing or input size in the file; using preprocessing 'torchvision' and 224 x 224 pixels" in notices
    torch.save(features().state_dict(), tmp_path / "n.pth")
    assert "pixels" not in read(tmp_path / "n.pth")[1]
