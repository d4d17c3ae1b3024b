"""Time the comparison of images by five layers of VGG-16, beside the packages lpips and dists-pytorch, in one run.

    python benchmarks/perceptual.py --size 256

benchmarks/README.md describes the columns. All weights are random: the time does not depend on them.
"""

import contextlib
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measurements import Measurements, parser

from vgg import Architecture, Network, engines
from vgg.architectures import Pooling
from vgg.arrays import Array
from vgg.engines import Engine
from vgg.heads import NONE
from vgg.preprocessing import PRESETS

LAYERS = {"conv1_2": 64, "conv2_2": 128, "conv3_3": 256, "conv4_3": 512, "conv5_3": 512}  # of both metrics, with their channels
COUNTS = (1, 8)  # images that are compared with one reference
PAUSE = 0.05  # seconds before each measurement: other threads keep spinning for a while and would occupy the core

Work = Callable[[], object]


def vgg16(pooling: Pooling, threads: int) -> Engine:
    architecture = Architecture("vgg16", classes=0, head=NONE, pooling=pooling)
    rng = np.random.default_rng(0)
    parameters = {
        name: (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in architecture.parameters.items()
    }
    return engines.open(Network(architecture, parameters, PRESETS["torchvision"]), "native", threads=threads)


def lpips_work(engine: Engine, batch: Array, pairs: Array) -> Work:
    weights = {name: np.ones(channels, np.float32) for name, channels in LAYERS.items()}
    return lambda: sum(value.mean((1, 2), np.float64) for value in engine.differences(batch, pairs, weights).values())


def dists_work(engine: Engine, batch: Array, pairs: Array) -> Work:
    return lambda: engine.moments(batch, pairs, [*LAYERS])


def peer(package: str, make: Callable[[Any], Any]) -> Any:
    """The module of a package with random weights; None if it isn't installed."""
    try:
        # PyPI's torchvision has these operators only beside a torch with CUDA; vgg16 doesn't use them.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):  # it exists
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        print(f"without {package}: {error}", file=sys.stderr)
        return None
    plain = models.vgg16
    models.vgg16 = lambda *_, **__: plain()  # random weights instead of a download
    try:
        return make(importlib.import_module(package)).eval()
    except ImportError as error:
        print(f"without {package}: {error}", file=sys.stderr)
        return None
    finally:
        models.vgg16 = plain


def peer_work(module: Any, batch: Array) -> Work:
    """The same pairs in a package, which computes the reference once for each of them."""
    images = torch.from_numpy(batch)
    first, others = images[:1].expand(len(images) - 1, -1, -1, -1), images[1:]

    def run() -> None:
        with torch.no_grad():
            module(first, others)

    return run


def measure(what: dict[str, Any], works: dict[str, Work], rounds: int, results: Measurements) -> None:
    """Measure each program; they take turns in every round."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        low, median, high = (1e3 * one for one in statistics.quantiles(times, n=4))
        ratios = {
            f"vs_{other}": statistics.median(a / b for a, b in zip(times, seconds[other], strict=True)) for other in works
        }
        compared = {key: ratios.get(key) for key in ("vs_passes", "vs_package")}
        results.add({**what, "program": name}, rounds=rounds, ms=median, ms_q1=low, ms_q3=high, **compared)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=256, help="side of the images")
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    peers = {
        "lpips": peer("lpips", lambda package: package.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)),
        "dists": peer("DISTS_pytorch", lambda package: package.DISTS(load_weights=False)),
    }
    results = Measurements("perceptual", given.output)
    poolings: dict[str, tuple[Pooling, Callable[[Engine, Array, Array], Work]]] = {
        "lpips": ("max", lpips_work), "dists": ("l2", dists_work),
    }  # fmt: skip
    for metric, (pooling, make) in poolings.items():
        engine = vgg16(pooling, given.threads)
        for count in COUNTS:
            batch = np.random.default_rng(0).standard_normal((count + 1, 3, given.size, given.size), np.float32)
            pairs = np.array([(0, index) for index in range(1, count + 1)])
            works: dict[str, Work] = {
                "vgg": make(engine, batch, pairs),
                "passes": lambda engine=engine, batch=batch: engine.run(batch, ["conv5_3"]),  # type: ignore[misc]
            }
            if peers[metric] is not None:
                works["package"] = peer_work(peers[metric], batch)
            what = {"metric": metric, "pairs": count, "size": given.size, "threads": given.threads}
            measure(what, works, given.rounds, results)


if __name__ == "__main__":
    main()
