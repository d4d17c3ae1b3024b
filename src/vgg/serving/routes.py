"""The routes of all protocols, and where a request belongs that has no route."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from starlette.routing import Route

from . import model_server, open_inference_rest, site, tf_serving, v1
from .operations import Operation

ROUTES = [*site.ROUTES, *v1.ROUTES, *open_inference_rest.ROUTES, *tf_serving.ROUTES, *model_server.ROUTES]
OPERATIONS = [route for route in ROUTES if isinstance(route, Operation)]
LONG = 100  # characters of a path that is compared with the routes
NAME = "([A-Za-z0-9._-]{1,128})"
# Paths of other servers, and of other versions of these protocols. Groups replace {0}.
KNOWN = (
    (rf"/v2/models/{NAME}(?:/versions/[0-9]+)?[/:](?:predict|inference|generate|explain)/?", "POST /v2/models/{0}/infer"),
    (rf"/v1/models/{NAME}/labels/.*:(?:predict|classify|regress)", "POST /v1/models/{0}:predict, without a label"),
    (rf"/v1/models/{NAME}(?:/versions/[0-9]+)?[/:](?:predict|infer|invoke|regress)/?", "POST /v1/models/{0}:predict"),
    (rf"/v1/models/{NAME}[/:]explain/?", "POST /v1/classify?explain=true&model={0}"),
    (rf"/(?:v2/)?models/{NAME}/?", "GET /v2/models/{0}"),
    (r"/(?:predictions|models/[^/]*/(?:predict|invocations))/?", "POST /predictions/MODEL"),
    (r"/(?:api/)?(?:v1/)?(?:predict|prediction|classify|infer|inference|invoke|score|upload|image|images)/?",
     "POST /v1/classify with an image"),
    (r"/(?:models|v2/models|api/models)/?", "GET /v1/models"),
    (r"/(?:health|healthcheck|live|livez|status|api/health)/?", "GET /healthz"),
    (r"/(?:ready|v2/health|v2/ready)/?", "GET /readyz"),
    (r"/(?:swagger|swagger-ui|redoc|api|api-docs|api/docs)/?", "GET /docs"),
)  # fmt: skip
# Paths that have no POST, and those that have.
POSTS = (
    (rf"/v1/models/{NAME}(?:/versions/[0-9]+)?", "POST /v1/models/{0}:predict"),
    (rf"/v2/models/{NAME}(?:/versions/[0-9]+)?", "POST /v2/models/{0}/infer"),
    (r"/|/v1/models|/docs|/ping", "POST /v1/classify"),
)


def instead(path: str, headers: Mapping[str, str]) -> str:
    """The methods in a response's `Allow`, and the path of a POST if there is none."""
    methods = sorted(set(headers.get("Allow", "").split(", ")) - {"HEAD"})
    found = _belongs(path, POSTS)
    return " or ".join([*methods, *([found] if found and "POST" not in methods else [])])


def nearest(path: str) -> str:
    """The method and path that a request for an unknown path should have; without any, where they are described."""
    if found := _belongs(path, KNOWN):
        return found
    written = {_written(route): route for route in OPERATIONS}
    for close in get_close_matches(path.rstrip("/"), written, 1, 0.7) if len(path) <= LONG else ():
        return f"{written[close].ordered_methods[0]} {close}"
    return "GET /docs, which describes all paths"


def _belongs(path: str, table: Iterable[tuple[str, str]]) -> str | None:
    """The route of the first pattern in a table that a path matches."""
    return next((route.format(*match.groups()) for pattern, route in table if (match := re.fullmatch(pattern, path))), None)


def _written(route: Route) -> str:
    """A route's path as documentation writes it."""
    return re.sub("{([a-z]+)}", lambda found: found[1].upper(), route.path)
