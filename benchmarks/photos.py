"""Images for benchmarks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, classes: int, size: tuple[int, int] = (500, 375)) -> None:
    """Write class folders with images, by default of the size that most of ImageNet's have."""

    def write(index: int) -> None:
        path = folder / f"class{index % classes}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(noise).resize(size).save(path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))
