import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vgg
from conftest import EXAMPLES, random_network
from reference import save_tiny
from vgg import Error, ImageError, Labels, Prediction, Preprocessing
from vgg.classifier import BATCH_SIZE

PHOTOS = sorted(EXAMPLES.glob("*.*g"))
SMALL = Preprocessing("small", size=36, crop=32)


@pytest.fixture(scope="module")
def classifier() -> vgg.Classifier:
    labels = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
    return vgg.load(replace(random_network(labels=labels), preprocessing=SMALL))


def test_one_picture_gives_its_predictions_best_first(classifier):
    found = classifier.classify(PHOTOS[0], top=3)
    scores = classifier.scores(PHOTOS[0])
    assert (scores.shape, scores.dtype) == ((1, 7), np.float32)
    assert scores.sum() == pytest.approx(1, abs=1e-5)
    assert [one.score for one in found] == sorted(scores[0].tolist(), reverse=True)[:3]
    assert found[0] == Prediction(
        classifier.network.labels.names[found[0].index], float(scores.max()), int(scores.argmax()), None
    )


def test_one_picture_in_any_form_gives_the_same(classifier):
    path = PHOTOS[0]
    image = Image.open(path)
    expected = classifier.classify(path)
    for source in (str(path), path.read_bytes(), image, np.asarray(image)):
        assert classifier.classify(source) == expected


def test_many_pictures_in_any_form_give_a_list_each(classifier, tmp_path):
    expected = [classifier.classify(path) for path in PHOTOS]
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    for path in PHOTOS:
        shutil.copy(path, folder)
    (folder / "notes.txt").write_text("no picture")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((50, 40))) for path in PHOTOS])
    for source in (PHOTOS, [path.read_bytes() for path in PHOTOS], tmp_path, str(tmp_path / "**" / "*.*g"), [tmp_path]):
        found = classifier.classify(source)
        assert [[one.index for one in each] for each in found] == [[one.index for one in each] for each in expected]
    assert len(classifier.classify(pixels)) == len(PHOTOS)


def test_batches_do_not_change_the_answers(classifier):
    many = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(3 * BATCH_SIZE + 1)]
    together = classifier.scores(many)
    alone = np.concatenate([classifier.scores(one) for one in many])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_broken_picture_stops_classify_but_not_results(classifier, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    images = [PHOTOS[0], broken, PHOTOS[1], tmp_path / "nowhere.png"]
    with pytest.raises(ImageError, match=r"broken\.jpg: not an image"):
        classifier.classify(images)
    results = list(classifier.results(images))
    assert [result.image for result in results] == [str(path) for path in images]
    assert [bool(result.error) for result in results] == [False, True, False, True]
    expected = classifier.classify(PHOTOS[1])
    assert [one.label for one in results[2].predictions] == [one.label for one in expected]
    assert [one.score for one in results[2].predictions] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_an_unnamed_picture_is_called_by_its_number(classifier):
    results = list(classifier.results([PHOTOS[0].read_bytes(), b"nothing"]))
    assert [(result.image, result.error) for result in results] == [
        ("image 0", None),
        ("image 1", "image 1: not an image, or an unsupported format"),
    ]


def test_results_come_before_all_pictures_are_read(classifier, tmp_path):
    many = [PHOTOS[0]] * (5 * BATCH_SIZE)
    assert next(iter(classifier.results(many))).image == str(PHOTOS[0])


@pytest.mark.parametrize("nothing", ["empty", "*.nothing", []])
def test_no_pictures_at_all_is_an_error(classifier, tmp_path, monkeypatch, nothing):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(ImageError, match=r"has no images in it|matches no file|no images given"):
        classifier.classify(nothing)


def test_classes_without_names_are_numbered():
    classifier = vgg.load(replace(random_network(), preprocessing=SMALL))
    one = classifier.classify(PHOTOS[0], top=1)[0]
    assert (one.label, one.wnid) == (f"class {one.index}", None)


def test_load_takes_a_file_a_recipe_and_labels(tmp_path):
    save_tiny(str(tmp_path / "n.pth"))
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    classifier = vgg.load(tmp_path / "n.pth", preprocessing=SMALL, labels=tmp_path / "labels.txt")
    assert classifier.name == "n.pth"
    assert classifier.network.provenance.preprocessing == classifier.network.provenance.labels == "given"
    assert classifier.classify(PHOTOS[0])[0].label in "abcdefg"
    (tmp_path / "short.txt").write_text("a\nb\n")
    with pytest.raises(Error, match="2 labels for a network of 7 classes"):
        vgg.load(tmp_path / "n.pth", labels=tmp_path / "short.txt")


def test_a_guess_is_never_silent(tmp_path):
    save_tiny(str(tmp_path / "n.pth"))
    message = (
        r"n\.pth: no preprocessing or labels in the file; using preprocessing 'torchvision'\. Set with --preset and --labels"
    )
    with pytest.warns(vgg.Notice, match=message):
        vgg.load(tmp_path / "n.pth")


def test_postprocess_turns_logits_into_predictions():
    logits = np.zeros((2, 1000), np.float32)
    logits[0, 285], logits[1, 967] = 20, 20
    cat, coffee = vgg.postprocess(logits, top=2)
    assert (cat[0].label, cat[0].wnid, coffee[0].label) == ("Egyptian cat", "n02124075", "espresso")
    assert cat[0].score == pytest.approx(1, abs=1e-5)
    assert [one.index for one in vgg.postprocess(np.array([0, 5.0]), labels=Labels(("no", "yes")))[0]] == [1, 0]
    with pytest.raises(Error, match="1000 labels for logits of 7 classes"):
        vgg.postprocess(np.zeros(7))
    with pytest.raises(Error, match="top must be 1 or more"):
        vgg.postprocess(logits, top=0)


def test_huge_logits_do_not_overflow():
    scores = vgg.predictions.softmax(np.array([[1e5, -1e5, 1e5]], np.float32))
    assert scores.tolist() == [[0.5, 0, 0.5]]
