"""The commands and the code on some pages run, in order, and print the outputs on the page."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import EXAMPLES, ROOT, needs_native, random_network
from fine_tuned import fine_tune, save_keras, save_torch
from serving_helpers import serving
from vgg.labels import imagenet

OUTPUTS = {  # the files that the commands on a page write
    "features.md": ["caltech.npz", "svm.png", "examples.npz", "examples.parquet"],
    "explain.md": ["heat.jpg", "map.jpg", "coffee.png"],
    "perceptual.md": ["distances.jpg"],
    "retrieval.md": ["photos.npz", "photos.faiss"],
    "style-transfer.md": ["styled.png"],
    "bulk.md": ["labels/_run.json", "vectors/_run.json"],
    "your-own-network.md": ["pets.onnx", "heat.jpg", "pets-int8.onnx", "backbone.npz"],
}


SHORTENED = ("your-own-network.md",)  # pages that don't show all outputs


@pytest.fixture
def place(tmp_path):
    """A folder with the inputs of the pages, on a small scale: photos, class folders, a model."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    rng = np.random.default_rng(0)
    for photo in EXAMPLES.glob("*.*g"):
        (tmp_path / "caltech" / photo.stem).mkdir(parents=True)
        image = Image.open(photo).convert("RGB")
        for number in range(20):
            left, top = rng.integers(0, image.width - 240), rng.integers(0, image.height - 240)
            image.crop((left, top, left + 240, top + 240)).save(tmp_path / "caltech" / photo.stem / f"{number:02}.jpg")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/starry-night.jpg", tmp_path / "docs")
    (tmp_path / "keras").mkdir()
    network = random_network("vgg19", labels=imagenet(), classes=1000, input_size=224, width=1 / 32)
    network.write(tmp_path / "vgg19.onnx")
    (tmp_path / "vgg19.onnx").rename(tmp_path / "keras/vgg19")  # a file has priority over a published name
    return tmp_path


@pytest.fixture
def own_networks(place):
    """Fine-tuned networks as people save them, for docs/your-own-network.md."""
    (place / "caltech").rename(place / "photos")
    module, names = fine_tune(place / "photos")
    save_torch(module, names, place / "pets.pth")
    save_keras(module, place / "pets.keras")
    torch.save(module.features.state_dict(), place / "backbone.pth")
    (place / "names.txt").write_text("cat\nespresso\nrocket\n")


def run(place, *command):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "MPLBACKEND": "agg"}
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=place, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def same(output, expected):
    """Whether two texts are equal up to the last digit of a number."""
    if len(output.split()) != len(expected.split()):
        return False
    for one, other in zip(output.split(), expected.split(), strict=True):
        if re.fullmatch(r"[\d.]+", one) and re.fullmatch(r"[\d.]+", other):
            if abs(float(one) - float(other)) > (0.011 if "." in other else 1):
                return False
        elif one != other:
            return False
    return True


@needs_native
@pytest.mark.parametrize("page", OUTPUTS)
def test_commands_and_code_on_the_page_run(place, page, request):
    if page == "your-own-network.md":
        request.getfixturevalue("own_networks")
    elif page == "retrieval.md":
        (place / "caltech").rename(place / "photos")
    text = (ROOT / "docs" / page).read_text().replace("256, 90", "64, 3")  # size and steps of the style transfer
    blocks = re.findall(r"```(console|python)\n(.*?)```", text, re.DOTALL)
    assert {"console", "python"} >= {kind for kind, _ in blocks} >= {"python"}
    for kind, block in blocks:
        if kind == "python":
            output = run(place, "-c", block)
            if "images per class" in block:  # crops of three photos: chance is a third
                assert float(output.split()[-1].rstrip("%")) > 50
            if "nearest" in block:  # to a cup of coffee: crops of it
                assert all(name.startswith("photos/coffee/") for name in output.split()[1::2]), output
            continue
        for command, expected in re.findall(r"^\$ vgg (.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE):
            output = run(place, "-m", "vgg", *shlex.split(command))
            if expected or page not in SHORTENED:
                assert same(output, expected), output
    for name in OUTPUTS[page]:
        assert (place / name).stat().st_size > 1000


@needs_native
def test_the_first_command_of_the_readme_prints_its_output(place):
    command, expected = re.search(r"vgg (classify .*)\n((?:.*\n)*?)```", (ROOT / "README.md").read_text()).groups()
    environment = {**os.environ, "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "vgg", *shlex.split(command)], capture_output=True, text=True, cwd=place, env=environment
    )
    assert result.stdout + result.stderr == expected


@needs_native
def test_the_network_of_the_page_is_served_as_it_says(place, own_networks):
    text = (ROOT / "docs/your-own-network.md").read_text()
    script = re.search(r"```sh\n(.*?)```", text, re.DOTALL)[1]
    serve, request = script.splitlines()
    run(place, "-m", "vgg", "convert", "pets.pth", "-o", "pets-int8.onnx")  # quantized or not makes no difference here
    options = shlex.split(serve.removesuffix("&"))
    with serving("-m", place / options[options.index("-m") + 1]) as server:
        command = shlex.split(request.replace("http://127.0.0.1:8000", server.address))
        answer = subprocess.run([*command, "--silent"], capture_output=True, text=True, cwd=place, timeout=60)
    assert json.loads(answer.stdout)["results"][0]["predictions"][0]["label"] == "coffee", answer.stdout
