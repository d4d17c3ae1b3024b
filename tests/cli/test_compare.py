"""`vgg compare` as a user runs it."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from conftest import EXAMPLES
from vgg.perceptual import PerceptualDistance

NAMES = ("chelsea", "coffee", "rocket")


def run(place, *arguments, code=0, **options):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "vgg", "compare", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, cwd=place, env=environment, timeout=120, **options)
    assert found.returncode == code, found.stderr
    return found.stdout.decode(), found.stderr.decode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos in one folder; in another, the same with a blurred square, in files of another kind; and others."""
    folder = tmp_path_factory.mktemp("compare")
    for name in ("before", "after"):
        (folder / name / "deep").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        with Image.open(next(EXAMPLES.glob(f"{name}.*"))) as photo:
            image = photo.convert("RGB").resize((160, 120))
        inside = f"deep/{name}" if number else name
        image.save(folder / "before" / f"{inside}.png")
        image.paste(image.crop((96, 64, 144, 104)).filter(ImageFilter.GaussianBlur(4)), (96, 64))
        image.save(folder / "after" / f"{inside}.bmp")
    image.save(folder / "after/alone.png")
    (folder / "before/broken.png").write_bytes(b"nothing")
    (folder / "after/broken.png").write_bytes(b"nothing")
    (folder / "empty").mkdir()
    return folder


def test_folders_are_compared_by_names(place):
    output, errors = run(place, "before", "after", "--format", "json", code=1)
    records = json.loads(output)
    assert [one["first"] for one in records] == [f"before/{name}.png" for name in ("chelsea", "deep/coffee", "deep/rocket")]
    assert [one["second"] for one in records] == [f"after/{name}.bmp" for name in ("chelsea", "deep/coffee", "deep/rocket")]
    expected = PerceptualDistance()(*([place / one[key] for one in records] for key in ("first", "second")))
    assert [one["distance"] for one in records] == pytest.approx(expected, rel=1e-4)
    assert {(one["metric"], one["model"]) for one in records} == {("features", "vgg16-gap")}
    assert errors.splitlines() == [
        "vgg: after/alone.png: no image of the same name to compare with",
        "vgg: before/broken.png: not an image, or an unsupported format",
    ]


def test_one_image_is_compared_with_many(place):
    photo = "before/chelsea.png"
    output, errors = run(place, photo, "after/chelsea.bmp", photo, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [row["second"] for row in rows] == ["after/chelsea.bmp", photo]
    assert float(rows[0]["distance"]) > 0.1
    assert float(rows[1]["distance"]) == 0
    with (place / photo).open("rb") as file:
        table, errors = run(place, "-", "after/chelsea.bmp", stdin=file)
    assert table.split() == [
        "first", "second", "metric", "model", "distance", "standard", "input", "after/chelsea.bmp", "features", "vgg16-gap",
        f"{float(rows[0]['distance']):.4f}",
    ]  # fmt: skip
    assert "Model: vgg16-gap, included in the package. For LPIPS and DISTS, use `--model torchvision/vgg16`." in errors


def test_a_map_shows_where_a_pair_differs(place):
    run(place, "before/chelsea.png", "after/chelsea.bmp", "--map", "map.png")
    with Image.open(place / "map.png") as drawn, Image.open(place / "after/chelsea.bmp") as image:
        changed = np.abs(np.asarray(drawn, float) - np.asarray(image)).sum(2)
    assert changed[64:104, 96:144].mean() > 10 * changed[:, :64].mean()
    assert changed[64:104, 96:144].mean() > 30


def test_precision_and_recall_of_folders(place, tmp_path):
    for name, kinds in (("generated", (0,)), ("real", (0, 1))):
        (tmp_path / name).mkdir()
        for index in range(8):
            with Image.open(place / ("before/chelsea.png", "before/deep/rocket.png")[kinds[index % len(kinds)]]) as photo:
                photo.crop((index, 0, index + 120, 110)).save(tmp_path / name / f"{index}.png")
    [record] = json.loads(run(tmp_path, "generated", "real", "--metric", "precision-recall", "--format", "json")[0])
    assert (record["generated"], record["real"], record["model"], record["layer"]) == (8, 8, "vgg16-gap", "pool6")
    assert record["precision"] == 1
    assert record["recall"] == 0.5
    (tmp_path / "real/broken.png").write_bytes(b"nothing")
    table, errors = run(tmp_path, "generated", "real", "--metric", "precision-recall", code=1)
    assert "0.5000" in table
    assert errors == "vgg: real/broken.png: not an image, or an unsupported format\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["before/chelsea.png", "after/chelsea.bmp", "--weights", "w.pth", "--preset", "caffe"], "--preset is for --model"),
        (["before", "nowhere"], "nowhere: file or folder not found"),
        (["before", "before/deep", "--map", "m.png"], "no image of one has the name of an image of the other"),
        (["before/chelsea.png", "after/deep", "--map", "m.png"], "--map draws one pair of images, not 2"),
        (["before/chelsea.png", "empty", "--map", "m.png"], "vgg: empty: has no images in it"),
        (["before", "after", "--map", "nowhere/m.png"], "nowhere/m.png: can't be written: folder nowhere not found"),
        (["before/chelsea.png", "after/chelsea.bmp", "--map", "m.txt"], "m.txt: unsupported image format; use .png, .jpg"),
        (["before/deep", "after/deep", "after"], "can't compare 2 images with 7; give equally many, or one for all"),
        (["before/chelsea.png", EXAMPLES / "coffee.png"], "sizes differ, 160x120 and 600x400 pixels; resize one of them"),
        (["before/chelsea.png", "after/chelsea.bmp", "--metric", "dists"], "dists is defined on torchvision's VGG-16"),
        (["before", "after", "--metric", "precision-recall", "--map", "m.png"], "precision-recall compares sets of images by"),
        (["before/deep", "after/deep", "--metric", "precision-recall"], "2 generated images are too few for 3 neighbours"),
        (["before", "after/deep", "--metric", "precision-recall"], "2 real images are too few for 3 neighbours"),
    ],
)  # fmt: skip
def test_what_can_not_be_compared_is_one_line(place, arguments, line):
    output, errors = run(place, *arguments, code=1)
    assert not output
    assert line in errors.splitlines()[-1]
    assert not (place / "m.png").exists()
