"""VGG-16 on a GPU, 224x224, bfloat16: the engine eager and compiled, with and without copies, and training; and CIFAR.

    .venv/bin/python benchmarks/gpu.py cifar-10-batches-bin cifar-100-binary

It is sized for less than 10 minutes on an H200, with what matters most first. Each measurement is printed and saved at once; a
run that is stopped leaves what it measured. Without a GPU, the same code runs on a tiny network on the CPU, as a test of
itself.

The peak is the speed of a product of two matrices. An image counts as 2 operations for each multiply-add of the network, three
times that in training. `in place` leaves out the copies to and from the device; the other rows of the engine begin with
arrays in the CPU's memory and end with logits there. `vgg train` is the real loop, which decodes and crops images; the other
loops of training have their batch on the device. The agreement is that of the logits of vgg's embedded network with those
of the CPU in float32, for 75 crops of photos: the largest difference as a share of the largest logit, and the number of crops
with another best class although the CPU's two best are further apart than TOLERANCE.

The folders of CIFAR are optional; cifar.py describes that part, whose runs are in `OUTPUT/runs`.
"""

import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import train_on_cifar
from measurements import Measurements, parser
from photos import write_images
from PIL import Image
from torch import nn

from vgg import Architecture, Classifier, load, sources
from vgg.engines.torch import TorchEngine
from vgg.features import Descriptor, extract
from vgg.module import Module
from vgg.network import Provenance
from vgg.preprocessing import PRESETS
from vgg.views import Views

EXAMPLES = Path(__file__).parent.parent / "examples"
PHOTOS = [EXAMPLES / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
TOLERANCE = 0.03  # share of the largest logit that bfloat16 may change


@dataclass(frozen=True)
class Plan:
    """The sizes of a run."""

    device: str
    dtype: torch.dtype
    architecture: Architecture
    matrix: int  # side of the matrices of the peak
    batch: int  # images of a batch
    part: int  # images that the engine computes together
    batches: tuple[int, ...]  # further batches
    files: int  # JPEG files
    grid: int  # crops of a photo along each side
    rounds: int
    steps: int  # in a round, and in an epoch of the real training loop
    cifar: Architecture  # for CIFAR
    cifar_settings: tuple[str, ...]  # of the recipe

    @property
    def side(self) -> int:
        """Pixels of the input."""
        return self.architecture.input_size


# At 12,000 images/s, 25 epochs of 47,500 images take 99 seconds. Steps of 128 images are bound by the start of their kernels.
GPU = Plan(
    "cuda", torch.bfloat16, Architecture("vgg16"), 8192, 256, 64, (1, 2, 8, 16, 32, 64, 100, 1024), 4096, 5, 3, 10,
    Architecture("vgg16-bn", input_size=32), ("batch=256", "epochs=25"),
)  # fmt: skip
CPU = Plan(
    "cpu", torch.float32, Architecture("vgg11", 10, 1 / 16, 32), 128, 6, 4, (1,), 8, 1, 1, 2,
    Architecture("vgg11-bn", width=1 / 16, input_size=32), ("batch=8", "epochs=2"),
)  # fmt: skip


class Bench:
    """The measurements of a run."""

    def __init__(self, plan: Plan, results: Measurements) -> None:
        self.plan, self.results = plan, results
        self.network = self._module().network(PRESETS["torchvision"].for_crop(plan.side), None, Provenance())
        self._cost = 2 * plan.architecture.multiply_adds()
        left, right = (torch.randn(plan.matrix, plan.matrix, device=plan.device, dtype=plan.dtype) for _ in range(2))
        self._peak = 2 * plan.matrix**3 / self._seconds(lambda: left @ right)
        self._add("peak", plan.matrix, self._peak / 1e12, "TFLOP/s")
        self.engine = TorchEngine(self.network, device=plan.device)
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (plan.batch, plan.side, plan.side, 3), np.uint8).transpose(0, 3, 1, 2)
        self.floats = rng.normal(size=(plan.batch, 3, plan.side, plan.side)).astype(np.float32)

    def engine_eager(self) -> None:
        self._agreement("engine")
        self._engine("engine")

    def engine_compiled(self) -> None:
        started = time.perf_counter()
        self.engine.compile()
        self._add("engine: compiling", 0, time.perf_counter() - started, "s")
        self._engine("engine, compiled")
        self._agreement("engine, compiled", compiled=True)

    def plain_modules(self) -> None:
        half = self._on_device(self.pixels).to(self.plan.dtype)
        plain: Any = self._module().eval().to(self.plan.device, self.plan.dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            self._speed("torch's module, in place", len(half), lambda: plain(half))
            if self.plan.device == "cuda":
                self._speed("torch's module with cuDNN's fused kernels, in place", len(half), lambda: fused(plain, half))
            compiled = torch.compile(plain)
            self._speed("torch's module, compiled, in place", len(half), lambda: compiled(half))

    def batches(self) -> None:
        for count in self.plan.batches:
            batch = np.stack([self.pixels[index % len(self.pixels)] for index in range(count)])
            self._speed("engine, compiled, from pixels", count, lambda batch=batch: self.engine.run(batch))  # type: ignore[misc]
            if count <= self.plan.part:
                self._in_place("engine, compiled, in place", count)

    def files(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), self.plan.files, 10)
            model = Classifier(self.network, "torch", device=self.plan.device)
            found, logits = sources.find(folder), Descriptor(("logits",))
            for batch in (16, 64):
                started = time.perf_counter()
                for _ in extract(model, found, logits, batch_size=batch):
                    pass
                took = (time.perf_counter() - started) / len(found)
                self._row("vgg.features of JPEG files of 500x375, the start included", batch, took * batch)

    def training(self) -> None:
        plan = self.plan
        images = self._on_device(self.pixels).float()
        targets = torch.randint(0, plan.architecture.classes, (len(images),), device=plan.device)
        plain: Any = self._module().train().to(plan.device, memory_format=torch.channels_last)
        self._speed("training: torch's module, in place", len(images), self._step(plain, images, targets), 3)
        compiled: Any = torch.compile(plain)
        self._speed("training: torch's module, compiled, in place", len(images), self._step(compiled, images, targets), 3)

    def training_loop(self) -> None:
        from vgg.training import RECIPES, Options, train  # its packages may be missing, which stops nothing else

        plan = self.plan
        with tempfile.TemporaryDirectory() as folder:
            data, val, run = (Path(folder) / name for name in ("data", "val", "run"))
            write_images(data, plan.batch * plan.steps, 10)
            write_images(val, 10, 10)
            recipe = replace(RECIPES["torchvision"], batch=plan.batch, epochs=2, bf16=True, channels_last=True)
            arch, width = plan.architecture.name, plan.architecture.width
            options = Options(data, run, recipe, val, arch=arch, width=width, size=plan.side, device=plan.device)
            row = train(options).history[-1]
        self._row("training: vgg train", plan.batch, plan.batch / row["images_per_second"], 3, not_waiting=1 - row["waited"])

    def cifar(self, data: Path, runs: Path) -> None:
        from vgg.training import recipes

        plan = self.plan
        recipe = recipes.changed(recipes.named("cifar"), plan.cifar_settings)
        title, plain = " ".join((recipe.name, *plan.cifar_settings)), self._plain_cifar(recipe.batch)
        train_on_cifar(data, runs, plan.cifar, recipe, title, plan.device, plain, self.results)

    def _plain_cifar(self, batch: int) -> float:
        """Images per second of a plain loop on the network for CIFAR, with its batch on the device."""
        module: Any = Module(replace(self.plan.cifar, classes=10, head="gap"))
        module.initialise()
        module.train().to(self.plan.device, memory_format=torch.channels_last)
        images = torch.randn(batch, 3, 32, 32, device=self.plan.device)
        step = self._step(module, images, torch.randint(0, 10, (batch,), device=self.plan.device))
        speed = batch / self._seconds(step)
        self._add("CIFAR: training, torch's module, in place", batch, speed, "images/s")
        return speed

    def _module(self) -> Module:
        module = Module(self.plan.architecture, dropout=0.5)
        module.initialise()
        return module

    def _engine(self, name: str) -> None:
        self._in_place(f"{name}, in place", self.plan.part)
        self._speed(f"{name}, from pixels", self.plan.batch, lambda: self.engine.run(self.pixels))
        self._speed(f"{name}, from floats", self.plan.batch, lambda: self.engine.run(self.floats))

    def _in_place(self, name: str, count: int) -> None:
        """The engine's own program for a part of a batch, which is on the device."""
        pipeline = self.engine._pipeline
        with torch.inference_mode():
            part = pipeline.stage(torch.from_numpy(self.pixels[:count]))
            self._synchronize()
            program = pipeline.program(part, ("logits",))
            self._speed(name, count, lambda: program(part))

    def _on_device(self, pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels).to(self.plan.device)

    def _agreement(self, name: str, compiled: bool = False) -> None:
        network = load().network
        views, images = Views("multi-crop", grid=self.plan.grid), [Image.open(path).convert("RGB") for path in PHOTOS]
        pixels = np.stack([one for image in images for _, one in views.of(image, network.preprocessing, "", pixels=True)])
        expected = TorchEngine(network).logits(pixels)
        engine = TorchEngine(network, device=self.plan.device)
        if compiled:
            engine.compile()
        found = engine.logits(pixels)
        largest = np.abs(expected).max()
        difference = float(np.abs(found - expected).max() / largest)
        best, second = np.sort(expected)[:, ::-1][:, :2].T
        wrong = (found.argmax(1) != expected.argmax(1)) & (best - second > TOLERANCE * largest)
        self._add(f"{name}: difference from the CPU", len(pixels), difference, "of the largest logit")
        self._add(f"{name}: other best classes", len(pixels), int(wrong.sum()), "crops")
        if difference > TOLERANCE or wrong.any():
            raise ArithmeticError(f"{name}: the logits differ from the CPU's")

    def _step(self, module: nn.Module, batch: torch.Tensor, targets: torch.Tensor) -> Callable[[], object]:
        """A training step of a plain loop: SGD with momentum, bfloat16 by autocast."""
        optimizer = torch.optim.SGD(module.parameters(), 0.01, 0.9, weight_decay=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast(self.plan.device, torch.bfloat16):
                loss = nn.functional.cross_entropy(module(batch), targets)
            loss.backward()
            optimizer.step()

        return step

    def _speed(self, name: str, batch: int, work: Callable[[], object], passes: int = 1) -> None:
        self._row(name, batch, self._seconds(work), passes)

    def _row(self, name: str, batch: int, seconds: float, passes: int = 1, **others: float) -> None:
        """Report the speed of a batch that took some seconds; training counts as three passes."""
        share = passes * self._cost * batch / seconds / self._peak
        self._add(name, batch, batch / seconds, "images/s", share_of_peak=share, **others)

    def _add(self, name: str, batch: int, value: float, unit: str, **others: float) -> None:
        self.results.add({"measurement": name, "batch": batch}, value=value, unit=unit, **others)

    def _seconds(self, work: Callable[[], object]) -> float:
        """Seconds of a step: the mean over a round, the median over the rounds, after a round that is not counted."""
        rounds = []
        for _ in range(self.plan.rounds + 1):
            self._synchronize()
            started = time.perf_counter()
            for _ in range(self.plan.steps):
                work()
            self._synchronize()
            rounds.append((time.perf_counter() - started) / self.plan.steps)
        return statistics.median(rounds[1:])

    def _synchronize(self) -> None:
        (torch.cuda if self.plan.device == "cuda" else torch.cpu).synchronize()


def fused(module: Module, value: torch.Tensor) -> torch.Tensor:
    """The logits of a VGG network, with a kernel of cuDNN for a convolution with its bias and ReLU, without compiling."""
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            value = torch.cudnn_convolution_relu(value, layer.weight, layer.bias, (1, 1), (1, 1), (1, 1), 1)
        elif not (isinstance(layer, nn.ReLU) and value.ndim == 4):
            value = layer(value)
    return value


def main() -> int:
    options = parser(__doc__)
    options.add_argument("folders", nargs="*", type=Path, metavar="folder", help="folder of CIFAR-10 or CIFAR-100")
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves temporary folders in order
    plan = GPU if torch.cuda.is_available() else CPU
    torch.backends.cudnn.benchmark = True  # for torch's modules; the engine does it itself
    gpu = torch.cuda.get_device_name() if plan is GPU else ""
    bench, failed = Bench(plan, Measurements("gpu", given.output, gpu)), 0
    cifar = [partial(bench.cifar, folder, given.output / "runs") for folder in given.folders]
    if not cifar:
        print("without CIFAR, whose folders were not given", flush=True)
    for part in (
        bench.engine_eager, bench.engine_compiled, *cifar, bench.training, bench.training_loop, bench.plain_modules,
        bench.batches, bench.files,
    ):  # fmt: skip
        try:
            part()
        except Exception:  # the other parts are still worth their time
            traceback.print_exc()
            failed += 1
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
