"""The notebooks in examples/ run from top to bottom. The first one prints what its stored outputs show."""

import json

import pytest

from conftest import EXAMPLES


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, monkeypatch, capsys):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setenv("SIZE", "64")  # style transfer on a small scale
    monkeypatch.setenv("STEPS", "15")
    names = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] or cell["execution_count"], "the notebook was saved without its outputs"
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
            printed = capsys.readouterr().out
            if notebook.stem == "inference":  # the others print times
                stored = [line for output in cell["outputs"] if output.get("name") == "stdout" for line in output["text"]]
                assert printed == "".join(stored)
    if notebook.stem == "style-transfer":
        assert names["losses"][-1] < names["losses"][0] / 2
