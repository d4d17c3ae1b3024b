"""The localisation error: boxes read, compared, counted."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import vgg
from conftest import random_network
from vgg import Error, Labels, sources
from vgg.evaluation import evaluate, records
from vgg.evaluation.localisation import Annotations, intersection_over_union
from vgg.explanation import explain
from vgg.preprocessing import PRESETS
from vgg.views import Views

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
RECIPE = replace(PRESETS["torchvision"], size=36, crop=32)


def annotation(width, height, *boxes):
    """An XML file as in ImageNet's archive of boxes."""
    text = f"<annotation><folder>val</folder><size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    for left, top, right, bottom in boxes:
        corners = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        text += f"<object><name>n02123045</name><pose>Unspecified</pose><bndbox>{corners}</bndbox></object>"
    return text + "</annotation>"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images in class folders, and the boxes of most of them."""
    root = tmp_path_factory.mktemp("localisation")
    rng = np.random.default_rng(0)
    (root / "boxes/val").mkdir(parents=True)
    for index in range(24):
        folder = root / "data" / LABELS.names[index % 7]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
        if index % 5:  # boxes of the image at twice its size
            left, top = int(rng.integers(0, 60)), int(rng.integers(0, 40))
            boxes = [(left, top, left + 67, top + 55), (0, 0, 20, 20)]
            (root / f"boxes/val/{index}.xml").write_text(annotation(128, 96, *boxes))
    return root


def test_the_error_counts_classes_and_boxes(place):
    models = [vgg.load(replace(random_network(seed=seed, labels=LABELS), preprocessing=RECIPE)) for seed in range(2)]
    dataset = sources.open(place / "data", 7, LABELS)
    run = evaluate(models, dataset, boxes=place / "boxes", fuse=True, batch_size=5)
    found = records(run)
    annotations = Annotations(place / "boxes", dataset)
    for model, record in zip(models, found, strict=False):
        counts = {"loc1": 0, "loc5": 0, "loc_known": 0}
        known = 0
        for sample in dataset:
            boxes = annotations.boxes(sample.name)
            if not boxes:
                continue
            known += 1
            explained = explain(model, sample.path, [sample.target])
            ranks = [one.index for one in model.classify(sample.path, top=5)]
            mine = [side / whole for side, whole in zip(explained.box(), (64, 48) * 2, strict=True)]
            hit = max(intersection_over_union(tuple(mine), one) for one in boxes) > 0.5
            counts["loc1"] += hit and ranks[0] == sample.target
            counts["loc5"] += hit and sample.target in ranks
            counts["loc_known"] += hit
        assert record["loc_images"] == known == 19
        for name, count in counts.items():
            assert record[name] == round(100 * count / known, 3)
            assert record[f"{name}_err"] == round(100 - record[name], 3)
            assert record[f"{name}_low"] <= record[name] <= record[f"{name}_high"]
        assert 0 < counts["loc_known"] < known
    assert list(found[2]) == list(found[0])
    assert (found[2]["loc_images"], found[2]["loc5_err"]) == (0, None)  # a fusion has no heat map
    assert "loc5" not in records(evaluate(models[:1], dataset))[0]


def test_boxes_at_another_size_are_those_of_a_network_with_that_preprocessing(place):
    network, dataset = random_network(labels=LABELS), sources.open(place / "data", 7, LABELS)
    found = []
    for size, views in ((36, Views(sizes=(48,))), (48, Views())):
        model = vgg.load(replace(network, preprocessing=replace(RECIPE, size=size)))
        found.append(records(evaluate([model], dataset, views, boxes=place / "boxes"))[0])
    assert {name: found[0][name] for name in ("loc1", "loc5", "loc_known")} == {
        name: found[1][name] for name in ("loc1", "loc5", "loc_known")
    }


def test_a_run_with_boxes_resumes_with_them(place, monkeypatch, tmp_path):
    monkeypatch.setenv("VGG_HOME", str(tmp_path))
    models = [vgg.load(replace(random_network(labels=LABELS), preprocessing=RECIPE))]
    dataset = sources.open(place / "data", 7, LABELS)

    def stop(task, done, total, unit=""):
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(models, dataset, boxes=place / "boxes", batch_size=5, progress=stop)
    resumed = records(evaluate(models, dataset, boxes=place / "boxes", batch_size=5))
    whole = records(evaluate(models, dataset, boxes=place / "boxes", batch_size=5))
    assert [{**one, "images_per_second": 0} for one in resumed] == [{**one, "images_per_second": 0} for one in whole]


def test_boxes_are_shares_of_the_annotated_image(place):
    dataset = sources.open(place / "data", 7, LABELS)
    (place / "one").mkdir()
    (place / "one/3.xml").write_text(annotation(200, 100, (20, 10, 119, 49)))
    annotations = Annotations(place / "one", dataset)
    assert annotations.boxes("dog/3.png") == [(0.1, 0.1, 0.6, 0.5)]  # the last column and row belong to it
    assert annotations.boxes("ant/0.png") == []


def test_intersection_over_union():
    assert intersection_over_union((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert intersection_over_union((0, 0, 0.5, 1), (0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)
    assert intersection_over_union((0, 0, 0.2, 0.2), (0.5, 0.5, 1, 1)) == 0


@pytest.mark.parametrize(
    "text",
    ["", "<annotation>", "<annotation/>", annotation(0, 5, (1, 1, 2, 2)), annotation("a", 5), annotation(9, 9, ("x", 1, 2, 3))],
)
def test_a_broken_annotation_is_named(place, tmp_path, text):
    dataset = sources.open(place / "data", 7, LABELS)
    (tmp_path / "3.xml").write_text(text)
    with pytest.raises(Error, match=r"3\.xml: not an annotation in ImageNet's format, with a size and boxes"):
        Annotations(tmp_path, dataset).boxes("dog/3.png")


def test_views_and_folders_without_boxes_are_errors(place, tmp_path):
    models = [vgg.load(replace(random_network(labels=LABELS), preprocessing=RECIPE))]
    dataset = sources.open(place / "data", 7, LABELS)
    with pytest.raises(Error, match=r"no boxes of these images; a\.jpg requires a\.xml in this folder"):
        evaluate(models, dataset, boxes=tmp_path)
    for protocol in (Views(flip=True), Views("ten-crop"), Views(sizes=(40, 48))):
        with pytest.raises(Error, match="boxes require a single crop"):
            evaluate(models, dataset, protocol, boxes=place / "boxes")
