from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import random_network
from serving_helpers import Server, serving
from vgg import Labels

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """Narrow networks: `gap` takes any size and explains itself, `other` has other numbers; `fc` is like the paper's.

    `slow` takes half a second for a picture of 1024x1024.
    """
    folder = tmp_path_factory.mktemp("models")
    made = {
        "gap": random_network(labels=LABELS, input_size=224, width=1 / 32, head="gap"),
        "other": random_network(labels=LABELS, input_size=224, width=1 / 32, head="gap", seed=1),
        "slow": random_network("vgg16", labels=LABELS, input_size=224, width=1 / 2, head="gap"),
        "fc": random_network("vgg16", labels=LABELS, input_size=224, width=1 / 32),
    }
    for name, network in made.items():
        network.write(folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in made}


@pytest.fixture(scope="session")
def server(models) -> Iterator[Server]:
    """A server that many tests share: two models, three versions."""
    options = ("-m", models["gap"], "-m", f"gap:2={models['other']}", "-m", models["fc"], "--max-body-mib", 8)
    with serving(*options) as running:
        yield running
