"""vgg bench, on a narrow network."""

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import random_network, read_terminal
from vgg import engines
from vgg.cli import main
from vgg.cli.bench import titles_of

ENGINES = ("native", "onnxruntime") if engines.native_library() else ("onnxruntime",)
CHOSEN = [part for name in ENGINES for part in ("--engine", name)]
NOTE = [] if ENGINES[1:] else ["vgg: the native engine, which also measures the limit, is not installed"]
native = pytest.mark.skipif(not engines.native_library(), reason="needs the native engine, which was not built here")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    random_network().write(path)
    return path


@pytest.fixture
def bench(model, monkeypatch, capsys):
    """Runs the verb; gives its exit code, what went to stdout, and the lines that went to stderr."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["vgg", "bench", "--model", str(model), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err.splitlines()

    return run


def test_too_little_memory_is_one_line(bench):
    code, out, err = bench("--engine", "onnxruntime", "-b", 10**12)
    assert (code, out) == (1, "")
    assert err[-1].startswith("vgg: Unable to allocate ")


def test_json_is_a_list_of_records(bench):
    code, out, err = bench(*CHOSEN, "-b", 2, "-b", 1, "--threads", 1, "--rounds", 2, "--format", "json")
    assert (code, err) == (0, NOTE)
    records = json.loads(out)
    assert [(one["engine"], one["batch"]) for one in records] == [(name, batch) for batch in (2, 1) for name in ENGINES]
    for one in records:
        assert (one["model"], one["threads"], one["rounds"]) == ("tiny.onnx", 1, 2)
        assert one["processor"]
        assert 0 < one["ms_min"] <= one["ms_q1"] <= one["ms"] <= one["ms_q3"] <= one["ms_max"]
        assert (one["vs_onnxruntime"] == 1) == (one["engine"] == "onnxruntime")
        if ENGINES[1:]:
            assert one["of_limit"] == pytest.approx(one["ms_limit"] / one["ms"], abs=1e-3)


@native
def test_json_has_each_layers_share_of_the_limit(bench):
    code, out, _ = bench(*CHOSEN, "--threads", 1, "--rounds", 1, "--layers", "--format", "json")
    ours, theirs = json.loads(out)
    assert code == 0
    assert theirs["layers"] == {}
    assert next(iter(ours["layers"])) == "conv1_1"
    shares = {name: one["of_limit"] for name, one in ours["layers"].items()}
    assert all(share > 0 for share in shares.values() if share is not None)
    times = [(one["ms"], one["of_limit"]) for one in ours["layers"].values() if one["of_limit"]]
    assert sum(ms * share for ms, share in times) == pytest.approx(ours["ms_limit"], rel=0.05)  # the limits of layers add up


@native
def test_csv_has_the_layers_in_columns(bench):
    code, out, _ = bench(*CHOSEN, "--threads", 1, "--rounds", 1, "--layers", "--format", "csv")
    ours, theirs = csv.DictReader(io.StringIO(out))
    assert code == 0
    assert float(ours["conv2_1"]) > 0 < float(ours["logits"])
    assert theirs["conv2_1"] == theirs["logits"] == ""
    assert float(theirs["ms"]) > 0


def test_the_table_says_what_was_measured_and_where(bench):
    code, out, err = bench(*CHOSEN, "-b", 1, "-b", 3, "--threads", 2, "--rounds", 2)
    assert (code, err) == (0, NOTE)
    blocks = [block.splitlines() for block in out.split("\n\n")]
    assert len(blocks) == 2
    for batch, lines in zip((1, 3), blocks, strict=True):
        assert lines[0].startswith("tiny.onnx on ")
        assert f"batch {batch}, 2 threads, 2 rounds" in lines[0]
        heading = lines[-len(ENGINES) - 1].split()
        assert heading[:6] == ["engine", "median", "min", "q1", "q3", "max"]
        assert [line.split()[0] for line in lines[-len(ENGINES) :]] == list(ENGINES)


@native
def test_the_table_has_the_limit_and_the_layers(bench):
    code, out, _ = bench("--engine", "native", "--threads", 1, "--rounds", 1, "--layers")
    limit, heading = out.splitlines()[1:3]
    assert code == 0
    assert limit.startswith("limit 0.")
    assert "GFLOP/s" in limit
    assert "GB/s" in limit
    assert heading.split() == ["engine", "median", "min", "q1", "q3", "max", "of", "limit"]  # nothing to compare with
    layers = [line.split() for line in out.partition("\n\n")[2].splitlines()]
    assert layers[0] == ["layer", "ms", "of", "limit"]
    assert [layers[1][0], layers[-1][0]] == ["conv1_1", "logits"]


def test_models_side_by_side_are_told_apart(bench, model, tmp_path):
    twin = tmp_path / model.name
    twin.write_bytes(b"")
    assert titles_of([str(model), "keras/vgg16", "torchvision/vgg16"]) == ["tiny.onnx", "keras/vgg16", "torchvision/vgg16"]
    assert titles_of([str(model), str(twin)]) == [str(model), str(twin)]
    error = "vgg: models side by side require different names and the same input size"
    assert bench("-m", model, "--engine", "onnxruntime") == (1, "", [error])


def test_without_the_native_engine_a_line_says_so(bench, monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda: ("onnxruntime",))
    code, out, err = bench("--engine", "onnxruntime", "--rounds", 1)
    assert code == 0
    assert err == ["vgg: the native engine, which also measures the limit, is not installed"]
    assert "limit" not in out


def test_the_plot_is_drawn(bench, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    for name, batches in (("plot.svg", ("-b", 1, "-b", 2)), ("plot.png", ())):
        code, out, _ = bench(*CHOSEN, *batches, "--threads", 1, "--rounds", 1, "--plot", tmp_path / name)
        assert code == 0
        assert "tiny.onnx" in out
    drawn = (tmp_path / "plot.svg").read_text()
    texts = [*ENGINES, "tiny.onnx on ", "batch 1, 1 thread", "batch 2, 1 thread", *(["limit "] if ENGINES[1:] else [])]
    assert all(f">{text}" in drawn for text in texts)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert {path.name for path in tmp_path.iterdir()} == {"plot.svg", "plot.png"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--engine", "abacus"], "vgg: unknown engine 'abacus'; choose from auto, "),
        (["--engine", "onnxruntime", "--layers"], "vgg: --layers requires the native engine; add `--engine native`"),
        (["--plot", "plot.pdf"], "vgg: plot.pdf: unsupported format of a plot; use .png or .svg"),
        (["--plot", "nowhere/plot.png"], "vgg: nowhere/plot.png: can't be written: folder nowhere not found"),
        (["--model", "nowhere.onnx"], "vgg: nowhere.onnx: file or folder not found"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_1(bench, arguments, line):
    code, out, err = bench(*arguments)
    assert (code, out, len(err)) == (1, "", 1)
    assert err[0].startswith(line)


def test_a_plot_without_matplotlib_names_the_extra(bench, monkeypatch):
    monkeypatch.setattr("vgg.extras.find_spec", lambda name: None)
    assert bench("--engine", "onnxruntime", "--plot", "x.svg") == (
        1, "", ["vgg: --plot requires matplotlib; install with `pip install 'vgg[plot]'`"],
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["-b", "0"], ["--threads", "0"], ["--rounds", "0"], ["--format", "xml"], ["cat.jpg"]])
def test_wrong_usage_is_exit_2(bench, arguments):
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: vgg bench" in err[0]


def test_a_terminal_gets_a_bar_and_an_interrupt_ends_it(model):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "vgg", "bench", "-m", str(model), "-e", "onnxruntime", "--rounds", "200"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while not re.search(rb"[1-9]%", shown):  # it measures
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        read_terminal(ours)
        assert process.stdout.read() == b""
    assert process.returncode == 130
    assert b"Measuring" in shown
