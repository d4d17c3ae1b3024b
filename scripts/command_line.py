"""Write the generated parts of docs/command-line.md from the commands: their help and their options.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; everything else on the page is written by hand. NAME is a
command, such as `vgg sample make`, or `options`, the table of the options that several commands share.
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from vgg.cli import app

PAGE = Path(__file__).parent.parent / "docs/command-line.md"
PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
DEFAULT = re.compile(r"\s*\[default: (.+)\]$")
EXAMPLE = re.compile(r"^Example: `(.+)`$")


def commands(group: Any = None, before: str = "vgg") -> Iterator[tuple[str, Any]]:
    """The commands by what is typed for them: `vgg classify`, `vgg sample make`."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def described(parameter: Any) -> tuple[str, str, str]:
    """An option or argument: its names, its meaning, and its default, as cells of a table."""
    text = parameter.help or ""
    default = DEFAULT.search(text)
    meaning = DEFAULT.sub("", text).removesuffix(".")
    if parameter.param_type_name == "argument":
        name = (parameter.metavar or parameter.name).upper().removesuffix("...")
        names = f"`{name}{'…' * (parameter.nargs == -1)}`"
    else:
        names = ", ".join(f"`{option}`" for option in sorted(parameter.opts, key=len))
    if default:
        value = default[1]
    elif parameter.required:
        value = "required"
    else:
        preset = getattr(parameter.default, "value", parameter.default)  # of an Enum
        value = "" if preset in (None, False, "", ()) else f"`{preset}`"
    return names, meaning, value


def section(name: str, command: Any) -> str:
    """A command's help, its examples and the table of its options."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in command.help.split("\n\n")]
    examples = [match[1] for match in map(EXAMPLE.match, paragraphs) if match]
    first, *rest = [paragraph for paragraph in paragraphs if not EXAMPLE.match(paragraph)]
    code = "\n".join(["```console", *(f"$ {example}" for example in examples), "```"]) if examples else ""
    names = [other for other, _ in commands() if other != name]
    rest = [re.sub(r"`(vgg [a-z ]+)`", lambda match: _linked(match[1], names), paragraph) for paragraph in rest]
    first, *rest = (textwrap.fill(part, 128, break_long_words=False, break_on_hyphens=False) for part in (first, *rest))
    rows = []
    for parameter in command.params:
        names, meaning, default = described(parameter)
        choices = [f"`{choice}`" for choice in getattr(parameter.type, "choices", ()) if choice not in meaning]
        rows.append((names, f"{meaning}: {', '.join(choices)}" if choices else meaning, default))
    return "\n\n".join(part for part in (first, code, *rest, table(("option", "meaning", "default"), rows)) if part)


def shared_options() -> str:
    """The options that more than one command has: names, meaning, and the commands; a row for each wording of the meaning."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, command in commands():
        for parameter in command.params:
            names, meaning, _ = described(parameter)
            if parameter.param_type_name == "option":
                rows.setdefault((names, meaning), []).append(f"[{name.removeprefix('vgg ')}](#{name.replace(' ', '-')})")
    counts = Counter(names for (names, _), verbs in rows.items() for _ in verbs)
    shared = [(names, meaning, ", ".join(verbs)) for (names, meaning), verbs in rows.items() if counts[names] > 1]
    return table(("option", "meaning", "commands"), sorted(shared, key=lambda row: row[0].rpartition("--")[2]))


def table(heading: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in (heading, ("---",) * len(heading), *rows))
    return "\n".join(f"| {line} |".replace("  ", " ") for line in lines)


def generated(page: str) -> str:
    """The page with its generated parts made anew."""
    sections = {name: section(name, command) for name, command in commands()} | {"options": shared_options()}
    return PART.sub(lambda match: f"{match[1]}{sections[match[2]]}\n{match[3]}", page)


def _linked(name: str, names: list[str]) -> str:
    return f"[`{name}`](#{name.replace(' ', '-')})" if name in names else f"`{name}`"


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text("utf-8")), "utf-8")
