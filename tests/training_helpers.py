"""Small datasets and options for tests of training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from vgg.sources import cifar
from vgg.training import RECIPES, Options, Recipe

QUICK = replace(RECIPES["zoo"], epochs=2, batch=8, dropout=0.0, jitter=0.0, lighting=0.0, flip="none", nesterov=False)


def class_folders(folder: Path, classes: int = 3, each: int = 8, side: int = 40) -> Path:
    """Images whose class is their colour."""
    rng = np.random.default_rng(0)
    for index in range(classes):
        (folder / f"class{index}").mkdir(parents=True)
        for number in range(each):
            pixels = rng.integers(0, 120, (side, side + 4, 3), np.uint8)
            pixels[..., index % 3] += 120
            Image.fromarray(pixels).save(folder / f"class{index}" / f"{number}.png")
    return folder


def cifar_folder(folder: Path, train: int = 64, test: int = 16) -> Path:
    """CIFAR-10's binary version in small, with images whose class is their colour."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("data_batch_1.bin", train), ("test_batch.bin", test)):
        targets = np.arange(count, dtype=np.uint8) % 10
        planes = rng.integers(0, 100, (count, 3, 1024), np.uint8)
        planes += (np.stack([targets % 3, targets // 3 % 3, targets // 9], 1) * 70)[..., None].astype(np.uint8)
        np.concatenate([targets[:, None], planes.reshape(count, -1)], 1).tofile(folder / name)
    (folder / "batches.meta.txt").write_text("\n".join(cifar.NAMES))
    return folder


def cifar100_folder(folder: Path, train: int = 200, test: int = 16) -> Path:
    """CIFAR-100's binary version in small, with images whose class is their colour."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train.bin", train), ("test.bin", test)):
        targets = (np.arange(count) % 100).astype(np.uint8)
        planes = rng.integers(0, 56, (count, 3, 1024), np.uint8)
        planes += (np.stack([targets % 5, targets // 5 % 5, targets // 25], 1) * 50)[..., None].astype(np.uint8)
        np.concatenate([targets[:, None] // 5, targets[:, None], planes.reshape(count, -1)], 1).tofile(folder / name)
    (folder / "fine_label_names.txt").write_text("".join(f"fine{number}\n" for number in range(100)))
    return folder


def options(data: Path, output: Path, recipe: Recipe = QUICK, **others) -> Options:
    """A training of a tiny network, or of the one to start from."""
    new = {} if others.get("start") else {"arch": "vgg11", "width": 1 / 16, "size": 32}
    return Options(data, output, recipe, **{**new, "workers": 2, **others})
