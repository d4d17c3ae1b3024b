"""The web page, the OpenAPI description, health checks and metrics."""

import gzip
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import TypedDict

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .metrics import CONTENT_TYPE
from .operations import Content, Operation

TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml", ".webp": "image/webp",
}  # fmt: skip
PAGES = {"/": "index.html", "/docs": "docs.html"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache", "vary": "accept-encoding",
}  # fmt: skip


class Status(TypedDict):
    status: str


@cache
def _files() -> dict[str, tuple[bytes, bytes]]:
    """By name: the content, and the compressed content of text files."""
    contents = {}
    for file in files(__package__).joinpath("page").iterdir():
        if (suffix := PurePath(file.name).suffix) in TYPES:
            content = file.read_bytes()
            contents[file.name] = content, b"" if suffix == ".webp" else gzip.compress(content)
    return contents


async def page(request: Request) -> Response:
    """A file of the web page, compressed if the client accepts gzip."""
    name = PAGES.get(request.url.path) or request.path_params.get("name", "")
    if name not in _files():
        raise HTTPException(404)
    content, compressed = _files()[name]
    headers = HEADERS
    if compressed and "gzip" in request.headers.get("accept-encoding", ""):
        content, headers = compressed, {**HEADERS, "content-encoding": "gzip"}
    return Response(content, media_type=TYPES[PurePath(name).suffix], headers=headers)


async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.description)


async def alive(request: Request) -> Response:
    return JSONResponse(Status(status="alive"))


async def ready(request: Request) -> Response:
    """200 while the server accepts requests, 503 while it loads its models and during the shutdown."""
    admission = request.app.admission
    if admission.ready:
        return JSONResponse(Status(status="ready"))
    return JSONResponse(Status(status="shutting down" if admission.draining else "loading"), 503)


async def metrics(request: Request) -> Response:
    return Response(request.app.metrics.exposition(), headers={"content-type": CONTENT_TYPE})


ALIVE = Content("Alive", Status, "The process is alive.", {"status": "alive"})
READY = Content("Ready", Status, "The server accepts requests.", {"status": "ready"})
NOT_READY = Content("NotReady", Status, "The server loads its models, or is shutting down.", {"status": "shutting down"})
METRICS = Content(
    "Metrics",
    {"text/plain": str},
    "Triton's counters (`nv_inference_…`), histograms (`vgg_…_seconds`, `vgg_batch_size`), and metrics of the process.",
)
OPENAPI = Content("OpenApi", dict, "The OpenAPI document.")
ROUTES = [
    *(Route(path, page, methods=["GET"]) for path in (*PAGES, "/page/{name}")),
    Operation("/healthz", alive, "healthz", "Check whether the process is alive", {200: ALIVE}),
    Operation("/readyz", ready, "readyz", "Check whether the server accepts requests", {200: READY, 503: NOT_READY}),
    Operation("/metrics", metrics, "metrics", "Metrics for Prometheus", {200: METRICS}),
    Operation("/openapi.json", openapi, "openapi", "This description", {200: OPENAPI}),
]
