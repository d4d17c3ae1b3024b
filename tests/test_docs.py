"""The documents agree with the code."""

import re

import pytest
import typer

import vgg
from conftest import ROOT
from vgg.cli import app
from vgg.formats import metadata
from vgg.preprocessing import PRESETS

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def verbs(group, before=""):
    """The commands by what is typed for them: `classify`, `sample make`."""
    for name, command in group.commands.items():
        yield from verbs(command, f"{before}{name} ") if hasattr(command, "commands") else [(before + name, command)]


COMMANDS = dict(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_option_of_every_verb_is_documented(verb):
    text = (ROOT / "docs/command-line.md").read_text()
    section = re.search(rf"## vgg {verb}\n(.*?)(?=\n## |\Z)", text, re.DOTALL)
    assert section, f"docs/command-line.md has no section on vgg {verb}"
    for parameter in COMMANDS[verb].params:
        for option in parameter.opts:
            assert not option.startswith("-") or f"`{option}`" in section[1], option


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_one_that_exists(document):
    for words in re.findall(r"^\$ (?:.*[|&] )?(?:\.venv/bin/)?vgg (\w+.*)$", document.read_text(), re.MULTILINE):
        verb = next(verb for verb in COMMANDS if f"{words} ".startswith(f"{verb} "))
        rest = words.removeprefix(verb)
        known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z-]+", rest)) <= known


def test_python_examples_are_python_and_name_what_there_is():
    for document in DOCUMENTS:
        for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
            compile(block, document.name, "exec")
            for name in re.findall(r"\bvgg\.(\w+)", block):
                assert hasattr(vgg, name)


def test_presets_metadata_and_scripts_are_documented():
    text = (ROOT / "docs/preprocessing.md").read_text()
    assert all(f"| `{name}` |" in text for name in PRESETS)
    text = (ROOT / "docs/files.md").read_text()
    keys = [value for name, value in vars(metadata).items() if name.isupper() and isinstance(value, str)]
    assert all(f"`{key}`" in text for key in keys)
    for script in (ROOT / "scripts").iterdir():
        assert len(script.read_text().splitlines()) < 20 or script.suffix, script
