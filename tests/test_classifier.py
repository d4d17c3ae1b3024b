import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vgg
from conftest import EXAMPLES, needs_native, random_network
from reference import save_tiny
from vgg import Error, ImageError, Labels, ModelError, Prediction, Preprocessing
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


def test_results_continue_after_damaged_images_of_pillow(classifier):
    file = io.BytesIO()
    Image.open(PHOTOS[0]).convert("RGB").save(file, "PNG")
    damaged = [Image.open(io.BytesIO(file.getvalue()[:5000])), PHOTOS[0], Image.new("F", (40, 40))]
    results = list(classifier.results(damaged))
    assert [bool(result.error) for result in results] == [True, False, True]
    assert "image 0: is damaged or truncated" in (results[0].error or "")


def test_an_empty_name_is_not_the_current_folder(classifier):
    with pytest.raises(ImageError, match="an empty name"):
        classifier.classify("")


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
    message = r"n\.pth: no preprocessing or input size in the file; using preprocessing 'torchvision' and 32 x 32 pixels\. "
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


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize(("name", "value"), [("conv3_1.weight", np.nan), ("fc6.weight", np.inf), ("fc8.bias", np.nan)])
def test_parameters_that_are_no_numbers_give_no_predictions(engine, name, value):
    network = replace(random_network(), preprocessing=SMALL)
    damaged = network.parameters[name].copy()
    damaged.flat[3] = value
    network = replace(network, parameters={**network.parameters, name: damaged})
    with pytest.raises(ModelError, match=f"parameter {name} has values that are not finite numbers"):
        vgg.load(network, engine).classify(PHOTOS[0])


def several(**options):
    labels = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
    return vgg.load(random_network(labels=labels, head="average, 24 relu, classes sigmoid", seed=3), **options)


def test_classes_with_scores_of_their_own_are_those_above_a_threshold():
    classifier = several()
    scores = classifier.scores(PHOTOS)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-classifier.logits(PHOTOS))), atol=1e-6)
    for options, least, most in (({}, 0.5, 7), ({"threshold": 0.6}, 0.6, 7), ({"threshold": 0, "top": 3}, 0, 3)):
        found = classifier.classify(PHOTOS, **options)
        results = [result.predictions for result in classifier.results(PHOTOS, **options)]
        for row, one, other in zip(scores, found, results, strict=True):
            wanted = [index for index in np.argsort(-row, kind="stable").tolist() if row[index] > least][:most]
            assert [each.index for each in one] == [each.index for each in other] == wanted
    assert classifier.classify(PHOTOS[0], threshold=1) == []
    with pytest.raises(Error, match=r"threshold must be 0 to 1, not 1\.5"):
        classifier.classify(PHOTOS[0], threshold=1.5)


def test_a_threshold_also_bounds_the_classes_of_which_one_is_true(classifier):
    scores = np.sort(classifier.scores(PHOTOS[0])[0])[::-1]
    assert len(classifier.classify(PHOTOS[0])) == 5
    assert len(classifier.classify(PHOTOS[0], threshold=float(scores[1:3].mean()))) == 2
    assert len(classifier.classify(PHOTOS[0], top=1, threshold=0)) == 1


def test_one_logit_is_two_classes():
    classifier = vgg.load(random_network(head="max, classes binary", classes=2, seed=2))
    [[logit]] = classifier.logits(PHOTOS[0]).tolist()
    found = {one.label: one for one in classifier.classify(PHOTOS[0])}
    assert found["positive"].score == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-6)
    assert found["negative"].score == pytest.approx(1 - found["positive"].score, abs=1e-6)
    assert (found["negative"].index, found["positive"].index) == (0, 1)
    assert classifier.network.labels is None  # so that class folders may have any names
    named = vgg.load(classifier.network, labels=Labels(("healthy", "ill")))
    assert {one.label for one in named.classify(PHOTOS[0])} == {"healthy", "ill"}
    with pytest.raises(ModelError, match="3 labels for a network of 2 classes"):
        vgg.load(classifier.network, labels=Labels(("a", "b", "c")))


def test_a_network_without_a_head_has_no_predictions_and_no_labels():
    network = random_network(head="none", classes=0)
    with pytest.raises(ModelError, match="has no head, so it can't classify; its features are pool5"):
        vgg.load(network).classify(PHOTOS[0])
    with pytest.raises(ModelError, match="2 labels for a network without a head, which has no classes"):
        vgg.load(network, labels=Labels(("a", "b")))


def test_a_preset_keeps_the_networks_crop():
    network = several().network
    small = replace(network, preprocessing=network.preprocessing.for_crop(64))
    given = vgg.load(small, preprocessing="caffe").network.preprocessing
    assert (given.name, given.crop, given.size) == ("caffe", 64, 73)
    assert vgg.load(small, preprocessing=SMALL).network.preprocessing == SMALL
    assert vgg.load(small, preprocessing="mms", input_size=96).network.preprocessing.size == 96
