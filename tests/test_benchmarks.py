"""The scripts in benchmarks/, and the tables that are made of their measurements."""

import csv
import math
import re
import statistics
import subprocess
import sys
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from conftest import ROOT
from training_helpers import cifar_folder

spec = spec_from_file_location("tables", ROOT / "scripts/tables.py")
tables = module_from_spec(spec)
sys.modules["tables"] = tables  # for its dataclasses
spec.loader.exec_module(tables)

import measurements  # noqa: E402  # tables.py makes benchmarks/ importable
import recipes  # noqa: E402


def script(name, *arguments):
    return [sys.executable, ROOT / f"benchmarks/{name}.py", *map(str, arguments)]


def write(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# Measurements


def test_a_measurement_replaces_that_of_the_same_thing(tmp_path, capsys):
    for seconds in (1.23456789, 2):
        found = measurements.Measurements("try", tmp_path)
        found.add({"engine": "a", "batch": 1}, seconds=seconds)
    found.add({"engine": "b", "batch": 1}, seconds=3.0, gpu=None)
    found.add({"engine": "a", "batch": 2}, other=1.23456789)
    [path] = tmp_path.iterdir()
    assert re.fullmatch(r"try-[a-z0-9-]+\.csv", path.name)
    rows = measurements.read(path)
    assert [(row["engine"], row["batch"], row["seconds"]) for row in rows] == [("a", "1", "2"), ("b", "1", "3"), ("a", "2", "")]
    assert rows[2]["other"] == "1.23457"
    assert all(f"vgg {version('vgg')}" in row["versions"] for row in rows)
    assert all(row["machine"] and int(row["cores"]) > 0 and "commit" in row for row in rows)
    assert found.find(engine="b")["seconds"] == "3"
    assert found.find(engine="c") is None
    assert "b, 1; seconds 3" in capsys.readouterr().out


def test_rows_of_another_machine_stay(tmp_path):
    found = measurements.Measurements("try", tmp_path, "GPU 1")
    found.add({"engine": "a"}, seconds=1)
    path = tmp_path / "try-gpu-1.csv"
    write(path, [{**row, "cores": "10000"} for row in measurements.read(path)])
    assert found.find(engine="a") is None
    found.add({"engine": "a"}, seconds=2)
    assert [row["seconds"] for row in measurements.read(path)] == ["1", "2"]


# The tables of the documentation


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.name)
def test_tables_are_made_of_the_measurements(page):
    assert tables.generated(page.read_text()) == page.read_text(), "run scripts/tables.py"


def test_every_table_is_on_a_page():
    names = [name for page in tables.PAGES for _, name, _ in tables.PART.findall(page.read_text())]
    assert sorted(names) == sorted(tables.TABLES)


def test_a_table_selects_rows(tmp_path):
    common = {"versions": "torch 2.13.0+cpu, MNN 3.6.1"}
    rows = [
        {"engine": "torch", "threads": 1, "ms": 12.6, "note": "", **common},
        {"engine": "torch", "threads": 2, "ms": 7, "note": "7.50", **common},
        {"engine": "native", "threads": 1, "ms": "", "note": "", **common},
        {"engine": "native", "threads": 2, "ms": 3, "note": "", **common},
    ]
    write(tmp_path / "try-a.csv", rows[:2])
    write(tmp_path / "try-b.csv", rows[2:])
    lines = [
        tables.Line("**native**", {"engine": "native"}),
        tables.Line("torch {torch}", {"engine": "torch"}),
        tables.Line("torch's note", {"engine": "torch"}, "{note}"),
        tables.Line("{MNN}", {"engine": "mnn"}),
    ]
    columns = [tables.Line(f"{threads} threads", {"threads": threads}, "{bold}{ms:.0f}{bold} ms") for threads in (1, 2)]
    table = tables.Table("try-*.csv", "engine", lines, columns)
    assert tables.markdown(table, tmp_path).splitlines() == [
        "| engine | 1 threads | 2 threads |",
        "| --- | --- | --- |",
        "| **native** | | **3** ms |",
        "| torch 2.13 | 13 ms | 7 ms |",
        "| torch's note | | 7.50 |",
    ]
    one_for_each = tables.Table("try-a.csv", "engine", "{engine}, {threads}", [tables.Line("ms", {}, "{ms}")])
    assert tables.markdown(one_for_each, tmp_path).splitlines()[2:] == ["| torch, 1 | 12.6 |", "| torch, 2 | 7 |"]
    write(tmp_path / "try-c.csv", rows[3:])
    with pytest.raises(ValueError, match="2 rows"):
        tables.markdown(table, tmp_path)


# The grid of recipes


def test_the_base_comes_first_and_then_the_changes_by_seed(tmp_path):
    titles = [recipes.BASE, "CutMix", "mixup"]
    runs = recipes.grid([tmp_path / "a", tmp_path / "b"], titles, 2, None)
    assert [(run.title, run.seed) for run in runs[::2]] == [
        ("base", 0), ("base", 1), ("CutMix", 0), ("mixup", 0), ("CutMix", 1), ("mixup", 1),
    ]  # fmt: skip
    assert [run.data.name for run in runs[:2]] == ["a", "b"]
    assert len({run.folder(tmp_path) for run in runs}) == len(runs)


def test_every_change_changes_the_recipe(tmp_path):
    runs = recipes.grid([tmp_path], list(recipes.CHANGES), 1, None)
    assert len({run.recipe for run in runs}) == len(recipes.CHANGES) == len(runs)
    assert {run.recipe for run in recipes.grid([tmp_path], list(recipes.CHANGES), 1, 3)}.isdisjoint(run.recipe for run in runs)


def test_the_summary_compares_runs_with_the_same_seed():
    place = {"dataset": "x", "network": "n", "epochs": "25", "processor_seconds": "60"}
    accuracies = {("base", 0): 80.0, ("base", 1): 82.0, ("other", 1): 85.0, ("alone", 0): 70.5}
    rows = [
        {**place, "change": change, "seed": str(seed), "test_top1": str(value)} for (change, seed), value in accuracies.items()
    ]
    base, other, alone = recipes.summary(rows)
    assert base["test_top1"] == f"81.00 ± {statistics.stdev((80, 82)):.2f}"
    assert (base["difference"], base["seeds"]) == ("", "2")
    assert (other["test_top1"], other["difference"]) == ("85.00", "+3.00")
    assert alone["difference"] == "-9.50"
    assert recipes.summary(rows[2:])[0]["difference"] == ""


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return cifar_folder(tmp_path_factory.mktemp("data") / "cifar-10-batches-bin", 320, 40)


def test_a_run_of_the_grid_is_made_once(cifar, tmp_path):
    command = script(
        "recipes", cifar, "--runs", tmp_path / "runs", "--output", tmp_path, "--only", "base", "--seeds", 1, "--epochs", 2
    )
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "1 runs, 1 of them left" in first
    [path] = tmp_path.glob("recipes-*.csv")
    [row] = measurements.read(path)
    assert (row["change"], row["seed"], row["epochs"], row["dataset"]) == ("base", "0", "2", "cifar-10-batches-bin")
    assert all(0 <= float(row[name]) <= 100 for name in ("test_top1", "test_top1_mirrored", "val_top1"))
    assert len(row["val_top1_by_epoch"].split()) == 2
    assert f"{float(row['val_top1']):.2f}" in row["val_top1_by_epoch"].split()
    assert float(row["processor_seconds"]) > 0
    assert re.search(r"base; 1; ", first)
    other = path.rename(tmp_path / "recipes-another-machine.csv")
    other.write_text(other.read_text().replace(row["machine"], "another machine"))
    second = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "1 runs, 0 of them left" in second
    assert re.search(r"base; 1; ", second)
    assert list(tmp_path.glob("recipes-*.csv")) == [other]


# The GPU


def test_the_benchmark_of_a_gpu_saves_each_measurement_at_once(cifar, tmp_path):
    """It runs on tiny networks here; stopped in the middle, it leaves whole files and no temporary ones."""
    with subprocess.Popen(script("gpu", cifar, "--output", tmp_path), stdout=subprocess.PIPE) as run:
        for line in run.stdout:
            if line.startswith(b"training: torch's module, in place"):
                run.terminate()
        assert run.wait(100) == 143
    [path] = tmp_path.glob("gpu-*.csv")
    assert {one.name for one in tmp_path.iterdir()} == {path.name, "runs"}
    rows = measurements.read(path)
    values = {row["measurement"]: row for row in rows}
    assert list(values)[:3] == ["peak", "engine: difference from the CPU", "engine: other best classes"]
    assert all(math.isfinite(float(row["value"])) for row in rows if row["measurement"] != "CIFAR")
    assert "training: vgg train" not in values
    assert values["engine, compiled, from pixels"]["unit"] == "images/s"
    assert float(values["engine, in place"]["share_of_peak"]) > 0
    trained = values["CIFAR"]
    assert (trained["dataset"], trained["epochs"], trained["epochs_done"]) == (cifar.name, "2", "2")
    assert 0 <= float(trained["test_top1"]) <= 100
    assert 0 < float(trained["not_waiting"]) <= 1
    assert float(trained["of_plain"]) > 0
