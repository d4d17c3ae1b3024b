import re
import subprocess
import sys

import pytest

import vgg
from conftest import ROOT

ORDER = [
    "errors", "files", "parallel", "architectures", "labels", "images", "preprocessing", "parameters", "network", "zoo",
    "formats", "engines", "classifier", "perceptual", "torch", "datasets", "explanation", "overlay", "evaluation", "features",
    "scale", "samples", "benchmark", "quantization", "serving", "training", "cli",
]  # fmt: skip
FOLDERS = (
    "zoo", "formats", "engines", "datasets", "evaluation", "scale", "samples", "quantization", "serving", "training", "cli",
)  # fmt: skip


def test_importing_is_quick_and_light():
    code = """
import sys, time
start = time.perf_counter()
import vgg
took = time.perf_counter() - start
print(took, sorted({'numpy', 'onnx', 'onnxruntime', 'PIL', 'typer'} & set(sys.modules)))
"""
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(3)]
    assert all(run.split(" ", 1)[1] == "[]\n" for run in runs)
    assert min(float(run.split()[0]) for run in runs) < 0.1


@pytest.mark.parametrize("name", vgg.__all__)
def test_every_public_name_is_there_and_explained(name):
    value = getattr(vgg, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vgg.nothing  # noqa: B018


def test_an_import_only_points_to_something_listed_above_it():
    for path in sorted((ROOT / "src/vgg").rglob("*.py")):
        room = path.relative_to(ROOT / "src/vgg").parts[0].removesuffix(".py")
        if room not in ORDER:
            continue
        prefix = r"\.\." if path.parent.name in FOLDERS else r"\."
        for line in path.read_text().splitlines():
            for match in re.finditer(rf"^from {prefix}(\w+|) ?(?:\.\w+)* ?import (.+)", line):
                targets = [match[1]] if match[1] else [name.strip() for name in match[2].split(",")]
                for target in targets:
                    assert target not in ORDER or ORDER.index(target) <= ORDER.index(room), f"{path.name}: {line}"


def test_files_fit_in_one_sitting():
    for path in (ROOT / "src/vgg").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
