"""The commands and the code on the pages run, in order, and print the outputs on the page."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, needs_native
from pages_helpers import make_crops, make_exchanged, make_images, make_networks, make_own_networks, same
from serving_helpers import serving

DOCS = ROOT / "docs"
PAGES = {  # and the files that their commands write
    "../README.md": ["vgg19.onnx", "vgg19.pth", "heat.png", "vgg16.onnx"],
    "bulk.md": ["labels/_run.json", "vectors/_run.json"],
    "embedded-model.md": [],
    "evaluation.md": ["val.html", "report.html", "vgg16.csv", "vgg16.json"],
    "explain.md": ["heat.jpg", "map.jpg", "methods.jpg", "coffee.png", "filters.png", "outputs.png", "tabby.png"],
    "features.md": ["caltech.npz", "svm.png", "examples.npz", "examples.parquet"],
    "files.md": ["vgg16.onnx", "pets.pth"],
    "first-ten-minutes.md": ["heat.jpg", "network.onnx"],
    "index.md": ["heat.jpg"],
    "perceptual.md": ["distances.jpg", "map.jpg"],
    "photos.md": ["photos.npz"],
    "preprocessing.md": [],
    "quantization.md": ["vgg16-int8.onnx", "vgg16-small.onnx"],
    "retrieval.md": ["photos.npz", "photos.faiss"],
    "style-transfer.md": ["styled.png"],
    "teaching.md": ["heat.jpg"],
    "troubleshooting.md": [],
    "your-own-network.md": ["pets.onnx", "heat.jpg", "pets-int8.onnx", "backbone.npz"],
}
EXACT = ("bulk.md", "explain.md", "features.md", "perceptual.md")  # a command without an output on the page prints none
NOT_RUN = {  # pages whose commands don't run here, and why
    "command-line.md": "examples of the help; the tests of each verb run them on files of their own",
    "compatibility.md": "a file of 0.1 and a script of the repository; tests/test_compatibility.py has such files",
    "from-the-zoo.md": "downloads of half a gigabyte each; tests/zoo has a mirror with small files",
    "imagenet.md": "needs ImageNet's archives; tests/sources makes small ones",
    "performance.md": "measures the speed of this machine; tests/test_benchmark.py measures a small network",
    "small-data-sets.md": "minutes, on X-rays that are not here; tests/training has small sets of images with groups",
    "training.md": "hours, on sets of images that are not here; tests/training has small ones",
    "serving.md": "tests/serving runs its clients; the rest needs certificates, containers or clusters",
}
LEFT_OUT = (  # commands of the other pages
    "python3 -m venv", "pip install", "scripts/setup",  # the environment of the tests is complete
    "vgg train images",  # needs a GPU
    "vgg classify cat.jpg --model hf://", "vgg convert hf://",  # downloads; tests/zoo/test_hub.py has a hub of its own
    "vgg convert pets.onnx -o pets.safetensors --keys timm",  # needs the paper's width, half a gigabyte; tests/formats has it
)  # fmt: skip
NEEDS = {"your-own-network.md": make_own_networks, "files.md": make_exchanged, "retrieval.md": make_crops}


def run(place, *command):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "MPLBACKEND": "agg", "PATH": path}
    result = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def started(place, command):
    """The address of a server that a command starts, on any free port."""
    words = shlex.split(command.removesuffix("&"))[2:]
    return serving(*(place / word if (place / word).is_file() else word for word in words))


def test_every_page_with_commands_runs_or_has_a_reason():
    pages = {path.name for path in DOCS.glob("*.md") if re.search(r"^```(console|python)\n", path.read_text(), re.MULTILINE)}
    assert pages == {page for page in (*PAGES, *NOT_RUN) if "/" not in page}


@needs_native
@pytest.mark.parametrize("page", PAGES)
def test_commands_and_code_on_the_page_run(tmp_path, page):
    make_images(tmp_path)
    make_networks(tmp_path)
    NEEDS.get(page, lambda place: None)(tmp_path)
    text = (DOCS / page).read_text().replace("256, 90", "64, 3")  # size and steps of the style transfer
    blocks = re.findall(r"```(console|python|text)\n(.*?)```", text, re.DOTALL)
    address = output = ""
    with contextlib.ExitStack() as servers:
        for (kind, block), (previous, _) in zip(blocks, [("", ""), *blocks], strict=False):
            if kind == "text" and previous == "python":
                assert same(output, block), output
            elif kind == "python" and "import timm" not in block:
                output = run(tmp_path, sys.executable, "-c", block)
                if "images per class" in block:  # crops of three photos: chance is a third
                    assert float(output.split()[-1].rstrip("%")) > 50
                if "nearest" in block:  # to a cup of coffee: crops of it
                    assert all(name.startswith("photos/coffee/") for name in output.split()[1::2]), output
            elif kind == "console":
                for command, expected in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE):
                    if command.startswith(LEFT_OUT):
                        continue
                    if command.startswith("vgg serve"):
                        address = servers.enter_context(started(tmp_path, command)).address
                        continue
                    output = run(tmp_path, "bash", "-ec", command.replace("http://127.0.0.1:8080", address))
                    if expected or page in EXACT:
                        assert same(output, expected), output
    for name in PAGES[page]:
        assert (tmp_path / name).stat().st_size > 100


@needs_native
def test_the_first_command_of_the_readme_prints_its_output(tmp_path):
    make_images(tmp_path)
    command, expected = re.search(r"vgg (classify .*)\n((?:.*\n)*?)```", (ROOT / "README.md").read_text()).groups()
    environment = {**os.environ, "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "vgg", *shlex.split(command)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.stdout + result.stderr == expected


def test_outputs_are_compared_up_to_the_last_digit():
    assert same("tabby   0.38\n", "tabby 0.39")
    assert same('{"score":0.572169,"ms":7.1}', '{"score":0.572,"ms":…}')
    assert not same("tabby 0.38", "tabby 0.40")
    assert not same("tabby 0.38", "lynx 0.38")
    assert not same("tabby 0.38", "tabby")
    assert not same("", "tabby")
