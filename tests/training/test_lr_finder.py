"""The learning-rate range test."""

import csv
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import random_network
from training_helpers import QUICK, class_folders, options
from vgg.training import RECIPES, find_rate, train
from vgg.training.lr_finder import smooth, suggested


def test_the_suggestion_is_where_the_loss_falls_fastest():
    rates = np.logspace(-6, 0, 100)
    losses = 2 - 1.8 / (1 + np.exp(-3 * np.log(rates / 2e-3))) + np.maximum(np.log(rates / 0.1), 0)
    assert 1e-3 < suggested(rates.tolist(), losses.tolist()) < 4e-3
    noisy = losses + np.random.default_rng(0).normal(0, 0.15, 100)
    assert 1e-3 < suggested(rates.tolist(), smooth(noisy.tolist())) < 1e-2  # the average lags behind
    assert suggested(rates.tolist(), [1.0] * 100) is None
    assert suggested(rates[:20].tolist(), losses[:20].tolist()) is None
    assert suggested(rates.tolist(), np.linspace(1, 2, 100).tolist()) is None


def test_losses_are_smoothed_without_bias():
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth([1.0, 3.0])[1] == pytest.approx((0.9 * 1 + 3) / 1.9)


def test_it_is_deterministic_and_leaves_the_run_as_it_is(tmp_path):
    data, run = class_folders(tmp_path / "data"), tmp_path / "run"
    train(options(data, run))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    tasks = []
    recipe = replace(QUICK, mixup=0.2, balance="sampling")
    first = find_rate(options(data, run, recipe, arch="vgg11-bn"), lambda task, done, *_: tasks.append(task))
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in run.iterdir()} - {path.name for path in before} == {"lr.csv", "lr.png", "tensorboard"}
    assert tasks.count("Testing learning rates") == len(first.rates) <= 100
    assert first.rates[0] == 1e-6
    assert all(b / a == pytest.approx(10 ** (6 / 99)) for a, b in itertools.pairwise(first.rates))
    assert 1e-5 < first.suggestion < 0.3
    with (run / "lr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == first.losses
    with Image.open(run / "lr.png") as image:
        assert image.format == "PNG"
    assert find_rate(options(data, tmp_path / "other", recipe, arch="vgg11-bn")) == first


def test_frozen_layers_stay_frozen_and_the_others_are_thawed(tmp_path):
    data, network = class_folders(tmp_path / "data"), random_network("vgg11")
    network = replace(network, preprocessing=replace(network.preprocessing, size=36, crop=32))
    recipe = replace(RECIPES["finetune"], batch=8, views=1)
    found = find_rate(options(data, tmp_path / "run", recipe, start=network, freeze="conv4"))
    assert found.suggestion
    thawed = find_rate(options(data, tmp_path / "run", replace(recipe, thaw=0), start=network, freeze="conv4"))
    assert thawed == found
    assert (tmp_path / "run/cache").exists()
    assert not (tmp_path / "run/last.pt").exists()


def test_a_loss_that_diverges_ends_the_test(tmp_path):
    data = class_folders(tmp_path / "data")
    found = find_rate(options(data, tmp_path / "run", replace(QUICK, momentum=0.99), arch="vgg11"))
    assert all(np.isfinite(found.losses))
    assert len(found.rates) < 100
    assert len(found.rates) == len(found.losses) == len(found.smoothed)
