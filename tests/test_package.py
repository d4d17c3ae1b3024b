import ast
import subprocess
import sys

import pytest

import vgg
from conftest import ROOT

ORDER = [
    "errors", "extras", "arrays", "progress", "files", "store", "parallel", "architectures", "labels", "images",
    "preprocessing", "parameters", "network", "zoo", "formats", "module", "sources", "engines", "predictions", "views",
    "overlay", "features", "explanation", "perceptual", "torch", "classifier", "samples", "benchmark", "evaluation",
    "quantization", "training", "runs", "serving", "cli",
]  # fmt: skip


def imports(path):
    """Every module of vgg that a file imports, as `room` or `room.module`, wherever in the file the import stands."""
    package = list(path.relative_to(ROOT / "src").parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            full = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                yield [*full, alias.name][:3] if full[:1] == ["vgg"] else []
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[:3]


def graph():
    """The files of the package and the files that each imports; rooms by their place in ORDER."""
    files = {}
    root = ROOT / "src/vgg"
    for path in sorted(root.rglob("*.py")):
        found = set()
        for parts in imports(path):
            if parts[:1] != ["vgg"] or len(parts) < 2:
                continue
            for end in (3, 2):
                place = root.joinpath(*parts[1:end])
                for target in (place.with_suffix(".py"), place / "__init__.py"):
                    if target.exists() and len(parts) >= end:
                        found.add(target)
        files[path] = found
    return files


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


def room(path):
    return path.relative_to(ROOT / "src/vgg").parts[0].removesuffix(".py")


def test_an_import_only_points_to_something_listed_above_it():
    wrong = [
        f"{path.relative_to(ROOT)} imports {room(target)}"
        for path, targets in graph().items()
        for target in targets
        if room(path) in ORDER and room(target) in ORDER and ORDER.index(room(target)) > ORDER.index(room(path))
    ]
    assert not wrong


def test_no_file_imports_itself_by_a_detour():
    files = graph()
    done = set()

    def visit(path, before):
        assert path not in before, " -> ".join(str(one.relative_to(ROOT)) for one in [*before[before.index(path) :], path])
        if path not in done:
            for target in files[path] - {path}:
                if target.name != "__init__.py" or target.parent != path.parent:  # a package names its modules
                    visit(target, [*before, path])
            done.add(path)

    for path in files:
        if path != ROOT / "src/vgg/__init__.py":
            visit(path, [])


def test_every_room_has_a_place_in_the_order():
    rooms = {room(path) for path in (ROOT / "src/vgg").rglob("*.py")}
    assert rooms - set(ORDER) == {"__init__", "__main__"}


def test_files_fit_in_one_sitting():
    for path in (ROOT / "src/vgg").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
