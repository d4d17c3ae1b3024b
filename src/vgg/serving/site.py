"""The page, the description of the interface, and what those ask who watch the server."""

import gzip
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
    ".svg": "image/svg+xml", ".webp": "image/webp",
}  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache", "vary": "accept-encoding",
}  # fmt: skip


def page_file(request: Request, name: str) -> Response:
    """One of the page's files, compressed where the client takes that. Raises HTTPException 404."""
    kept = _files().get(name)
    if kept is None:
        raise HTTPException(404)
    content, compressed = kept
    headers = HEADERS
    if compressed and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = compressed, {**HEADERS, "content-encoding": "gzip"}
    return Response(content, media_type=TYPES[PurePath(name).suffix], headers=headers)


@cache
def _files() -> dict[str, tuple[bytes, bytes]]:
    """By name: the content, and where that is text, the content compressed."""
    found = {}
    for file in files(__package__).joinpath("page").iterdir():
        if (suffix := PurePath(file.name).suffix) in TYPES:
            content = file.read_bytes()
            found[file.name] = content, b"" if suffix == ".webp" else gzip.compress(content)
    return found


@cache
def description() -> dict[str, object]:
    """The interface as OpenAPI."""
    text = files(__package__).joinpath("openapi.json").read_text("utf-8")
    found: dict[str, object] = json.loads(text.replace("@VERSION@", __version__))
    return found


async def index(request: Request) -> Response:
    return page_file(request, "index.html")


async def docs(request: Request) -> Response:
    return page_file(request, "docs.html")


async def page(request: Request) -> Response:
    return page_file(request, request.path_params["name"])


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
