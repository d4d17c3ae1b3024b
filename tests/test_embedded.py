"""The network that ships inside the package."""

from dataclasses import replace

import onnx
import pytest

import vgg
from conftest import EXAMPLES, ROOT
from vgg import Network, Quantized
from vgg.preprocessing import PRESETS
from vgg.zoo import EMBEDDED, EMBEDDED_FILE


def test_it_is_small_whole_and_described():
    assert EMBEDDED_FILE.stat().st_size <= 16_000_000
    onnx.checker.check_model(EMBEDDED_FILE, full_check=True)
    network = Network.read(EMBEDDED_FILE)
    assert (network.architecture.name, network.architecture.head, network.architecture.classes) == ("vgg16", "gap", 1000)
    weights = [value for name, value in network.parameters.items() if name.endswith(".weight")]
    assert all(isinstance(value, Quantized) and value.values.dtype == "int8" for value in weights)
    assert network.labels == vgg.labels.imagenet()
    assert network.preprocessing == PRESETS["torchvision"]
    assert "Oxford" in network.provenance.licence
    assert "CC-BY 4.0" in network.provenance.licence
    facts = {entry.key: entry.value for entry in onnx.load(EMBEDDED_FILE).metadata_props}
    assert facts["vgg.parameters_sha256"] == network.sha256()


def test_its_card_is_one_of_the_hugging_face_hub():
    from huggingface_hub import ModelCard

    data = ModelCard.load(EMBEDDED_FILE.with_suffix(".md")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "vgg", "image-classification")
    assert {one.metric_name: one.metric_value for one in data.eval_results} == {"top-1": 66.8, "top-5": 90.8}


def test_it_is_what_load_loads_without_a_name():
    for classifier in (vgg.load(), vgg.load(EMBEDDED)):
        assert classifier.name == EMBEDDED
        found = {path.stem: classifier.classify(path)[0].label for path in sorted(EXAMPLES.glob("*.*g"))}
        assert found == {"chelsea": "tabby", "coffee": "espresso", "rocket": "missile"}


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.full)])
def test_it_is_as_good_as_its_card_says(shared, step):
    images = sorted((shared / "images" / "validation").glob("*/*.JPEG"))[::step]
    network = Network.read(EMBEDDED_FILE)
    # The sample was squashed to 227x227 by its source: crop, do not resize.
    classifier = vgg.Classifier(replace(network, preprocessing=replace(network.preprocessing, resize="none")))
    found = [[one.wnid for one in result.predictions] for result in classifier.results(images)]
    truth = [path.parent.name for path in images]
    top1 = sum(wnids[0] == wnid for wnids, wnid in zip(found, truth, strict=True)) / len(images)
    top5 = sum(wnid in wnids for wnids, wnid in zip(found, truth, strict=True)) / len(images)
    slack = 0 if step == 1 else 0.06
    assert top1 >= 0.66 - slack
    assert top5 >= 0.89 - slack
    if step == 1:
        for document in ("src/vgg/embedded.md", "docs/embedded-model.md"):
            assert f"{top1:.1%}" in (ROOT / document).read_text()
            assert f"{top5:.1%}" in (ROOT / document).read_text()
