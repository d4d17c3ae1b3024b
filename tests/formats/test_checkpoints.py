"""What training adds to weights: wrappers, averages, losses, other networks, weights of several tensors, and other pickles."""

import argparse
import collections
import copy
import pickle
import random
import warnings

import joblib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from torch_files import CLASSES, Own, check, output, randomised, read
from vgg import ModelError, Network

MAP = 32 * 4  # values of pool5 for 64 x 64 pixels
S = nn.Sequential


def own(seed: int = 0, bn: bool = False) -> nn.Module:
    head = S(nn.Linear(MAP, 48), nn.ReLU(), nn.Dropout(), nn.Linear(48, CLASSES))
    return randomised(Own(head, bn=bn), seed)


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


WRAPPERS = {
    "within": lambda key: key.replace("features.", "features.module."),
    "both parts": lambda key: key.replace(".", ".module.", 1),
    "before and within": lambda key: "module." + key.replace("features.", "features._orig_mod."),
    "fsdp": lambda key: f"_fsdp_wrapped_module.{key}".replace("features.", "features._fsdp_wrapped_module."),
    "some layers": lambda key: key.replace("features.3.", "features.3._checkpoint_wrapped_module."),
    "each layer": lambda key: ".".join((*key.split(".")[:-1], "_fsdp_wrapped_module", key.split(".")[-1])),
    "all": lambda key: f"model._orig_mod.module.{key}".replace(".3.", ".3._checkpoint_wrapped_module._fsdp_wrapped_module."),
    "lightning and compile": lambda key: f"net._orig_mod.{key}",
}


@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("bn", [False, True], ids=["", "bn"])
def test_wrappers_may_stand_anywhere_in_a_key(tmp_path, kind, bn):
    module = own(bn=bn)
    torch.save({"state_dict": {WRAPPERS[kind](key): value for key, value in module.state_dict().items()}}, tmp_path / "n.pth")
    _, notices = check(tmp_path / "n.pth", output(module))
    assert "max poolings" not in notices
    assert "left aside" not in notices


AVERAGES = {
    "timm": lambda last, average: {"arch": "vgg11", "state_dict": last, "version": 2, "state_dict_ema": average},
    "torchvision": lambda last, average: {"model": last,
        "model_ema": prefixed("module.", average) | {"n_averaged": torch.tensor(3)}},
    "ultralytics": lambda last, average: {"ema": average, "updates": 7, "model": last},
    "basicsr": lambda last, average: {"params": last, "params_ema": average},
    "swa": lambda last, average: {"model_state_dict": last, "swa_model_state_dict": average},
    "prefixes": lambda last, average: prefixed("net.", last) | prefixed("net_ema.", average),
    "ema_pytorch": lambda last, average: prefixed("online_model.", last) | prefixed("ema_model.", average) | {
        "initted": torch.tensor(True), "step": torch.tensor(9)},
    "mmengine": lambda last, average: {"meta": {}, "state_dict": average, "message_hub": {},
        "ema_state_dict": prefixed("module.", last) | {"steps": torch.tensor(4)}},
    "lightning": lambda last, average: {"state_dict": average, "current_model_state": last, "averaging_state": {}},
}  # fmt: skip


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("backwards", [False, True], ids=["", "backwards"])
def test_of_a_network_and_its_average_the_average_is_read(tmp_path, kind, backwards):
    last, average = own(), own(1)
    content = AVERAGES[kind](last.state_dict(), average.state_dict())
    if backwards:
        content = dict(reversed(content.items()))
    torch.save(content, tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(average))
    assert notices.count(", the average of ") == 1
    assert network.provenance.part in notices
    network.write(tmp_path / "n.onnx")
    assert Network.read(tmp_path / "n.onnx").provenance.part == network.provenance.part


@pytest.mark.parametrize("names", [("net", "teacher"), ("a", "b"), ("model_state_dict", "best_state_dict"), ("ema", "swa")])
@pytest.mark.parametrize("wrap", [True, False], ids=["dictionaries", "prefixes"])
def test_several_networks_are_refused_by_their_names(tmp_path, names, wrap):
    states = {name: own(seed).state_dict() for seed, name in enumerate(names)}
    flat = {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    torch.save(states if wrap else flat, tmp_path / "n.pth")
    message = rf"n\.pth: several VGG networks in the file: '{names[0]}', '{names[1]}'; save the one to read alone"
    with pytest.raises(ModelError, match=message):
        read(tmp_path / "n.pth")


def test_the_average_of_a_module_may_be_a_state_dictionary(tmp_path):
    average = own(1)
    torch.save({"model": own(), "ema": {"decay": 0.9, "shadow": average.state_dict()}}, tmp_path / "n.pth")
    _, notices = check(tmp_path / "n.pth", output(average))
    assert "reading 'ema.shadow', the average of 'model'" in notices


@pytest.mark.parametrize(
    "content", [lambda state: (3, state), lambda state: {"models": [state]}, lambda state: [{"net": state}]]
)
def test_a_state_dictionary_may_stand_in_a_list(tmp_path, content):
    module = own()
    torch.save(content(module.state_dict()), tmp_path / "n.pth")
    check(tmp_path / "n.pth", output(module))


NORMALISED = {
    "sequential": (("0.mean", "0.std", "1."), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "torchvision"),
    "top": (("mean", "std", ""), (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616), "file"),
    "detectron2": (("pixel_mean", "pixel_std", "backbone."), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "torchvision"),
    "robustbench": (("mu", "sigma", "model."), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "file"),
}


@pytest.mark.parametrize("kind", NORMALISED)
def test_a_mean_and_deviation_in_front_are_the_preprocessing(tmp_path, kind):
    (mean, std, prefix), means, deviations, preset = NORMALISED[kind]
    shape = (1, 3, 1, 1) if kind in ("sequential", "robustbench") else (3, 1, 1)
    numbers = {mean: torch.tensor(means).view(shape), std: torch.tensor(deviations).view(shape)}
    module = own()
    torch.save(prefixed(prefix, module.state_dict()) | numbers, tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(module))
    found = network.preprocessing
    assert (found.name, "left" in notices, "without" in notices) == (preset, False, False)
    scale = 255 if max(means) > 1 else 1
    np.testing.assert_allclose(np.array(found.mean) / found.scale, np.array(means) * 255 / scale, rtol=1e-3)
    assert f"pixels are normalised by {mean} and {std}" in notices


def test_an_average_of_another_network_is_no_average(tmp_path):
    wide = randomised(Own(nn.Linear(MAP, CLASSES + 1)))
    torch.save({"model": own().state_dict(), "ema": wide.state_dict()}, tmp_path / "n.pth")
    with pytest.raises(ModelError, match="several VGG networks in the file: 'model', 'ema'"):
        read(tmp_path / "n.pth")


def test_the_same_weights_twice_are_one_network(tmp_path):
    module = own()
    torch.save(
        {"state_dict": module.state_dict(), "best": module.state_dict(), "classifier": module.classifier}, tmp_path / "n.pth"
    )
    _, notices = check(tmp_path / "n.pth", output(module))
    assert "reading" not in notices


def generator() -> dict:
    module = S(nn.Conv2d(3, 64, 9, padding=4), nn.PReLU(), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 3, 9))
    return module.state_dict()


def discriminator() -> dict:
    return S(nn.Conv2d(3, 64, 3), nn.LeakyReLU(), nn.Conv2d(64, 64, 4, 2), nn.BatchNorm2d(64), nn.Conv2d(64, 1, 4)).state_dict()


MULTIPLE = {
    "netE": lambda state: {"netG": generator(), "netD": discriminator(), "netE": state},
    "perceptual": lambda state: prefixed("generator.", generator()) | prefixed("perceptual.vgg.", state),
    "vgg_loss": lambda state: prefixed("vgg_loss.vgg.", state) | prefixed("netG.", generator()),
    "encoder": lambda state: {"encoder": state, "decoder": nn.LSTM(48, 8).state_dict()},
    "encoder and lstm": lambda state: prefixed("encoder.", state) | prefixed("decoder.", nn.LSTM(48, 8).state_dict()),
    "discriminator": lambda state: prefixed("discriminator.", discriminator()) | prefixed("model.vgg.", state),
}


@pytest.mark.parametrize("kind", MULTIPLE)
def test_the_only_vgg_among_networks_is_read(tmp_path, kind):
    module = own()
    torch.save(MULTIPLE[kind](module.state_dict()), tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(module))
    assert network.architecture.head == "48 relu dropout, classes"
    assert kind == "encoder" or "n.pth: reading '" in notices


def test_a_detectors_convolutions_are_not_the_trunks(tmp_path):
    state = prefixed("extractor.", own().features.state_dict()) | {
        "rpn.conv1.weight": torch.ones(32, 32, 3, 3), "rpn.score.weight": torch.ones(18, 32, 1, 1),
        "head.classifier.0.weight": torch.ones(64, 32 * 49), "head.cls_loc.weight": torch.ones(84, 64),
    }  # fmt: skip
    torch.save(state, tmp_path / "n.pth")
    _, notices = check(tmp_path / "n.pth", output(own().features), "map")
    assert "a backbone, without rpn, head" in notices


def test_networks_of_other_kinds_are_refused_by_what_they_are(tmp_path):
    torch.save({"netG": generator(), "netD": discriminator()}, tmp_path / "gan.pth")
    with pytest.raises(
        ModelError, match=r"not a VGG network: none of 'netG', 'netD' is one; 'netG': expected .* found 0\.weight \[64, 3, 9"
    ):
        read(tmp_path / "gan.pth")


def test_what_reads_the_networks_output_is_not_left_aside(tmp_path):
    state = prefixed("base.", own().state_dict()) | {"norm.weight": torch.ones(CLASSES), "last.weight": torch.ones(3, CLASSES)}
    torch.save(state, tmp_path / "n.pth")
    with pytest.raises(ModelError, match="not a VGG network"):
        read(tmp_path / "n.pth")


ASIDE = {
    "criterion.weight": torch.ones(CLASSES),
    "criterion_cent.centers": torch.ones(CLASSES, 48),
    "loss_fn.pos_weight": torch.ones(CLASSES),
    "center_loss.centers": torch.ones(CLASSES, 48),
    "n_averaged": torch.tensor(5),
    "class_weights": torch.ones(CLASSES),
    "fc_aux.weight": torch.ones(CLASSES, 32),
    "aux1.conv.weight": torch.ones(8, 32, 1, 1),
    "train_metrics.total": torch.zeros(()),
    "model_ema.decay": torch.tensor(0.9),
    "ema_features_0_weight": torch.ones(4, 3, 3, 3),
}


@pytest.mark.parametrize("key", ASIDE)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_belongs_to_training_is_left_aside_and_named(tmp_path, key, prefix):
    module = own(bn=True)
    torch.save({"state_dict": prefixed(prefix, module.state_dict()) | {key: ASIDE[key]}}, tmp_path / "n.pth")
    network, notices = check(tmp_path / "n.pth", output(module))
    assert f"left aside as no part of the network: {key.split('.')[0]}" in notices
    assert "batches" not in notices
    assert "left aside" in network.provenance.part


@pytest.mark.parametrize(
    "key", ["classifier.loss_scale", "classifier.0.aux.weight", "temperature", "features.criterion.0.w", "bias"]
)
def test_what_may_belong_to_the_network_is_not_left_aside(tmp_path, key):
    torch.save(own().state_dict() | {key: torch.ones(1)}, tmp_path / "n.pth")
    with pytest.raises(ModelError, match="not a VGG network"):
        read(tmp_path / "n.pth")


def pruned(module: nn.Module) -> nn.Module:
    for one in (module.features[0], module.features[3], module.classifier[3]):
        prune.l1_unstructured(one, "weight", 0.5)
    prune.ln_structured(module.classifier[0], "weight", 0.5, 2, 0)
    prune.random_unstructured(module.features[0], "bias", 0.5)
    return module


def over_layers(function, **options):
    def change(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the older functions are deprecated
            for one in (module.features[0], module.features[3], module.classifier[0]):
                function(one, **options)
        module.train()(torch.randn(2, 3, 64, 64))
        return module.eval()

    return change


COMBINED = {
    "pruned": pruned,
    # torch pickles no parametrized modules.
    "weight norm": over_layers(parametrizations.weight_norm),
    "weight norm of all": over_layers(parametrizations.weight_norm, dim=None),
    "old weight norm": over_layers(nn.utils.weight_norm),
    "spectral norm": over_layers(parametrizations.spectral_norm),
    "old spectral norm": over_layers(nn.utils.spectral_norm),
}


@pytest.mark.parametrize(
    ("kind", "whole"),
    [*((kind, False) for kind in COMBINED), *((kind, True) for kind in ("pruned", "old weight norm", "old spectral norm"))],
)
def test_a_weight_of_several_tensors_is_computed(tmp_path, kind, whole):
    module = COMBINED[kind](own())
    torch.save(module if whole else {"model": prefixed("module.", module.state_dict())}, tmp_path / "n.pth")
    _, notices = check(tmp_path / "n.pth", output(module))
    assert "left aside" not in notices


def test_a_parametrization_of_another_kind_is_refused(tmp_path):
    module = own()
    nn.utils.parametrizations.orthogonal(module.classifier[3])
    torch.save(module.state_dict(), tmp_path / "n.pth")
    with pytest.raises(ModelError, match=r"not a VGG network: .* found classifier\.3\.parametrizations\.weight\.original"):
        read(tmp_path / "n.pth")


def test_an_averaged_model_is_read_whole_and_as_a_state_dictionary(tmp_path):
    module = own(bn=True)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(module)
    average.update_parameters(own(1, bn=True))
    average.eval()
    average.multi_avg_fn = None  # a function within another, which torch can't pickle
    torch.save(average, tmp_path / "whole.pth")
    torch.save(average.state_dict(), tmp_path / "state.pth")
    check(tmp_path / "whole.pth", output(average))
    check(tmp_path / "state.pth", output(average))


def test_an_optimizer_before_the_model_is_no_network(tmp_path):
    module = own()
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.zeros(1, 3, 64, 64)).sum().backward()
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "model": module.state_dict()}, tmp_path / "n.pth")
    _, notices = check(tmp_path / "n.pth", output(module))
    assert "reading" not in notices


def numpy_state(module: nn.Module) -> dict:
    return {key: value.numpy() for key, value in module.state_dict().items()}


PICKLED = {
    "tensors": lambda module: module.state_dict(),
    "arrays": numpy_state,
    "column-major arrays": lambda module: {key: np.asfortranarray(value) for key, value in numpy_state(module).items()},
    "detectron2": lambda module: {"model": numpy_state(module), "__author__": "third", "matching_heuristics": True},
    "checkpoint": lambda module: {"args": argparse.Namespace(lr=0.1), "rng": random.getstate(), "model": module.state_dict()},
    "module": lambda module: module,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", PICKLED)
def test_pythons_own_pickles_are_read(tmp_path, kind, protocol):
    module = own()
    (tmp_path / "n.pkl").write_bytes(pickle.dumps(PICKLED[kind](module), protocol))
    check(tmp_path / "n.pkl", output(module))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_arrays_of_numpy_in_torchs_files_are_read(tmp_path, zipped):
    module = own()
    torch.save({"net": numpy_state(module)}, tmp_path / "n.pth", _use_new_zipfile_serialization=zipped)
    check(tmp_path / "n.pth", output(module))


def test_joblibs_arrays_are_refused_and_its_tensors_read(tmp_path):
    module = own()
    joblib.dump(module.state_dict(), tmp_path / "tensors.joblib")
    check(tmp_path / "tensors.joblib", output(module))
    joblib.dump(numpy_state(module), tmp_path / "arrays.joblib")
    with pytest.raises(ModelError, match=r"arrays\.joblib: unsupported arrays of joblib .*; save them with pickle"):
        read(tmp_path / "arrays.joblib")


def test_a_truncated_pickle_is_damaged(tmp_path):
    whole = pickle.dumps(own().state_dict())
    for length in (3, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "n.pkl").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"n\.pkl: damaged or truncated torch file"):
            read(tmp_path / "n.pkl")


class Members(dict):
    """A dictionary of a class of its own."""


def test_every_kind_of_object_may_stand_beside_the_weights(tmp_path):
    module = own()
    beside = {
        "members": Members(a=Members()), "ordered": collections.OrderedDict(a=1), "deque": collections.deque([1], 3),
        "random": np.random.RandomState(0), "generator": np.random.default_rng(0), "objects": np.array([{}, None]),
        "structured": np.zeros(2, [("a", "f4"), ("b", "i8")]), "texts": np.array(["a"]), "big": np.zeros(2, ">f4"),
        "date": np.datetime64("2014-09-04"), "slice": slice(1), "bytes": bytearray(b"x"), "range": range(3),
        "exception": ValueError("x"), "dictionary": {(1, "a"): 2, frozenset(): 3, torch.float16: 4, Members: 5},
        "types": {int, torch.device("cpu")}, "size": torch.Size([1, 2]), "sparse": torch.eye(2).to_sparse(),
        "complex": torch.ones(1, dtype=torch.complex64), "meta": torch.zeros(3, device="meta"), "module": nn.Linear(2, 2),
    }  # fmt: skip
    for zipped in (True, False):
        torch.save({**beside, "state_dict": module.state_dict()}, tmp_path / "n.pth", _use_new_zipfile_serialization=zipped)
        check(tmp_path / "n.pth", output(module))
    (tmp_path / "n.pkl").write_bytes(pickle.dumps({**beside, "state_dict": copy.deepcopy(module).state_dict()}))
    check(tmp_path / "n.pkl", output(module))
