"""Time and memory of bulk work by the number of images.

    .venv/bin/python benchmarks/bulk.py run local images/ 1000 10000 100000
    .venv/bin/python benchmarks/bulk.py run ray images/ 1000 10000 100000
    .venv/bin/python benchmarks/bulk.py plot benchmarks/results/bulk-*.csv bulk.png

Missing images are created: JPEG files of 40x40, a thousand per folder. The network is narrow, so that the overhead outside the
engine dominates. Each run has a process of its own; its time starts when Python has started and imported the
engines, and includes Ray's start.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from measurements import Measurements, parser, read
from PIL import Image

NAMES = {"local": "one process", "ray": "Ray"}


def make(folder: Path, count: int) -> list[str]:
    """Folders with this number of images in total."""
    folders = [folder / f"{number:03}" for number in range(count // 1000)]
    for number, inside in enumerate(folders):
        inside.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        for index in range(len(list(inside.iterdir())), 1000):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            image = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
            image.save(inside / f"{index:03}.jpg", quality=80)
    return [str(one) for one in folders]


def network():
    """VGG-11 of a tenth of the width, for 32x32, with random weights."""
    from dataclasses import replace

    import vgg
    from vgg.preprocessing import PRESETS

    architecture = vgg.Architecture("vgg11", classes=10, width=0.1, input_size=32)
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in architecture.parameters.items()}
    return vgg.Network(architecture, parameters, replace(PRESETS["torchvision"], size=36, crop=32))


def memory(process: Path) -> tuple[str, int]:
    """The command of a process, and its peak memory in bytes."""
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return (process / "cmdline").read_bytes().decode(errors="replace"), int(lines.get("VmHWM", "0 kB").split()[0]) * 1024


def watch(peak: dict[str, int], stop: threading.Event) -> None:
    """Record the peaks of this process and of Ray's workers."""
    while not stop.wait(0.5):
        for process in (path for path in Path("/proc").iterdir() if path.name.isdecimal()):
            try:
                name, most = memory(process)
            except OSError:
                continue  # it has ended
            if "MapWorker" in name:
                peak["worker"] = max(peak["worker"], most)
        peak["driver"] = memory(Path("/proc/self"))[1]


def measure(results: Measurements, runner: str, folders: list[str]) -> None:
    begun = time.perf_counter()
    from vgg import runs

    peak, stop, first = {"driver": 0, "worker": 0}, threading.Event(), []
    thread = threading.Thread(target=watch, args=(peak, stop))
    thread.start()

    def progress(task: str, done: int, total: int | None, unit: str = "", /) -> None:
        if done and not first:
            first.append(time.perf_counter() - begun)

    with tempfile.TemporaryDirectory() as output:
        done = runs.run(
            runs.Classify(), [("narrow", network())], folders, f"{output}/out", runner=runner, threads=1, progress=progress
        )
    stop.set()
    thread.join()
    seconds = time.perf_counter() - begun
    results.add({"runner": runner, "images": done.images}, seconds=seconds, first=first[0], **peak)


def plot(file: str, output: str) -> None:
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for key, runner in NAMES.items():
        if not (rows := [row for row in read(Path(file)) if row["runner"] == key]):
            continue
        counts, ray = [int(row["images"]) / 1000 for row in rows], key == "ray"
        left.plot(counts, [float(row["seconds"]) for row in rows], "o-", label=runner)
        for process in ("driver", "worker")[: 1 + ray]:
            memory = [float(row[process]) / 2**20 for row in rows]
            right.plot(counts, memory, "o-", label=f"{runner}: {process}" if ray else runner)
    for axes, title in ((left, "seconds"), (right, "peak memory of a process, MiB")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("thousand images")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(output, dpi=100)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("what", choices=("run", "measure", "plot"))
    options.add_argument("rest", nargs="+")
    given = options.parse_args()
    if given.what == "plot":
        plot(*given.rest)
    elif given.what == "measure":
        measure(Measurements("bulk", given.output), given.rest[0], given.rest[1:])
    else:
        runner, folder, *counts = given.rest
        for count in counts:
            command = [sys.executable, __file__, "--output", given.output, "measure", runner]
            subprocess.run([*command, *make(Path(folder), int(count))], check=True)


if __name__ == "__main__":
    main()
