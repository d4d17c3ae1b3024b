"""The page, the description of the interface, and what those ask who watch the server."""

import json
from functools import cache
from importlib.resources import files
from pathlib import PurePath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .. import __version__
from .metrics import CONTENT_TYPE

TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml", ".jpg": "image/jpeg",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}


def page_file(name: str) -> Response:
    """One of the page's files. Raises HTTPException 404."""
    kept = _files()
    if name not in kept:
        raise HTTPException(404)
    return Response(kept[name], media_type=TYPES[PurePath(name).suffix], headers=HEADERS)


@cache
def _files() -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in files(__package__).joinpath("page").iterdir() if file.is_file()}


@cache
def description() -> dict[str, object]:
    """The interface as OpenAPI."""
    text = files(__package__).joinpath("openapi.json").read_text("utf-8")
    found: dict[str, object] = json.loads(text.replace("@VERSION@", __version__))
    return found


async def index(request: Request) -> Response:
    return page_file("index.html")


async def docs(request: Request) -> Response:
    return page_file("docs.html")


async def page(request: Request) -> Response:
    return page_file(request.path_params["name"])


async def openapi(request: Request) -> Response:
    return JSONResponse(description())


async def alive(request: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def ready(request: Request) -> Response:
    """200 while new requests are taken; 503 once the server goes down."""
    app = request.app
    if app.draining:
        return JSONResponse({"status": "shutting down"}, 503)
    return JSONResponse({"status": "ready"})


async def metrics(request: Request) -> Response:
    return Response(request.app.metrics.exposition(), headers={"content-type": CONTENT_TYPE})


ROUTES = [
    Route("/", index, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
    Route("/page/{name}", page, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/healthz", alive, methods=["GET"]),
    Route("/readyz", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
