"""Write docs/openapi.json, the description of the server's interface. A test compares the file with the generated text."""

import json
from pathlib import Path
from typing import Any

from vgg.serving.openapi import document

FILE = Path(__file__).parent.parent / "docs/openapi.json"
WIDTH = 128  # of a line


def text() -> str:
    """The content of the file."""
    return _render(document("@VERSION@"), 0) + "\n"


def _render(value: Any, indent: int) -> str:
    """JSON in which each object and list is on one line if it fits."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or indent + len(line) <= WIDTH:
        return line
    space = "\n" + " " * (indent + 1)
    if isinstance(value, list):
        return "[" + space + f",{space}".join(_render(one, indent + 1) for one in value) + space[:-1] + "]"
    entries = (f"{json.dumps(key)}: {_render(one, indent + 1)}" for key, one in value.items())
    return "{" + space + f",{space}".join(entries) + space[:-1] + "}"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
