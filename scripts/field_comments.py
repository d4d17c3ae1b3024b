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
    """The comment at the end of an attribute's definition, as a sentence; empty where there is none."""
    tokens = tokenize.generate_tokens(io.StringIO(attribute.source + "\n").readline) if attribute.lines else ()
    for token in tokens:
        text = token.string.lstrip("# ")
        if token.type == tokenize.COMMENT and not text.startswith(("noqa", "type:", "fmt:", "isort:")):
            return text[:1].upper() + text[1:]
    return ""
