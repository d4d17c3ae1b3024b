import ast
import json
import math
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import vgg
from conftest import ROOT
from vgg import json_output

ORDER = [
    "errors", "extras", "arrays", "progress", "files", "kinds", "json_output", "store", "parallel", "heads", "methods",
    "architectures", "labels", "image_formats", "decoding", "images", "preprocessing", "parameters", "network", "zoo",
    "formats", "module_layers", "module", "sources", "engines", "system", "predictions", "views", "overlay", "features",
    "gradients", "explanation", "perceptual", "torch", "classifier", "samples", "limits", "benchmark", "evaluation",
    "quantization", "training", "runs", "serving", "cli",
]  # fmt: skip


def imports(path):
    """The modules of vgg that a file imports, wherever in the file the import stands, as lists of names."""
    package = path.relative_to(ROOT / "src").parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ([*base, alias.name] for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)


def graph():
    """For each file of the package, the files that it depends on: modules, or packages of which it uses a name."""
    root, files = ROOT / "src/vgg", {}
    for path in sorted(root.rglob("*.py")):
        files[path] = set()
        for names in imports(path):
            for end in range(len(names), 1, -1) if names[0] == "vgg" else ():
                place = root.joinpath(*names[1:end])
                target = next((one for one in (place.with_suffix(".py"), place / "__init__.py") if one.exists()), None)
                if target:
                    files[path].add(target)
                    break
    return files


def room(path):
    return path.relative_to(ROOT / "src/vgg").parts[0].removesuffix(".py")


def test_every_file_states_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == vgg.__version__
    assert f"\n## {vgg.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"].split(" AND ")[0]


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution has no workflows")
def test_workflows_pin_actions_by_commit():
    """A tag can be moved to other code."""
    used = [one for path in (ROOT / ".github/workflows").glob("*.yml") for one in re.findall(r"uses: (.*)", path.read_text())]
    assert used
    for one in used:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", one), one


def test_importing_is_quick_and_light():
    code = """
import sys, time
start = time.process_time()
import vgg
took = time.process_time() - start
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


def test_imports_point_down():
    wrong = [
        f"{path.relative_to(ROOT)} imports {room(target)}"
        for path, targets in graph().items()
        for target in sorted(targets)
        if {room(path), room(target)} <= set(ORDER) and ORDER.index(room(target)) > ORDER.index(room(path))
    ]
    assert not wrong


def test_there_are_no_circles():
    files = graph()
    done = set()

    def visit(path, before):
        circle = [one.relative_to(ROOT / "src/vgg") for one in [*before, path]]
        assert path not in before, " -> ".join(map(str, circle[before.index(path) :]))
        if path not in done:
            for target in sorted(files[path] - {path}):
                visit(target, [*before, path])
            done.add(path)

    for path in files:
        visit(path, [])


def test_every_module_has_a_place_in_the_order():
    rooms = {room(path) for path in (ROOT / "src/vgg").rglob("*.py")}
    assert rooms - set(ORDER) == {"__init__", "__main__"}


def test_files_fit_in_one_sitting():
    for path in (ROOT / "src/vgg").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path


def test_json_has_one_writer_which_knows_no_nan():
    """Other writers would print NaN, which is no JSON."""
    wrong = [
        path.name for path in graph() if path.name != "json_output.py" and re.search(r"\bjson\.dumps?\(", path.read_text())
    ]
    assert not wrong
    value = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf}, "d": "NaN"}
    assert json.loads(json_output.dumps(value)) == {"a": [None, [1.5, None]], "b": {"c": None}, "d": "NaN"}
