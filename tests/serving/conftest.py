from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import random_network
from serving_helpers import Server, serving
from vgg import Labels

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Narrow networks: `gap` accepts any image size, `other` is the same with other weights, `fc` has the paper's head."""
    folder = tmp_path_factory.mktemp("models")
    networks = {
        "gap": random_network(labels=LABELS, input_size=224, width=1 / 32, head="gap"),
        "other": random_network(labels=LABELS, input_size=224, width=1 / 32, head="gap", seed=1),
        "fc": random_network("vgg16", labels=LABELS, input_size=224, width=1 / 32),
    }
    for name, network in networks.items():
        network.write(folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in networks}


@pytest.fixture(scope="session")
def server(models) -> Iterator[Server]:
    """A shared server with two models and three versions."""
    options = ("-m", models["gap"], "-m", f"gap:2={models['other']}", "-m", models["fc"], "--max-body-mib", 8)
    with serving(*options) as running:
        yield running
