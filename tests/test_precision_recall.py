"""Precision and recall of sets of images: the package torch-fidelity is the judge."""

import numpy as np
import pytest
import torch
from PIL import Image

import judges
import vgg
from conftest import EXAMPLES
from reference import save_tiny
from vgg import Error, ImageError
from vgg.perceptual import precision_recall, set_features
from vgg.perceptual import precision_recall as function
from vgg.sources import find

PHOTOS = [Image.open(EXAMPLES / name).convert("RGB") for name in ("chelsea.png", "coffee.png", "rocket.jpg")]

pytestmark = pytest.mark.filterwarnings("ignore")  # of the package


def clusters(seed, count, spread):
    """Vectors around some of five points, as of images of a few kinds."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(0, 3, (5, 64))
    return (centres[rng.integers(seed % 3, 5, count)] + rng.normal(0, spread, (count, 64))).astype(np.float32)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize(("generated", "real"), [((1, 300, 0.8), (3, 211, 1.0)), ((2, 1500, 1.0), (4, 1100, 0.9))])
def test_it_is_torch_fidelitys(generated, real, neighbours):
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    one, other = clusters(*generated), clusters(*real)
    expected = calculate_precision_recall_part(torch.tensor(one).double(), torch.tensor(other).double(), neighbours, 256)
    found = precision_recall(one, other, neighbours)
    assert (found.precision, found.recall) == pytest.approx(expected, abs=1e-6)
    assert 0 < min(expected) < 1


def test_of_files_it_is_torch_fidelitys(tmp_path, monkeypatch):
    """The real package with a narrow VGG-16: its reading, resizing, normalisation and layer."""
    import torch_fidelity

    module = save_tiny(str(tmp_path / "n.pth"), "vgg16", size=224, classes=5)
    monkeypatch.setattr(judges.TORCHVISION.models, "vgg16", lambda: module)
    rng = np.random.default_rng(0)
    for name, size in (("generated", 150), ("real", 260)):
        (tmp_path / name).mkdir()
        for index in range(12):
            photo = PHOTOS[index % (2 if name == "real" else 3)]
            left, top = rng.integers(0, photo.width - size + 1), rng.integers(0, photo.height - size + 1)
            photo.crop((left, top, left + size, top + size)).save(tmp_path / name / f"{index}.png")
    expected = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "generated"), input2=str(tmp_path / "real"), prc=True, cuda=False, verbose=False, cache=False,
        feature_extractor="vgg16", feature_extractor_weights_path=str(tmp_path / "n.pth"), prc_batch_size=100,
    )  # fmt: skip
    model = vgg.load(tmp_path / "n.pth")
    found = precision_recall(*(set_features(model, find(tmp_path / name)) for name in ("generated", "real")))
    shares = {"precision": found.precision, "recall": found.recall, "f_score": found.f_score}
    assert shares == pytest.approx(expected, abs=1e-4)
    assert 0 < found.precision < 1


def test_equal_images_are_covered_and_too_few_are_refused():
    one = clusters(0, 10, 1.0)
    found = function(np.repeat(one, 5, 0), one)
    assert (found.precision, found.recall, found.f_score) == (1, 1, 1)
    far = function(one, one + 1000)
    assert (far.precision, far.recall, far.f_score) == (0, 0, 0)
    with pytest.raises(Error, match="3 generated images are too few for 3 neighbours; give 4 or more"):
        function(one[:3], one)
    with pytest.raises(Error, match="the features of the real images are not finite"):
        function(one, one * np.float32(np.inf))
    with pytest.raises(Error, match=r"must be \[images, length\] of one length, not \[10, 64\] and \[10, 63\]"):
        function(one, one[:, 1:])


def test_unreadable_images_of_a_set_are_left_out_on_request():
    images = [("a", PHOTOS[0]), ("broken", b"nothing"), ("b", PHOTOS[1])]
    model, failures, counts = vgg.load(), [], []
    with pytest.raises(ImageError, match="broken: not an image"):
        set_features(model, images)
    found = set_features(model, images, failures=failures, progress=lambda *done: counts.append(done))
    np.testing.assert_array_equal(found, set_features(model, [images[0], images[2]]))
    assert failures == ["broken: not an image, or an unsupported format"]
    assert counts == [("Extracting", 3, 3)]
    with pytest.raises(ImageError, match="none of the 1 images could be read"):
        set_features(model, images[1:2], failures=failures)
