"""Write tests/public-api.txt: the public names of the Python API, with their parameters; see docs/compatibility.md.

The modules are those of the API reference in mkdocs.yml. Of a module, the names in `__all__` are public, or, without that, what
it defines itself without an underscore in front; of a class, its constructor and its own attributes.
"""

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FILE = ROOT / "tests/public-api.txt"


def modules() -> list[str]:
    return re.findall(r"^      - (vgg[\w.]*): api/", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def lines() -> Iterator[str]:
    """A line for each name. The attributes of a class are listed under its first name."""
    seen: dict[int, str] = {}
    for name in modules():
        module = import_module(name)
        own = [one for one, value in vars(module).items() if getattr(value, "__module__", "") == name and one[0] != "_"]
        for public in sorted(getattr(module, "__all__", own)):
            title, value = f"{name}.{public}", getattr(module, public)
            if inspect.isclass(value) and seen.setdefault(id(value), title) != title:
                yield f"class {title} = {seen[id(value)]}"
            else:
                yield from described(title, value)


def described(name: str, value: Any) -> Iterator[str]:
    """The lines of a name: for a class, with those of its attributes."""
    if inspect.isclass(value):
        yield f"class {name}{parameters(value)}"
        fields = {one: None for one in inspect.get_annotations(value) if one[0] != "_"}
        for own in sorted({**fields, **{one: None for one in vars(value) if one[0] != "_"}}):
            attribute = inspect.getattr_static(value, own, None)
            if isinstance(attribute, staticmethod | classmethod):
                yield f"{name}.{own}{parameters(getattr(value, own))}"
            elif inspect.isfunction(attribute):
                yield f"{name}.{own}{parameters(attribute)}"
            else:
                yield f"{name}.{own}{' (property)' * isinstance(attribute, property | cached_property)}"
    else:
        yield f"{name}{parameters(value) if inspect.isroutine(value) else ''}"  # not of an alias of a type


def parameters(function: Any) -> str:
    """The parameters with their defaults, as in a call."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "(...)"
    plain = []
    for one in signature.parameters.values():
        default = one.default
        if callable(default) and default is not one.empty:
            default = Named(default.__name__)
        plain.append(one.replace(annotation=one.empty, default=default))
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


class Named:
    """A function as a default: its `repr` has an address."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def text() -> str:
    return "".join(f"{line}\n" for line in lines())


if __name__ == "__main__":
    FILE.write_text(text())
