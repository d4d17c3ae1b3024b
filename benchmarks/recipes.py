"""The accuracy of a recipe on small images, and its change by single settings: a base and its changes, each with several seeds.

    .venv/bin/python benchmarks/recipes.py cifar-10-batches-bin cifar-100-binary --runs runs

Each run is `vgg train` in a folder of its own in `--runs`; its accuracy is that of the test images, none of which chose the
epoch. When it ends, the mirrored copy of each is evaluated too, and the run becomes a row. Runs that have a row, from any
machine, are skipped and interrupted runs resume, so the same command continues the grid in any number of sittings. A run starts
over if the recipe's values have changed since.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from measurements import Measurements, Row, parser, read

from vgg import Classifier, load, sources
from vgg.evaluation import evaluate, records
from vgg.files import replacing
from vgg.views import Views

RECIPE, ARCHITECTURE, WIDTH = "cifar", "vgg11-bn", 0.25
SEEDS = 3
BASE = "base"
PLACE = ("dataset", "network", "epochs")  # columns of what is compared
MEANS = ("test_top1", "test_top1_mirrored", "val_top1", "processor_seconds")  # columns of which there is a mean
# The changes of the base by title: settings of `vgg train --set`.
CHANGES = {
    BASE: (),
    "no moving average": ("ema=0",),
    "random filters": ("filters=random",),
    "identity filters": ("filters=identity",),
    "no label smoothing": ("smoothing=0",),
    "random instead of alternating mirroring": ("flip=random",),
    "black border instead of reflection": ("border=black",),
    "no translation": ("crop_range=0",),
    "CutMix": ("cutmix=1",),
    "mixup": ("mixup=0.2",),
    "TrivialAugment": ("policy=trivial",),
    "RandAugment": ("policy=rand",),
    "random erasing": ("erasing=0.25",),
    "repeated augmentation": ("repeats=2",),
    "Muon instead of SGD": ("optimizer=muon",),
    "float32 instead of bfloat16": ("bf16=no",),
}


@dataclass(frozen=True)
class Run:
    """A run of the grid."""

    data: Path
    title: str
    settings: tuple[str, ...]
    seed: int
    epochs: int
    recipe: str  # digest of the recipe's values

    @property
    def what(self) -> dict[str, Any]:
        """The columns that identify the run."""
        place = {"dataset": self.data.resolve().name, "network": f"{ARCHITECTURE}, width {WIDTH}", "epochs": self.epochs}
        return {**place, "change": self.title, "seed": self.seed}

    @property
    def identity(self) -> Row:
        """The cells of its row that no other run has."""
        return {name: str(value) for name, value in {**self.what, "recipe": self.recipe}.items()}

    def folder(self, runs: Path) -> Path:
        return runs / self.data.resolve().name / f"{self.title.replace(' ', '-')}-{self.seed}-{self.recipe}"

    def measure(self, runs: Path, threads: int) -> dict[str, Any]:
        """Train or resume, then evaluate the test images; returns the row's values."""
        folder = self.folder(runs)
        folder.mkdir(parents=True, exist_ok=True)
        self._train(folder, threads)
        history, sittings = read(folder / "log.csv"), json.loads((folder / "sittings.json").read_text())
        wall, used = (None, None) if None in sittings else map(sum, zip(*sittings, strict=True))
        test, model = json.loads((folder / "test.json").read_text()), load(folder / "model.onnx", threads=threads)
        return {
            "test_top1": test["top1"], "test_top1_mirrored": mirrored_top1(model, self.data),
            "val_top1": test["val_top1"], "best_epoch": test["epoch"],
            "seconds": wall, "processor_seconds": used, "threads": threads,
            "settings": " ".join(self.settings), "recipe": self.recipe,
            "val_top1_by_epoch": " ".join(f"{float(row['val_top1']):.2f}" for row in history),
        }  # fmt: skip

    def _train(self, folder: Path, threads: int) -> None:
        """Run `vgg train`, and add its seconds and processor seconds to `sittings.json`, or null if this script is killed."""
        changes = [word for setting in (*self.settings, f"epochs={self.epochs}") for word in ("--set", setting)]
        command = [
            sys.executable, "-m", "vgg", "train", str(self.data), "-o", str(folder), "--recipe", RECIPE, "--arch", ARCHITECTURE,
            "--width", str(WIDTH), "--seed", str(self.seed), "--workers", str(threads), *changes,
        ]  # fmt: skip
        path, started = folder / "sittings.json", time.perf_counter()
        sittings = json.loads(path.read_text()) if path.exists() else []

        def save(sitting: list[float] | None) -> None:
            with replacing(path) as file:
                file.write(json.dumps([*sittings, sitting]).encode())

        save(None)
        with open(folder / "messages.txt", "a") as messages:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            process = subprocess.Popen(command, stdout=messages, stderr=messages, env=environment)
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        save([time.perf_counter() - started, used.ru_utime + used.ru_stime])
        if process.returncode:
            raise SystemExit(f"vgg train failed; see {folder / 'messages.txt'}")


def mirrored_top1(classifier: Classifier, data: Path) -> float:
    """Top-1 accuracy of a dataset's test images in percent, with the mirrored copy of each."""
    network = classifier.network
    dataset = sources.open(sources.splits(data).test, network.architecture.classes, network.labels)
    return records(evaluate([classifier], dataset, Views(flip=True)))[0]["top1"]


def grid(folders: Sequence[Path], titles: Sequence[str], seeds: int, epochs: int | None) -> list[Run]:
    """The runs in order: the base with all seeds, then all changes with the first seed, with the second, …"""
    from vgg.training import recipes

    def run(data: Path, title: str, seed: int) -> Run:
        settings = (*CHANGES[title], *([f"epochs={epochs}"] if epochs else []))
        values = asdict(recipes.changed(recipes.named(RECIPE), settings))
        decisive = {name: value for name, value in values.items() if name not in ("name", "source", "accuracy")}
        digest = sha256(repr(decisive).encode()).hexdigest()[:8]
        return Run(data, title, CHANGES[title], seed, values["epochs"], digest)

    changes = [title for title in titles if title != BASE]
    order = [(BASE, seed) for seed in range(seeds) if BASE in titles]
    order += [(title, seed) for seed in range(seeds) for title in changes]
    return [run(data, title, seed) for title, seed in order for data in folders]


def rows_of(folder: Path) -> list[Row]:
    """The rows of all runs of all machines."""
    return [row for path in sorted(folder.glob("recipes-*.csv")) for row in read(path)]


def summary(rows: Sequence[Row]) -> list[Row]:
    """A row for each change of a dataset: mean accuracies over the seeds, and the mean difference from the base's, in percent.

    The difference, of the seeds that both have, and the standard deviation are empty where there is none.
    """
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        seeds = groups.setdefault(tuple(row[name] for name in (*PLACE, "change")), {})
        if seeds.setdefault(row["seed"], row) is not row:
            raise ValueError(f"two rows of the same run, {row['change']} with seed {row['seed']}: of two machines or recipes?")
    found = []
    for (*place, change), runs in groups.items():
        base = groups.get((*place, BASE), {})
        columns = {name: [float(row[name]) for row in runs.values() if row.get(name)] for name in MEANS}
        differences = [float(row["test_top1"]) - float(base[seed]["test_top1"]) for seed, row in runs.items() if seed in base]
        means = {name: f"{statistics.mean(values):.2f}" if values else "" for name, values in columns.items()}
        deviation = f" ± {statistics.stdev(columns['test_top1']):.2f}" if len(runs) > 1 else ""
        found.append(
            {
                **dict(zip(PLACE, place, strict=True)), "change": change, "seeds": str(len(runs)), **means,
                "test_top1": means["test_top1"] + deviation,
                "difference": f"{statistics.mean(differences):+.2f}" if differences and change != BASE else "",
            }
        )  # fmt: skip
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("folders", nargs="+", type=Path, metavar="folder", help="folder of a dataset with test images")
    options.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    options.add_argument(
        "--only", nargs="+", default=list(CHANGES), choices=list(CHANGES), metavar="change", help="titles of changes"
    )
    options.add_argument("--epochs", type=int, help="number of epochs (default: the recipe's)")
    options.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds")
    options.add_argument("--processes", type=int, default=1, help="number of runs at once, which share the cores")
    given = options.parse_args()
    if missing := [str(folder) for folder in given.folders if not sources.splits(folder).test]:
        options.error(f"{', '.join(missing)}: no test images")
    results, threads = Measurements("recipes", given.output), max(1, (os.cpu_count() or 1) // given.processes)
    runs = grid(given.folders, given.only, given.seeds, given.epochs)
    rows = rows_of(given.output)
    left = [run for run in runs if not any(run.identity.items() <= row.items() for row in rows)]
    print(f"{len(runs)} runs, {len(left)} of them left", flush=True)
    with ThreadPoolExecutor(given.processes) as pool:
        waiting = {pool.submit(run.measure, given.runs, threads): run for run in left}
        try:
            for done in as_completed(waiting):
                results.add(waiting[done].what, **done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for row in summary(rows_of(given.output)):
        print(*row.values(), sep="; ")


if __name__ == "__main__":
    main()
