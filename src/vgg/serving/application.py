"""The ASGI application: models, their inference, and the routes of all protocols."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from .. import __version__
from ..arrays import Array
from ..engines import takes_pixels
from ..errors import ImageError
from ..images import decoding_bytes, open_image
from ..parallel import cores
from . import Settings, openapi
from .admission import Admission
from .batcher import Batcher, Place
from .bodies import EncodedImage
from .exchange import Exchange
from .memory import DecodingMemory
from .metrics import Metrics
from .refusals import Refusal
from .repository import Model, Repository
from .routes import ROUTES
from .tensors import Items
from .traces import Traces, current

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class ImageValues:
    """The layer outputs for one image, and the time they took."""

    values: Mapping[str, Array]  # by name, without a batch axis
    width: int  # pixels of the upright image
    height: int
    decoded: float  # seconds
    queued: float
    inferred: float


class Application:
    """An ASGI application that serves models over HTTP."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.description = openapi.document(__version__)
        self.admission = Admission(settings)
        self.metrics = Metrics()
        self.repository = Repository(settings, self.metrics)
        self._decoding = DecodingMemory(settings.decode * 2**20)
        self.traces = Traces(settings.traces) if settings.traces else None
        self._pool = ThreadPoolExecutor(cores(), "decode")
        self._router = Router(ROUTES, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = self
            await Exchange(self._router, self.admission, self.metrics, self.traces, scope, receive, send).run()

    async def infer_images(
        self, model: Model, images: Sequence[EncodedImage], outputs: Sequence[str]
    ) -> list[ImageValues | ImageError]:
        """The layer outputs for each image, or the error for an image that can't be read.

        Raises:
            Busy: the queue has no room.
        """

        async def infer_one(image: EncodedImage, place: Place) -> ImageValues | ImageError:
            started, trace = time.perf_counter(), current.get()
            try:
                value, size, decoded = await self.in_thread(lambda: _decode(model, image, self._decoding))
            except ImageError as error:
                if trace:
                    trace.stage("decode", started, time.perf_counter(), failed=True)
                return error
            if trace:
                ended = time.perf_counter()
                trace.stage("decode", ended - decoded, ended, width=size[0], height=size[1])
            model.statistics.decoded(decoded)
            done = await model.batcher.run(value, outputs, place)
            return ImageValues(done.values, *size, decoded, done.queued, done.inferred)

        return await _concurrently(model.batcher, images, infer_one)

    async def infer(self, model: Model, batch: Array, outputs: Sequence[str]) -> dict[str, Array]:
        """The layer outputs by name, [batch, …], for float32 [batch, 3, height, width].

        Raises:
            Busy: the queue has no room.
        """

        async def infer_one(value: Array, place: Place) -> Mapping[str, Array]:
            return (await model.batcher.run(value, outputs, place)).values

        rows = await _concurrently(model.batcher, list(batch), infer_one)
        return {name: np.stack([row[name] for row in rows]) for name in outputs}

    async def infer_items(self, model: Model, items: Items, outputs: Sequence[str]) -> dict[str, Array]:
        """The layer outputs by name, [batch, …], for a batch or for images.

        Raises:
            Busy: the queue has no room.
            Refusal: an image can't be read.
        """
        if isinstance(items, np.ndarray):
            return await self.infer(model, items, outputs)
        results = await self.infer_images(model, items, outputs)
        if failures := [str(one) for one in results if isinstance(one, ImageError)]:
            raise Refusal("; ".join(failures[:3]))
        rows = [one.values for one in results if isinstance(one, ImageValues)]
        return {name: np.stack([row[name] for row in rows]) for name in outputs}

    async def in_thread(self, work: Callable[[], Outcome]) -> Outcome:
        """Run work that would block the event loop in a decoding thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


async def _concurrently(
    batcher: Batcher, items: Sequence[Item], work: Callable[[Item, Place], Coroutine[Any, Any, Outcome]]
) -> list[Outcome]:
    """The outcome of `work` for each item with a place in the queue; the first failure cancels the others."""
    places = batcher.admit(len(items))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(*pair)) for pair in zip(items, places, strict=True)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        for place in places:
            place.leave()
    return [task.result() for task in tasks]


def _decode(model: Model, image: EncodedImage, memory: DecodingMemory) -> tuple[Array, tuple[int, int], float]:
    """In a decoding thread: the network's input, the image's width and height, and the seconds it took."""
    try:
        needed = decoding_bytes(image.data)
    except ImageError:
        needed = 0  # `open_image` raises it again, with the image's name
    if needed > memory.size:
        raise ImageError(
            f"{image.name}: needs {needed / 2**20:,.0f} MiB of memory to be decoded; the maximum is "
            f"{memory.size >> 20:,} MiB (`vgg serve --decode-mib`)"
        )
    with memory.reserved(needed):
        started = time.perf_counter()
        opened = open_image(image.data, image.name)
        classifier = model.classifier
        value = classifier.network.preprocessing(opened, image.name, pixels=takes_pixels(classifier.engine))
        return value, opened.size, time.perf_counter() - started
