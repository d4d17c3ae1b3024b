"""The notebooks in examples/ run from top to bottom, and show what running them gives."""

import json

import pytest

from conftest import EXAMPLES


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs(notebook, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    cells = json.loads(notebook.read_text())["cells"]
    names = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] or cell["execution_count"], "it has not been run"
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
