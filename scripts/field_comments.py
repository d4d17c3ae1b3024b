"""A Griffe extension: the comments at the ends of a class's fields become the `Attributes:` of its docstring."""

import io
import tokenize
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Describes what has a comment on its line and no docstring, in classes and modules."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        if attr.parent and attr.parent.is_module and not attr.docstring and (text := _comment(attr)):
            attr.docstring = griffe.Docstring(text, parent=attr)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        fields = {name: _comment(field) for name, field in cls.attributes.items() if not field.docstring}
        lines = [f"    {name}: {text}" for name, text in fields.items() if text and not name.startswith("_")]
        if lines and cls.docstring and "Attributes:" not in cls.docstring.value:
            cls.docstring.value = "\n".join([cls.docstring.value.rstrip(), "", "Attributes:", *lines])


def _comment(attribute: griffe.Attribute) -> str:
    """The comment at the end of an attribute's line, or else above it, as a sentence; empty if there is none."""
    if not attribute.lineno or not attribute.lines:
        return ""
    tokens = tokenize.generate_tokens(io.StringIO(attribute.source + "\n").readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    if not comments and attribute.parent and attribute.parent.is_class:
        above = attribute.lines_collection[attribute.filepath][: attribute.lineno - 1]
        comments = [line.strip() for line in above[len(above) - _trailing(above) :]]
    text = " ".join(comment.lstrip("# ") for comment in comments)
    return "" if text.startswith(("noqa", "type:", "fmt:", "isort:")) else text[:1].upper() + text[1:]


def _trailing(lines: list[str]) -> int:
    """The number of comment lines at the end."""
    return next((count for count, line in enumerate(reversed(lines)) if not line.strip().startswith("#")), len(lines))
