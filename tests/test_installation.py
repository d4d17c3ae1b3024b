"""Installations that lack something: extras, the native engine, a cache folder that can be written."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest

from conftest import EXAMPLES, FIXTURES, ROOT, needs_native
from quantized_files import quantized
from training_helpers import class_folders
from vgg import engines

WRITTEN = FIXTURES / "written-0.1"
MODEL = WRITTEN / "float.onnx"
PHOTO = EXAMPLES / "rocket.jpg"
# The packages that `pip install vgg` installs, by the names of their modules.
CORE = ("vgg", "numpy", "ml_dtypes", "PIL", "typer", "shellingham", "annotated_doc", "rich", "pygments", "markdown_it", "mdurl",
        "filelock", "platformdirs")  # fmt: skip
BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if path is None and top not in sys.stdlib_module_names and top not in {allowed!r} and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
from vgg.cli import main
main()
"""
# A copy of the package comes before an editable installation, which a hook finds.
COPIED = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in type(one).__module__]
sys.path.insert(0, {folder!r})
from vgg.cli import main
main()
"""


def run(code, *arguments, **environment):
    """Exit code, standard output, and the lines of standard error of a command in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr.splitlines()


def without_extras(*arguments, **environment):
    return run(BLOCKED.format(allowed=CORE), *arguments, **environment)


def test_the_core_is_what_the_package_requires():
    required = [one for one in metadata.requires("vgg") if "extra ==" not in one]
    names = {one.split(">")[0].split("<")[0] for one in required}
    assert {name.replace("pillow", "PIL") for name in names} <= {*CORE}


def test_the_extra_all_has_the_packages_of_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def packages(extra):
        for one in extras[extra]:
            name, _, inner = re.split("[>=<]", one)[0].partition("[")
            if name == "vgg":
                yield from (package for part in inner.rstrip("]").split(",") for package in packages(part))
            else:
                yield name

    assert {package for extra in extras for package in packages(extra)} == {*packages("all")}


@needs_native
@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", PHOTO],
        ["classify", PHOTO, "-m", WRITTEN / "torchvision.pth"],
        ["inspect", WRITTEN / "int4.onnx"],
        ["models"],
        ["pull", "vgg16-gap"],
        ["convert", MODEL, "-o", "out.onnx"],
        ["convert", MODEL, "-o", "out.pth"],
        ["sample", "check", WRITTEN / "samples.tar.gz"],
        ["evaluate", "data", "-m", WRITTEN / "trained.onnx"],
        ["quantize", MODEL, "-o", "out.onnx", "--bits", "4"],
        ["features", PHOTO, "-m", MODEL, "-o", "out.npz"],
        ["explain", PHOTO, "-m", MODEL, "-o", "out.png"],
        ["bench", "-m", MODEL, "--rounds", "1"],
        ["bench", "--system"],
    ],
    ids=lambda arguments: " ".join(arguments[: 2 if arguments[0] == "sample" else 1]),
)
def test_a_verb_works_without_extras(arguments, tmp_path, monkeypatch):
    class_folders(tmp_path / "data", classes=2, each=2)
    monkeypatch.chdir(tmp_path)
    code, out, err = without_extras(*arguments)
    assert code == 0, err
    assert out or err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["convert", FIXTURES / "keras2-whole.h5", "-o", "out.onnx"], "keras2-whole.h5: a Keras file requires h5py; .*[keras]"),
        (["inspect", "functions.onnx"], "functions.onnx: a graph with functions requires onnx; .*[onnx]"),
        (["sample", "make", MODEL, "-o", "out.tar.gz"], "sample data requires onnxruntime; .*[onnxruntime]"),
        (["classify", PHOTO, "-e", "onnxruntime"], "onnxruntime is not installed; .*[onnxruntime]"),
        (["classify", PHOTO, "-e", "torch"], "torch is not installed; .*[torch]"),
        (["classify", PHOTO, "-o", "parts"], "bulk work requires pyarrow, fsspec; .*[scale]"),
        (
            ["quantize", MODEL, "-o", "out.onnx", "--method", "qdq", "--calibrate", EXAMPLES],
            "quantization of activations requires onnx, onnxruntime; .*[quantize]",
        ),
        (["quantize", MODEL, "-o", "out.onnx", "--rank", "6"], "--rank requires scipy; .*[quantize]"),
        (["features", PHOTO, "-m", MODEL, "-o", "out.parquet"], "a Parquet file requires pyarrow; .*[parquet]"),
        (["bench", "-m", MODEL, "--plot", "out.svg"], "--plot requires matplotlib; .*[plot]"),
        (["prepare", "check", "."], ""),
        (["serve", "-m", MODEL], "serving requires msgspec, starlette, .*[serve]"),
        (["train", EXAMPLES, "-o", "run"], "training requires torch, kornia, .*[train]"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_missing_extra_is_one_line(arguments, line, tmp_path, monkeypatch):
    from onnx import helper, load, save

    model = load(MODEL)
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], []))
    save(model, tmp_path / "functions.onnx")
    monkeypatch.chdir(tmp_path)
    code, _, err = without_extras(*arguments)
    assert (code, len(err)) == (1, 1), err
    start, _, extra = line.partition(".*")
    assert start.strip() in err[0]
    assert not line or f"pip install 'vgg{extra}'" in err[0]


@needs_native
def test_a_quantized_graph_is_computed_without_onnx_runtime(tmp_path):
    code, out, err = without_extras("classify", PHOTO, "-m", WRITTEN / "qdq.onnx", "--format", "csv")
    assert (code, len(out.splitlines()), err) == (0, 6, [])
    path = quantized(tmp_path, head="average, 40 gelu, classes")  # with an activation that is quantized
    code, out, err = without_extras("classify", PHOTO, "-m", path, "--format", "csv")
    assert (code, len(out.splitlines()), len(err)) == (0, 6, 2), err  # the other line is about class names
    assert "are computed in floats, since fc6.raw is quantized before its gelu" in err[0]
    assert "pip install 'vgg[onnxruntime]'" in err[0]


# The native engine


@pytest.fixture
def copied(tmp_path):
    """A function that returns code for a copy of the package whose native library has some bytes, or is missing."""

    def copy(content: bytes | None) -> str:
        left_out = shutil.ignore_patterns("embedded.onnx", "*.so", "__pycache__")
        shutil.copytree(ROOT / "src/vgg", tmp_path / "vgg", ignore=left_out)
        (tmp_path / "vgg/embedded.onnx").symlink_to(ROOT / "src/vgg/embedded.onnx")
        if content is not None:
            (tmp_path / "vgg/engines/libvgg.so").write_bytes(content)
        return COPIED.format(folder=str(tmp_path))

    return copy


def library() -> bytes:
    return engines.native_library().read_bytes()


DAMAGES = {
    "missing": (lambda: None, "has no native engine", "missing"),
    "truncated": (lambda: library()[:200_000], "the file is incomplete", "broken"),
    "nearly complete": (lambda: library()[:-1], "the file is incomplete", "broken"),
    "empty": (lambda: b"", "can't load the native engine", "broken"),
    "of another processor": (lambda: library()[:18] + b"\xf3\x00" + library()[20:], "can't load the native engine", "broken"),
}


@needs_native
@pytest.mark.parametrize("damage", DAMAGES)
def test_without_the_native_engine_another_one_is_used_with_a_note(copied, damage):
    content, problem, state = DAMAGES[damage]
    code = copied(content())
    status, out, err = run(code, "classify", PHOTO, "-m", MODEL, "--format", "csv")
    assert status == 0
    assert len(out.splitlines()) == 6
    assert len(err) == 1
    assert err[0].startswith("vgg: note: using onnxruntime, which is slower: ")
    assert problem in err[0]
    status, _, err = run(code, "classify", PHOTO, "-m", MODEL, "-e", "native")
    assert (status, len(err)) == (1, 1)
    assert problem in err[0]
    status, out, _ = run(code, "bench", "--system", "--format", "json")
    assert status == 0
    [fact] = [one for one in json.loads(out) if one["name"] == "native"]
    assert fact["value"] == state
    assert problem in fact["detail"]


@needs_native
def test_without_any_engine_the_error_names_both_remedies(copied):
    code = copied(None).partition("from vgg.cli")[0] + BLOCKED.format(allowed=CORE)
    status, out, err = run(code, "classify", PHOTO)
    assert (status, out, len(err)) == (1, "", 1)
    assert "install a compiler and then vgg again, or `pip install 'vgg[onnxruntime]'`" in err[0]


# The report


def test_the_report_has_each_part(tmp_path):
    status, out, _ = without_extras("bench", "--system", "--format", "json", VGG_HOME=str(tmp_path / "cache"))
    facts = {(one["part"], one["name"]): one for one in json.loads(out)}
    assert status == 0
    assert facts["version", "vgg"]["value"] == metadata.version("vgg")
    assert facts["version", "numpy"]["value"] == metadata.version("numpy")
    assert {name for part, name in facts if part == "engine"} == {*engines.ENGINES}
    assert facts["engine", "onnxruntime"]["value"] == "missing"
    assert facts["cache", "folder"]["value"] == str(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    extras = {name for part, name in facts if part == "extra"}
    assert {*metadata.metadata("vgg").get_all("Provides-Extra")} - extras == {"all"}


def test_a_broken_part_is_a_line_of_the_report(tmp_path):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text("raise RuntimeError('its library\\nis broken')")
    (tmp_path / "home").write_text("a file")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from vgg.cli import main; main()"
    status, out, err = run(code, "bench", "--system", VGG_HOME=str(tmp_path / "home/cache"))
    rows = [line for line in out.splitlines() if " broken " in line]
    assert (status, err, len(rows)) == (0, [], 2)
    assert "its library is broken" in rows[0]
    assert "set VGG_HOME to another folder" in rows[1]
