"""The documentation agrees with the code, and both use the words of the glossary."""

import ast
import re
from importlib.util import module_from_spec, spec_from_file_location

import pytest

import vgg
from conftest import ROOT
from vgg.formats import metadata
from vgg.preprocessing import PRESETS

DOCUMENTS = sorted(path for place in (".", "docs", "examples", "benchmarks", "src/vgg") for path in (ROOT / place).glob("*.md"))
SOURCES = sorted((ROOT / "src/vgg").rglob("*.py"))

spec = spec_from_file_location("command_line", ROOT / "scripts/command_line.py")
command_line = module_from_spec(spec)
spec.loader.exec_module(command_line)
COMMANDS = dict(command_line.commands())
OPTIONS = [
    (name, parameter)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if parameter.param_type_name == "option"
]


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def long_name(parameter):
    return max(parameter.opts, key=len)


# The command line


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_a_section(verb):
    assert f"\n## {verb}\n<!-- generated: {verb} -->\n" in command_line.PAGE.read_text()


def test_the_generated_parts_of_the_page_are_current():
    page = command_line.PAGE.read_text()
    assert command_line.generated(page) == page, "run scripts/command_line.py"


# What is written where, in the one vocabulary of options. Their help begins with the word and goes on with the object.
FIRST_WORDS = {
    "--output": "Output", "--batch-size": "Number of", "--bits": "Bits", "--plot": "Output", "--report": "Output",
    "--size": "Short side", "--val": "Validation", "--method": "Method of", "--model": "Model file",
}  # fmt: skip


@pytest.mark.parametrize("option", sorted({long_name(parameter) for _, parameter in OPTIONS}))
def test_an_option_has_one_meaning(option):
    """The help of an option that several verbs have is the same, up to a remark after `;`, `:` or in brackets."""
    helps = {}
    for verb, parameter in OPTIONS:
        if long_name(parameter) == option:
            text = command_line.described(parameter)[1]
            meaning = re.split(r"[;:]| \(", text)[0]
            if option in FIRST_WORDS and meaning.startswith(FIRST_WORDS[option]):
                meaning = FIRST_WORDS[option]
            helps.setdefault(meaning, []).append(verb)
    assert len(helps) == 1, helps


def test_a_short_form_belongs_to_one_option():
    owners = {}
    for _, parameter in OPTIONS:
        for short in (option for option in parameter.opts if not option.startswith("--")):
            owners.setdefault(short, set()).add(long_name(parameter))
    assert {short: names for short, names in owners.items() if len(names) > 1} == {}
    shorts = {long_name(parameter): set() for _, parameter in OPTIONS}
    for _, parameter in OPTIONS:
        shorts[long_name(parameter)].add(tuple(sorted(parameter.opts, key=len)))
    assert {option: forms for option, forms in shorts.items() if len(forms) > 1} == {}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_meaning_has_one_option(verb):
    options = {long_name(parameter): parameter for name, parameter in OPTIONS if name == verb}
    replaced = {"--to": "--output", "--scale": "--runner", "--scales": "--sizes", "--resume": "--fresh"}
    assert {old: new for old, new in replaced.items() if old in options} == {}
    if "--format" in options:
        choices = getattr(options["--format"].type, "choices", ())
        assert {"table", "json"} <= set(choices) <= {"table", "json", "jsonl", "csv"}
    for option, parameter in options.items():
        assert parameter.help[0].isupper(), option
        assert parameter.help.endswith((".", "]")), option
        if option not in ("--output", "--report", "--plot", "--predictions"):
            assert not re.search(r"\b(output|written|write)\b.*\b(file|folder)\b", parameter.help, re.IGNORECASE), option


# The pages


def slugs(path):
    """The anchors of a page's headings, as its repository and the site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in slugs(path), f"{target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_to_other_sites_are_well_formed(document):
    text = re.sub(r"```.*?```|`[^`]*`", "", document.read_text(), flags=re.DOTALL)
    for address in re.findall(r"\]\((\w+:[^)]*)\)|<(\w+:[^>]*)>", text):
        assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/\S*)?|http://127\.0\.0\.1:\d+", "".join(address)), address


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_is_one_that_exists(document):
    for words in re.findall(r"^\$ (?:.*[|&] )?(?:\w+=\S+ )?(?:\.venv/bin/)?(vgg \w+.*)$", document.read_text(), re.MULTILINE):
        verb = next(verb for verb in COMMANDS if f"{words} ".startswith(f"{verb} "))
        known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z-]+", words.removeprefix(verb))) <= known, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_python_examples_are_python_and_name_what_there_is(document):
    for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        compile(block, document.name, "exec")
        for name in re.findall(r"\bvgg\.(\w+)", block):
            assert hasattr(vgg, name), name


def test_presets_metadata_and_scripts_are_documented():
    text = (ROOT / "docs/preprocessing.md").read_text()
    assert all(f"| `{name}` |" in text for name in PRESETS)
    text = (ROOT / "docs/files.md").read_text()
    keys = [value for name, value in vars(metadata).items() if name.isupper() and isinstance(value, str)]
    assert all(f"`{key}`" in text for key in keys)
    for script in (ROOT / "scripts").iterdir():
        assert len(script.read_text().splitlines()) < 20 or script.suffix, script


def test_the_site_has_every_page_and_every_public_module():
    pages = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    modules = {name for name in vgg.__all__ if type(getattr(vgg, name)).__name__ == "module"} | {"torch", "vgg"}
    assert {page for page in pages if page.startswith("api/")} == {f"api/{module}.md" for module in modules}
    assert {page for page in pages if "/" not in page} == {path.name for path in (ROOT / "docs").glob("*.md")}
    assert len(pages) == len(set(pages))
    assert not re.search(r"https?://(?!127\.0\.0\.1)", (ROOT / "mkdocs.yml").read_text()), "the site needs no other host"


# The glossary

GLOSSARY = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Words\n")[2]
ROWS = [row.split("|") for row in re.findall(r"^\|.*\|$", GLOSSARY, re.MULTILINE)[2:]]
WORDS = [re.escape(word.strip()) for row in ROWS for word in row[3].split(",") if word.strip()]
DENIED = re.compile(rf"(?<![\w-])({'|'.join(WORDS)})(?![\w-])", re.IGNORECASE)


def denied(text):
    """The words of a text that the glossary rejects, code aside."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return [match[0] for match in DENIED.finditer(" ".join(text.split()))]


def prose(path):
    """The docstrings and messages of a Python file: its strings of more than one word."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.value


def test_the_glossary_rejects_words():
    assert denied("two pictures, so it was told") == ["pictures", "told"]
    assert denied("`picture`, a foretold-picture") == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_documents_use_the_words_of_the_glossary(document):
    text = document.read_text().replace(GLOSSARY, "")
    assert denied(text) == []


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_docstrings_help_and_messages_use_the_words_of_the_glossary(source):
    assert [words for text in prose(source) if (words := denied(text))] == []
