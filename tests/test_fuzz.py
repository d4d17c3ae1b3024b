"""The seeds of `scripts/fuzz` pass its checks, and every format has some."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from vgg import formats
from vgg.image_formats import FORMATS


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_script", ROOT / "scripts/fuzz.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.filterwarnings("ignore")
def test_every_image_format_has_seeds(fuzz, tmp_path):
    seeds, check = fuzz.images()
    kinds = set()
    for seed in seeds:
        check(seed)
        (tmp_path / "seed").write_bytes(seed)
        with Image.open(tmp_path / "seed") as image:
            kinds.add(image.format)
    assert kinds >= set(FORMATS) - {"DIB"} - ({"AVIF"} - Image.SAVE.keys())


@pytest.mark.filterwarnings("ignore")
def test_every_model_format_has_seeds(fuzz, tmp_path):
    seeds, check = fuzz.models()
    kinds = set()
    for seed in seeds:
        check(seed)
        (tmp_path / "seed").write_bytes(seed)
        kinds.add(formats.detect(Path(tmp_path / "seed")))
    assert kinds == set(formats.TITLES)
