"""Each message of docs/troubleshooting.md is one that the code has."""

import ast
import re

import pytest

from conftest import ROOT

HOLE = "\0"  # a value in a message


def text_of(node):
    """The fixed text of a string expression, with a HOLE for each value; empty for other expressions."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return ""


STRINGS = {
    text
    for path in (ROOT / "src/vgg").rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if (text := text_of(node))
}
ROWS = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", ROWS)
def test_the_message_is_in_the_code(message):
    pieces = [re.escape(piece) for piece in message.split("…") if piece.strip(" :;,().")]
    pattern = re.compile(".*?".join(pieces), re.DOTALL)
    assert any(pattern.search(text) for text in STRINGS), message
