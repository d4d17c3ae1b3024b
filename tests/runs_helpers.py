"""A small model, runs with it, and comparison of their rows."""

from dataclasses import replace

import pyarrow.dataset
import pytest

from conftest import random_network
from vgg import Labels, runs
from vgg.preprocessing import PRESETS

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
RECIPE = replace(PRESETS["torchvision"], size=36, crop=32)
COUNT = 47  # images in `photos`
BROKEN = 13  # the index of a broken one
PART = 5


def network(seed=0, **options):
    return replace(random_network(seed=seed, labels=LABELS, **options), preprocessing=RECIPE)


MODELS = [("tiny", network())]


def rows(output) -> list[dict]:
    """All rows of a run, by the images' names."""
    return sorted(pyarrow.dataset.dataset(str(output)).to_table().to_pylist(), key=lambda row: (row["image"], row.get("model")))


def classify(place, output, **options):
    return runs.run(runs.Classify(3), MODELS, [str(place)], str(output), **{"part": PART, "threads": 1, **options})


def near(found, expected):
    """Whether rows are equal, up to rounding, which depends on the batch."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-5)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(near(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    return found == expected
