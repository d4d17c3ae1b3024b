"""What a shell can do to a command: streams that are full or closed, names of any bytes and any length."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import EXAMPLES, random_network
from vgg import Labels
from vgg.cli import VERBS

ODD = os.fsdecode(b"odd \xff\xc3(\x1b[31m\n.jpg")  # no UTF-8, a terminal's code, a line break
LONG = "n" * 300

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")

# A command of each verb that prints a result and succeeds in the folder of `place`; `vgg serve` prints none.
COMMANDS = {
    "classify": "classify a.jpg -m tiny.onnx --format json",
    "convert": "convert --help",
    "inspect": "inspect tiny.onnx",
    "models": "models",
    "pull": "pull vgg16-gap",
    "sample": "sample check sample.tar.gz",
    "evaluate": "evaluate data -m tiny.onnx --format csv",
    "prepare": "prepare --help",
    "quantize": "quantize --help",
    "features": "features --help",
    "explain": "explain a.jpg -m tiny.onnx -o heat.png",
    "compare": "compare a.jpg a.jpg -m tiny.onnx",
    "bench": "bench --help",
    "serve": "serve --help",
    "train": "train --help",
}


def vgg(place: Path, command: str, *more: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a shell, whose redirections it may have."""
    line = " ".join(["exec", sys.executable, "-m", "vgg", command, '"$@"', redirect])
    variables = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONUTF8": "1", "VGG_HOME": str(place / "cache")}
    arguments = ["sh", "-c", line, "sh", *more]
    return subprocess.run(
        arguments, cwd=place, capture_output=True, timeout=120, env={**variables, **environment}, stdin=subprocess.DEVNULL
    )


def failed(result: subprocess.CompletedProcess[bytes], code: int, *why: str) -> None:
    """Check the exit code, and that there is one line, which has these parts."""
    message = result.stderr.decode()
    assert (result.returncode, message.count("\n"), message[:5]) == (code, 1, "vgg: "), message
    assert all(part in message for part in why), message


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shell")
    labels = Labels(("ant", "bee"))
    random_network(labels=labels, classes=2, width=1 / 64, input_size=224).write(folder / "tiny.onnx")
    for name in ("a.jpg", "odd/0.jpg", f"odd/{ODD}", "odd/z.jpg", "data/ant/1.jpg", f"data/bee/{ODD}"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EXAMPLES / "rocket.jpg", folder / name)
    (folder / "broken").mkdir()
    (folder / "broken" / ODD).write_bytes(b"nothing")
    vgg(folder, "sample make tiny.onnx -o sample.tar.gz --sets 1")
    return folder


def test_every_verb_has_a_command():
    assert set(COMMANDS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_line(place, verb):
    failed(vgg(place, COMMANDS[verb], redirect="> /dev/full"), 1, "standard output: the disk is full")


@pytest.mark.parametrize("verb", VERBS)
def test_a_closed_output_is_one_line_and_no_file_gets_it(place, verb):
    failed(vgg(place, COMMANDS[verb], redirect=">&-"), 1, "standard output: ")


@pytest.mark.parametrize("redirect", ["2>&-", "2> /dev/full", "<&-"])
@pytest.mark.parametrize("verb", ["classify", "explain"])
def test_closed_messages_and_input_change_nothing(place, verb, redirect):
    usual, result = vgg(place, COMMANDS[verb]), vgg(place, COMMANDS[verb], redirect=redirect)
    assert (result.returncode, usual.returncode) == (0, 0), result.stderr
    assert result.stdout == usual.stdout
    if verb == "explain":
        assert (place / "heat.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("verb", ["classify", "explain"])
def test_a_closed_input_is_one_line(place, verb):
    output = "-o x.png" if verb == "explain" else ""
    failed(vgg(place, f"{verb} - -m tiny.onnx {output}", redirect="<&- > /dev/null"), 1, "standard input: ")


def test_an_endless_input_is_refused(place):
    failed(vgg(place, "explain - -m tiny.onnx -o x.png", redirect="< /dev/zero"), 1, "standard input: exceeds 256 MiB")


def test_a_reader_that_leaves_is_quiet(place):
    line = f"{sys.executable} -m vgg models --format json | head -c 10"
    result = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60)
    assert result.stderr == b""
    assert result.returncode in (0, 1)


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "latin-1:strict"])
@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_any_name_can_be_read_back_from_json(place, format, encoding):
    result = vgg(place, f"classify odd -m tiny.onnx --format {format}", PYTHONIOENCODING=encoding)
    assert result.returncode == 0, result.stderr
    text = result.stdout.decode(encoding.partition(":")[0])
    records = json.loads(text) if format == "json" else list(map(json.loads, text.splitlines()))
    assert [one["image"] for one in records] == [f"odd/{name}" for name in ("0.jpg", ODD, "z.jpg")]


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_any_name_can_be_printed(place, encoding):
    table = vgg(place, "classify odd -m tiny.onnx", PYTHONIOENCODING=encoding)
    assert [line for line in table.stdout.decode().splitlines() if line.startswith("odd")] == [
        "odd/0.jpg", r"odd/odd \udcff\udcc3(\x1b[31m\n.jpg", "odd/z.jpg"
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(vgg(place, "classify odd -m tiny.onnx --format csv").stdout.decode(), newline="")))
    assert rows[2]["image"] == "odd/" + ODD.replace("\udcff\udcc3", r"\udcff\udcc3")
    broken = vgg(place, "classify broken -m tiny.onnx", PYTHONIOENCODING=encoding)
    failed(broken, 1, r"broken/odd \udcff\udcc3(\x1b[31m\n.jpg: not an image")


def test_any_name_of_a_model_is_described(place):
    model = place / ODD.replace(".jpg", ".onnx")
    shutil.copy(place / "tiny.onnx", model)
    described = vgg(place, "inspect --format json", model.name, PYTHONIOENCODING="utf-8:strict")
    assert json.loads(described.stdout)["file"] == model.name
    assert rb"odd \udcff\udcc3(\x1b[31m\n.onnx" in vgg(place, "inspect", model.name).stdout
    converted = vgg(place, "convert -o converted.safetensors", model.name)
    assert converted.returncode == 0, converted.stderr


def test_any_name_is_in_reports_and_tables(place):
    result = vgg(place, "evaluate data -m tiny.onnx --predictions p.csv --report r.html --fresh")
    assert result.returncode == 0, result.stderr
    assert rb"bee/odd \udcff\udcc3(" in (place / "p.csv").read_bytes()
    for kind in ("npz", "parquet"):
        assert vgg(place, f"features odd -m tiny.onnx -o f.{kind}").returncode == 0
    for verb, source in (("classify", "odd"), ("features", "odd"), ("evaluate", "data")):
        parts = vgg(place, f"{verb} {source} -m tiny.onnx --output parts-{verb}")
        assert parts.returncode == 0, parts.stderr
        from pyarrow import parquet

        names = parquet.read_table(place / f"parts-{verb}", columns=["image"])["image"].to_pylist()
        assert any(r"odd \udcff\udcc3(" in name for name in names)


@pytest.mark.parametrize(
    "command",
    [
        "classify NAME -m tiny.onnx", "classify NAME.png -m tiny.onnx", "classify a.jpg -m NAME", "classify a.jpg -m NAME.onnx",
        "classify a.jpg -m tiny.onnx --labels NAME", "inspect NAME", "convert NAME -o x.onnx", "convert tiny.onnx -o NAME.onnx",
        "evaluate NAME -m tiny.onnx", "explain NAME -m tiny.onnx -o x.png", "explain a.jpg -m tiny.onnx -o NAME.png",
        "features NAME -m tiny.onnx -o x.npz", "features a.jpg -m tiny.onnx -o NAME.npz", "sample check NAME",
        "sample make NAME -o x.tar.gz", "sample make tiny.onnx -o NAME.tar.gz", "quantize NAME -o x.onnx", "bench -m NAME",
        "quantize tiny.onnx -o NAME.onnx", "prepare imagenet --val NAME -o x", "prepare imagenet --val a.jpg -o NAME",
        "prepare check NAME", "pull NAME", "serve -m NAME.onnx", "classify a.jpg -m tiny.onnx -o NAME",
        "evaluate data -m tiny.onnx --report NAME.html", "evaluate data -m tiny.onnx --real NAME",
    ],
)  # fmt: skip
def test_a_name_that_is_too_long_is_one_line(place, command):
    result = vgg(place, command.replace("NAME", LONG), redirect="> /dev/null")
    assert result.returncode == 1
    assert LONG[:200].encode() in result.stderr
    assert all(line.startswith(b"vgg: ") for line in result.stderr.splitlines())


def test_an_empty_name_is_not_the_current_folder(place):
    failed(vgg(place, "classify '' -m tiny.onnx", redirect="> /dev/null"), 1, "an empty name")
