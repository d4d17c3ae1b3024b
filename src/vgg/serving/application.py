"""The application: what every request goes through, whichever protocol it speaks."""

import asyncio
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from starlette.datastructures import Headers
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from ..arrays import Array
from ..errors import Error, ImageError
from ..files import reason
from ..images import open_image
from . import Settings, model_server, open_inference, site, v1
from .batcher import Batcher, Place, Values
from .bodies import Picture, check_size
from .exchange import Exchange, going_down, unhurried
from .metrics import Metrics
from .refusals import Busy, Forbidden, TooLarge, Unauthorized
from .repository import Model, Repository

Item = TypeVar("Item")
Made = TypeVar("Made")

# Who watches the server, and the page, need no key; nor do they wait for a drain.
OPEN = ("/healthz", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json", "/page/")
SAFE = ("GET", "HEAD", "OPTIONS")
BODIES = 8  # so many of the largest bodies are held in memory at the same time


@dataclass(frozen=True)
class Look:
    """What came of one picture."""

    values: Mapping[str, Array]  # the network's, by name
    width: int  # pixels, upright
    height: int
    decoded: float  # seconds
    queued: float
    inferred: float


class Application:
    """An ASGI application: models behind a router, and around it limits, keys, identities, logs and deadlines."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.repository = Repository(settings, self.metrics)
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self.draining = False
        self.at_work = 0  # requests that were accepted and are not answered yet
        self._keys = _read_keys(settings) if settings.api_key_file else None
        self._held = 0  # bytes of bodies in memory
        self._router = Router([*site.ROUTES, *v1.ROUTES, *open_inference.ROUTES, *model_server.ROUTES], redirect_slashes=False)

    async def look(self, model: Model, pictures: Sequence[Picture], outputs: Sequence[str]) -> list[Look | ImageError]:
        """The network's values for each picture, or why it can't be read; one bad picture harms no other.

        Raises Busy when there is no room for them.
        """

        async def one(picture: Picture, place: Place) -> Look | ImageError:
            try:
                loop = asyncio.get_running_loop()
                value, size, decoded = await loop.run_in_executor(self._pool, _decode, model, picture)
            except ImageError as error:
                return error
            model.statistics.observe("decode", decoded)
            done = await self._run(model, value, outputs, place)
            return Look(done.values, *size, decoded, done.queued, done.inferred)

        return await _together(model.batcher, pictures, one)

    async def infer(self, model: Model, batch: Array, outputs: Sequence[str]) -> dict[str, Array]:
        """The network's values by name, [batch, …], for float32 [batch, 3, height, width].

        Raises Busy when there is no room for them.
        """

        async def one(value: Array, place: Place) -> Mapping[str, Array]:
            return (await self._run(model, value, outputs, place)).values

        rows = await _together(model.batcher, list(batch), one)
        return {name: np.stack([row[name] for row in rows]) for name in outputs}

    async def threaded(self, work: Callable[[], Made]) -> Made:
        """Do what would keep the event loop waiting in one of the decoding threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _run(self, model: Model, value: Array, outputs: Sequence[str], place: Place) -> Values:
        done = await model.batcher.run(value, outputs, place)
        model.statistics.observe("queue", done.queued)
        return done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await Exchange(self, scope, receive, send).run()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the router answer, before the deadline."""
        seconds = None if unhurried(scope) else self.settings.deadline
        async with asyncio.timeout(seconds):
            await self._router(scope, receive, send)

    def check(self, scope: Scope, headers: Headers) -> None:
        """Raises Refusal when a request must not come in: without a key, too large, or while the server goes down."""
        path = scope["path"]
        # A browser hides answers from pages of other origins, but sends what they ask for all the same.
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["method"] not in SAFE
        if foreign and not {"*", headers.get("origin")} & {*self.settings.allow_origins}:
            raise Forbidden("web pages of this origin may not call; `vgg serve --allow-origin` lets them")
        if path in OPEN or path.startswith("/page/"):
            return
        self.check_key(headers)
        if self.draining and path != "/metrics":
            raise going_down()
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.settings.max_body * 2**20:
            raise self._too_large()

    def check_key(self, headers: Headers) -> None:
        """Raises Unauthorized where there are API keys and the headers hold none of them."""
        if self._keys is None:
            return
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
        digest = hashlib.sha256(given.encode()).digest()
        # All keys are compared, each in constant time, so that the time tells nothing about them.
        if not sum(hmac.compare_digest(digest, key) for key in self._keys):
            line = "an API key is needed: `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            raise Unauthorized(line, www_authenticate="Bearer")

    def hold(self, more: int, held: int) -> None:
        """Make room for more bytes of a body of which `held` are there. Raises TooLarge or Busy."""
        limit = self.settings.max_body * 2**20
        if held + more > limit:
            raise self._too_large()
        if self._held + more > BODIES * limit:
            raise Busy("there is no room for the body; try again later", retry_after="1")
        self._held += more

    def release(self, held: int) -> None:
        self._held -= held

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self.settings.max_body} MiB", connection="close")


async def _together(
    batcher: Batcher, items: Sequence[Item], one: Callable[[Item, Place], Coroutine[Any, Any, Made]]
) -> list[Made]:
    """`one` of each item with its place in the queue, all at the same time; the first failure ends the others."""
    places = batcher.admit(len(items))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*pair)) for pair in zip(items, places, strict=True)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        for place in places:
            place.leave()
    return [task.result() for task in tasks]


def _decode(model: Model, picture: Picture) -> tuple[Array, tuple[int, int], float]:
    """In a decoding thread: the network's input, the picture's width and height, and the seconds that it took."""
    begun = time.perf_counter()
    check_size(picture)
    image = open_image(picture.data, picture.name)
    value = model.classifier.preprocess(image, picture.name)
    return value, image.size, time.perf_counter() - begun


def _read_keys(settings: Settings) -> list[bytes]:
    path = settings.api_key_file
    assert path is not None
    try:
        lines = path.read_text().split()
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise Error(f"{path}: API keys must be text, one a line") from None
    if not lines:
        raise Error(f"{path}: holds no API key; there must be one a line")
    return [hashlib.sha256(line.encode()).digest() for line in lines]
