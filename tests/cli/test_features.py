"""`vgg features` as a user runs it."""

import os
import subprocess
import sys

import numpy as np
import pytest

import vgg
from conftest import EXAMPLES, needs_native

PHOTOS = sorted(EXAMPLES.glob("*.*g"))


def run(place, *arguments, code=0):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "vgg", "features", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=120)
    assert found.returncode == code, found.stderr
    assert found.stdout == ""
    return found.stderr


@needs_native
def test_a_file_holds_what_the_library_says(tmp_path):
    options = ("--layer", "conv4_3", "-l", "pool6", "-p", "dense", "--sizes", "224,256", "--flip", "--stack", "--normalize")
    assert run(tmp_path, EXAMPLES, "-o", "out.npz", *options) == "out.npz: conv4_3 [3, 1024], pool6 [3, 1024]\n"
    expected = vgg.load().features(
        EXAMPLES, ("conv4_3", "pool6"), protocol="dense", sizes=(224, 256), flip=True, stack=True, normalize=True
    )
    with np.load(tmp_path / "out.npz") as found:
        assert found["names"].tolist() == [str(photo) for photo in PHOTOS]
        for layer, value in expected.items():
            np.testing.assert_allclose(found[layer], value, atol=1e-5)


def test_broken_pictures_are_named_and_the_others_written(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    said = run(tmp_path, PHOTOS[0], "broken.jpg", "missing-*.png", PHOTOS[1], "-o", "out.parquet", code=1)
    assert said.splitlines() == [
        "out.parquet: pool6 [2, 512]",
        "vgg: missing-*.png: matches no file",
        "vgg: broken.jpg: not an image, or an unsupported format",
    ]
    said = run(tmp_path, "broken.jpg", "-o", "none.npz", code=1)
    assert said.splitlines() == [
        "vgg: broken.jpg: not an image, or an unsupported format",
        "vgg: none.npz: not written: none of the 1 images could be read",
    ]
    assert run(tmp_path, "missing-*.png", "-o", "none.npz", code=1) == "vgg: missing-*.png: matches no file\n"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.jpg", "out.parquet"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-o", "out.txt"], "out.txt: unsupported suffix; features are written to .npz or .parquet"),
        (["-o", "out.npz", "-l", "fc7"], "vgg16 has no layer output 'fc7'; choose from conv1_1"),
        (["-o", "out.npz", "--sizes", "all"], "--sizes takes comma-separated integers"),
        (["-o", "out.npz", "--stack"], "stacking requires two sizes or more"),
        (["-o", "nowhere/out.npz"], "nowhere/out.npz: can't be written: file or folder not found"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, arguments, line):
    assert run(tmp_path, PHOTOS[0], *arguments, code=1).startswith(f"vgg: {line}")
