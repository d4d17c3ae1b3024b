"""Routes that carry their description, from which the OpenAPI document is generated (openapi.py)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.routing import Route

from .refusals import Refusal

Kind = TypeVar("Kind", bound=type)


@dataclass(frozen=True)
class Content:
    """A request body or a response, described as a component of the OpenAPI document."""

    name: str  # of the component
    type: Any  # type of the JSON, or types by media type; bytes: binary data
    description: str = ""
    example: Any = None  # of the JSON
    required: bool = True


class Operation(Route):
    """A route with its description.

    Args:
        path: with `{model}` and `{version}` as parameters.
        endpoint: the handler.
        id: OpenAPI's operation id of the first method; further methods append their name.
        summary: one line.
        replies: responses by status.
        methods: HTTP methods.
        body: the request's body.
        query: a TypedDict of the query's parameters.
        raises: refusals beyond those that follow from the path and the method.
        description: paragraphs; Markdown's `code` is shown as code.
        examples: shell commands.
    """

    def __init__(
        self, path: str, endpoint: Callable[..., Any], id: str, summary: str, replies: Mapping[int, Content],
        methods: Sequence[str] = ("GET",), *, body: Content | None = None, query: Any = None,
        raises: Sequence[type[Refusal]] = (), description: str = "", examples: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(path, endpoint, methods=list(methods))
        # No parameter has a colon, which separates the verbs of TensorFlow Serving from the model.
        self.path_regex = re.compile(self.path_regex.pattern.replace("[^/]+", "[^/:]+"))
        self.id, self.summary, self.replies, self.ordered_methods = id, summary, replies, methods
        self.body, self.query, self.raises, self.description, self.examples = body, query, raises, description, examples


def schema(description: str = "", **keywords: Any) -> tuple[tuple[str, Any], ...]:
    """JSON Schema keywords for `Annotated`, which must be hashable."""
    return (*((("description", description),) if description else ()), *keywords.items())


def closed(kind: Kind) -> Kind:
    """Class decorator for a TypedDict that allows no other keys."""
    kind.__closed__ = True  # type: ignore[attr-defined]
    return kind
