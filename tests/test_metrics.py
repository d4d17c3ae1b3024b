"""LPIPS and DISTS with their published weights: the packages of their publishers judge every engine."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import judges
import vgg
from conftest import EXAMPLES, needs_native, random_network
from vgg import Error, ModelError, Network
from vgg.parameters import expanded
from vgg.perceptual import PerceptualDistance, fitted, parts, reference, trunk
from vgg.preprocessing import PRESETS
from vgg.quantization import quantize_weights

ENGINES = [pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"]
PHOTOS = [Image.open(EXAMPLES / name).convert("RGB") for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
SIZES = [(96, 64), (77, 51)]  # of both parities, at all poolings
PROJECTIONS = "e5c333c8eb37489b047be16c063833531a4420c3f85e42fed8f073e12471d840"  # SHA-256
JUDGED = {"lpips": {}, "lpips-0.0": {"version": "0.0"}, "dists": {"load_weights": False}}

pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages


def make(metric, monkeypatch, network=None, **options):
    """A publisher's module, and its distance of two images."""
    kind = judges.dists if metric == "dists" else judges.lpips
    module = kind(monkeypatch, network, **{**JUDGED[metric], **options})
    scale = (lambda image: image) if metric == "dists" else (lambda image: image * 2 - 1)

    def distance(one, other):
        with torch.inference_mode():
            return module(*(scale(judges.tensor(image)) for image in (one, other))).numpy().squeeze()

    return module, distance


@pytest.fixture(scope="module", params=JUDGED)
def judged(request, tmp_path_factory):
    """A metric, a file of its module's state with other fitted weights, and the module's distances of photos."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        module, distance = make(request.param, monkeypatch)
    for name, value in module.named_parameters():
        if name.startswith("lin"):
            value.data *= torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape)
        if name == "beta":
            value.data *= 3
    path = tmp_path_factory.mktemp("judged") / "state.pth"
    torch.save(module.state_dict(), path)
    small = {size: [photo.resize(size) for photo in PHOTOS] for size in SIZES}
    expected = {size: [float(distance(images[0], one)) for one in images] for size, images in small.items()}
    return request.param, path, small, expected


@pytest.mark.parametrize("engine", ENGINES)
def test_each_is_its_publishers(judged, engine):
    metric, path, small, expected = judged
    compare = PerceptualDistance(weights=path, engine=engine, metric=None if metric == "lpips" else metric)
    assert compare.parts.metric == metric
    for size, images in small.items():
        found = compare(images[0], images)
        assert found == pytest.approx(expected[size], abs=1e-5)
        assert found[0] == 0


def test_published_weights_and_network(real_models, monkeypatch):
    """Of photos, with the weights in the package and the convolutions in their file, rounded to bfloat16."""
    network = trunk(Network.read(real_models["vgg16"]))
    for metric in JUDGED:
        module, distance = make(
            metric,
            monkeypatch,
            network,
        )
        if metric == "dists":
            alpha, beta = np.concatenate(fitted.published("dists").weights, 1)
            module.alpha.data, module.beta.data = (torch.tensor(one)[None, :, None, None] for one in (alpha, beta))
        compare = PerceptualDistance(real_models["vgg16"], metric=metric)
        one, other = PHOTOS[0].resize((150, 101)), PHOTOS[1].resize((150, 101))
        pairs = [(one, other), (one, one.rotate(3))]
        found = compare([one for one, _ in pairs], [other for _, other in pairs])
        assert found == pytest.approx([float(distance(*pair)) for pair in pairs], abs=1e-4)
    assert PerceptualDistance(real_models["vgg16"]).parts.metric == "lpips"


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_a_map_is_lpipss_spatial_map(monkeypatch, tmp_path, engine):
    module, distance = make("lpips", monkeypatch, spatial=True)
    module.lin0.model[1].weight.data *= 2
    torch.save(module.state_dict(), tmp_path / "state.pth")
    one, other = (photo.resize(SIZES[1]) for photo in PHOTOS[:2])
    compare = PerceptualDistance(weights=tmp_path / "state.pth", engine=engine)
    found = compare.map(one, other)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, distance(one, other), atol=1e-4)
    assert not compare.map(one, one).any()


def test_the_weights_in_the_package_are_the_published_ones():
    stored = fitted.numbers()
    assert {metric: fitted._sha256(fitted.published(metric).weights) for metric in ("lpips", "dists")} == {
        metric: sha256 for sha256, metric in fitted.PUBLISHED.items() if metric != "lpips-0.0"
    }
    assert hashlib.sha256(stored["projections"].tobytes()).hexdigest() == PROJECTIONS
    import lpips

    folder = Path(lpips.__file__).parent / "weights"
    for version, metric in (("v0.1", "lpips"), ("v0.0", "lpips-0.0")):
        found = fitted.read(folder / version / "vgg.pth")
        assert (found.metric, found.published, found.network) == (metric, True, None)
    for one, other in zip(fitted.published("lpips").weights, fitted.read(folder / "v0.1/vgg.pth").weights, strict=True):
        assert np.array_equal(one, other)
    import DISTS_pytorch

    dists = fitted.read(Path(DISTS_pytorch.__file__).parent / "weights.pt")
    assert (dists.metric, dists.published) == ("dists", True)
    with pytest.raises(ModelError, match=r"v0\.0/vgg\.pth: has the weights of lpips-0\.0, not of lpips"):
        parts("any", folder / "v0.0/vgg.pth", metric="lpips")
    with pytest.raises(ModelError, match=r"v0\.1/vgg\.pth: has the weights of lpips, not of dists"):
        parts("any", folder / "v0.1/vgg.pth", metric="dists")


def tuned(network, share, names):
    rng = np.random.default_rng(0)
    changed = {}
    for name in names:
        value = np.asarray(expanded(network.parameters[f"{name}.weight"]), np.float32)
        changed[f"{name}.weight"] = value + share * value.std() * rng.standard_normal(value.shape).astype(np.float32)
    return replace(network, parameters={**network.parameters, **changed})


def test_the_network_is_recognised_in_any_precision(real_models, tmp_path):
    network = Network.read(real_models["vgg16"])
    plain = trunk(network)
    assert reference.is_reference(network)
    half = replace(plain, parameters={name: value.astype(np.float16) for name, value in plain.parameters.items()})
    eight = quantize_weights(plain, 8)
    for one, name in ((half, "h.safetensors"), (eight, "e.onnx"), (plain, "p.onnx"), (network, "n.pth")):
        assert reference.is_reference(one), name
        if name != "n.pth":
            one.write(tmp_path / name)
            assert parts(tmp_path / name).metric == "lpips"
    caffe = replace(plain, preprocessing=PRESETS["caffe"])  # a guess of the reader's that is wrong
    assert parts(caffe).network.preprocessing == PRESETS["torchvision"]
    assert parts(plain, metric="features").network.preprocessing == plain.preprocessing
    for other in (tuned(plain, 0.06, ["conv5_3"]), tuned(plain, 0.06, ["conv1_1"]), random_network("vgg16", width=1)):
        assert parts(other).metric == "features"
        with pytest.raises(
            ModelError, match="dists is defined on torchvision's VGG-16, and this network's convolutions are others"
        ):
            parts(other, metric="dists")


def test_the_network_in_the_package_has_features_only():
    found = parts()
    assert (found.metric, found.kind, [len(one) for one in found.weights]) == ("features", "cosine", [64, 128, 256, 512, 512])
    with pytest.raises(
        ModelError, match=r"lpips is defined on torchvision's VGG-16, .* give torchvision/vgg16, or use the metric f"
    ):
        parts(metric="lpips")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_features_of_any_layers_and_weights(kind, engine):
    network = random_network("vgg19", seed=2)
    layers = {"conv3_2": 0.5, "pool4": 2.0}
    small = [photo.resize(SIZES[1]) for photo in PHOTOS[:2]]
    values = vgg.engines.open(trunk(network), "torch").run(
        np.stack([network.preprocessing.normalise(np.asarray(one)) for one in small]), tuple(layers)
    )
    change = {name: np.abs(value[0] - value[1]) for name, value in values.items()}
    expected = sum(layers[name] * (one if kind == "l1" else one**2).sum(0).mean() for name, one in change.items())
    compare = PerceptualDistance(network, engine=engine, layers=layers, kind=kind)
    assert compare(*small) == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "ssim"}, "unknown metric 'ssim'; choose from lpips, lpips-0.0, dists, features"),
        ({"kind": "l3"}, "unknown kind of difference 'l3'; choose from cosine, l1, l2"),
        ({"metric": "lpips", "layers": ["pool3"]}, "lpips has its own layers and difference; use the metric features"),
        ({"metric": "dists", "kind": "l1"}, "dists has its own layers and difference; use the metric features"),
        ({"layers": {"conv1_1": -1}}, "the weight of layer conv1_1 is -1; it must be 0 or more"),
        ({"metric": "features", "weights": "vgg.pth"}, "vgg.pth: the metric features has no fitted weights; omit them"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments, message):
    with pytest.raises(Error, match=message):
        parts(random_network("vgg11"), **arguments)


def test_a_map_is_of_one_pair_and_not_of_dists(judged):
    metric, path, _, _ = judged
    compare = PerceptualDistance(weights=path, metric=metric)
    if metric == "dists":
        with pytest.raises(Error, match="DISTS compares statistics of whole images, so it has no map of differences"):
            compare.map(PHOTOS[0], PHOTOS[0])
    with pytest.raises(Error, match=r"a map of differences is of one pair of images, not of 2|DISTS"):
        compare.map(PHOTOS[0], PHOTOS[:2])
