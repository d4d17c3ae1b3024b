"""The code in TorchScript archives, followed but never compiled or run.

The code is text in a part of Python. It is parsed, and the statements of a method are followed with numbers and inert records:
calls of functions in the text, attributes, and tests whose outcome depends on no data. Functions of torch are left to the
caller. Anything else is refused by its name.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from .pickles import Record

_MOST = 20_000  # statements and expressions that are followed
_DEPTH = 60  # of calls in calls
_LIBRARY = "__torch__."


class Unknown:
    """A value that depends on the data or its size."""


UNKNOWN = Unknown()


@dataclass(frozen=True)
class _Function:
    """A function in the code, and the module of which it is a method."""

    node: ast.FunctionDef
    module: Record | None = None


class Code:
    """Functions and classes by name, as text, to be followed once.

    Args:
        sources: code by module name.
        constants: the values of `CONSTANTS.c0`, …
        operation: the value of a function of torch, from its full name, its arguments, and those with names.
        error: the error with a message.
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        constants: Any,
        operation: Callable[[str, list[Any], dict[str, Any]], Any],
        error: Callable[[str], ModelError],
    ) -> None:
        self.constants, self.operation, self.error = constants, operation, error
        self._steps = self._depth = 0
        self._functions: dict[str, ast.FunctionDef] = {}
        for place, text in sources.items():
            for node in ast.parse(text).body:
                name, body = (f"{node.name}.", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
                methods = [method for method in body if isinstance(method, ast.FunctionDef)]
                self._functions |= {f"{place}.{name}{method.name}": method for method in methods}

    def method(self, module: Record, name: str, arguments: list[Any], named: Mapping[str, Any] | None = None) -> Any:
        """The value of a method of a module."""
        found = self._functions.get(f"{module.name}.{name}")
        if found is None:
            raise self.error(f"unsupported module {module.name.removeprefix(_LIBRARY)}, without code for {name}")
        return self._call(_Function(found, module), arguments, named or {})

    def _call(self, function: _Function, arguments: list[Any], named: Mapping[str, Any]) -> Any:
        """The value of a function in the code."""
        node = function.node
        values = [function.module, *arguments] if function.module else arguments
        names = [argument.arg for argument in node.args.args]
        defaults = dict(zip(reversed(names), map(self._value, reversed(node.args.defaults), [{}] * len(names)), strict=False))
        scope = {**defaults, **dict(zip(names, values, strict=False)), **named}
        if len(values) > len(names) or not {*names} <= {*scope}:
            raise self.error(f"{node.name} takes {len(names)} arguments")
        self._depth += 1
        if self._depth > _DEPTH:
            raise self.error(f"more than {_DEPTH} calls in calls")
        done, value = self._follow(node.body, scope)
        self._depth -= 1
        return value if done else None

    def _follow(self, statements: list[ast.stmt], scope: dict[str, Any]) -> tuple[bool, Any]:
        """Follow statements; whether they return, and what."""
        for statement in statements:
            self._count()
            match statement:
                case ast.Return(value=value):
                    return True, None if value is None else self._value(value, scope)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    scope[name] = self._value(value, scope)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    scope[name] = self._value(value, scope)
                case ast.Assign(targets=[ast.Tuple(elts=names)], value=value) if all(isinstance(n, ast.Name) for n in names):
                    found = self._value(value, scope)
                    parts = [UNKNOWN] * len(names) if found is UNKNOWN else found
                    scope.update(zip((name.id for name in names if isinstance(name, ast.Name)), parts, strict=True))
                case ast.Expr(value=value):
                    self._value(value, scope)
                case ast.If(test=test, body=body, orelse=orelse):
                    condition = self._value(test, scope)
                    if not isinstance(condition, bool | int | float | str | list | None):
                        raise self.error(f"the test {_text(test)} depends on the data")
                    done, value = self._follow(body if condition else orelse, scope)
                    if done:
                        return True, value
                case ast.Pass():
                    pass
                case _:
                    raise self.error(f"unsupported statement {_text(statement)}")
        return False, None

    def _count(self) -> None:
        self._steps += 1
        if self._steps > _MOST:
            raise self.error(f"more than {_MOST} statements")

    def _value(self, node: ast.expr, scope: dict[str, Any]) -> Any:
        """The value of an expression."""
        self._count()
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                if name not in scope:
                    raise self.error(f"unknown name {name} in the code")
                return scope[name]
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return [self._value(part, scope) for part in parts]
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self._value(operand, scope)
                return -value if isinstance(value, int | float) else UNKNOWN
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, scope)
            case ast.Attribute(value=ast.Name(id="CONSTANTS"), attr=name):
                return self.constants[int(name.removeprefix("c"))]
            case ast.Attribute(attr=attribute):
                if (dotted := _text(node)).startswith(_LIBRARY):
                    return dotted
                return self._attribute(self._value(node.value, scope), attribute)
            case ast.Subscript(value=value, slice=index):
                found, place = self._value(value, scope), self._value(index, scope)
                return found[place] if isinstance(found, list) and isinstance(place, int) else UNKNOWN
            case ast.Call():
                return self._called(node, scope)
        raise self.error(f"unsupported expression {_text(node)}")

    def _attribute(self, value: Any, name: str) -> Any:
        """An attribute of a module; none is in training."""
        if isinstance(value, Record) and isinstance(value.state, dict) and name in value.state:
            return False if name == "training" else value.state[name]
        raise self.error(f"unknown attribute {name}")

    def _called(self, node: ast.Call, scope: dict[str, Any]) -> Any:
        """The value of a call: of a method, a function in the code, or one of torch's."""
        function = node.func
        dotted = _text(function)
        if dotted in ("annotate", "unchecked_cast", "uninitialized"):
            return self._value(node.args[1], scope) if len(node.args) == 2 else None
        if dotted == "ops.prim.RaiseException":
            raise self.error("its forward method raises an error")
        arguments = [self._value(argument, scope) for argument in node.args]
        named = {keyword.arg: self._value(keyword.value, scope) for keyword in node.keywords if keyword.arg}
        if dotted == "getattr":
            return self._attribute(*arguments)
        if isinstance(function, ast.Name) and isinstance(scope.get(function.id), str):
            dotted = scope[function.id]  # a function of the library under another name
        if dotted.startswith(_LIBRARY) and dotted in self._functions and not dotted.rpartition(".")[2].startswith("adaptive_"):
            return self._call(_Function(self._functions[dotted]), arguments, named)
        if dotted.startswith(("torch.", "ops.", _LIBRARY)) or dotted in ("int", "float", "bool"):
            return self.operation(dotted, arguments, named)
        if isinstance(function, ast.Attribute):
            module = self._value(function.value, scope)
            if isinstance(module, Record):
                return self.method(module, function.attr, arguments, named)
        raise self.error(f"unsupported call of {dotted}")


def _text(node: ast.AST) -> str:
    """A piece of code as a short text."""
    return ast.unparse(node)[:80]
