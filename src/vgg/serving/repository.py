"""The served models, by name and version. They are loaded from private copies and replaced without interruption."""

import asyncio
import logging
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..classifier import Classifier
from ..engines import takes_pixels
from ..errors import Error, ModelError, Notice
from ..files import reason
from ..formats import companions, detect, load, metadata, network_of, onnx_file, onnx_reader
from ..network import Network
from ..zoo import EMBEDDED, EMBEDDED_FILE, locate
from . import Settings
from .batcher import Batcher
from .metrics import Metrics, Statistics, TritonCounters
from .refusals import Forbidden, NotFound

log = logging.getLogger("vgg.serving")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NAMED = re.compile(rf"({NAME.pattern})(?::([1-9][0-9]{{0,8}}))?=(.+)", re.DOTALL)
VERSION = re.compile(r"[1-9][0-9]{0,8}")
SUFFIXES = (".onnx", ".safetensors", ".pth", ".pt", ".h5")


@dataclass
class Model:
    """A served model: a classifier, its queue and its statistics."""

    name: str
    version: str
    source: Path
    classifier: Classifier
    batcher: Batcher
    statistics: Statistics
    users: int = 0  # requests in progress
    unused: asyncio.Event = field(default_factory=asyncio.Event)  # set when the last of them ends

    @contextmanager
    def in_use(self) -> Iterator["Model"]:
        """Keep the model open during a request, even if it is replaced or unloaded meanwhile."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1
            if not self.users:
                self.unused.set()

    async def close(self) -> None:
        """Wait until no request uses the model, then end its thread."""
        while self.users:
            self.unused.clear()
            await self.unused.wait()
        await self.batcher.close()


class IndexEntry(TypedDict):
    """A model that is served, or that could be loaded."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """Models by name and version. Belongs to one event loop; models are loaded in threads."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._models: dict[str, dict[str, Model]] = {}
        self._loading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        metrics.registry.register(TritonCounters(lambda: ((one.statistics, one.batcher.waiting) for one in self)))

    def __iter__(self) -> Iterator[Model]:
        """Every model: the default model first, and newer versions before older ones."""
        for versions in self._models.values():
            yield from (versions[version] for version in sorted(versions, key=int, reverse=True))

    @property
    def changeable(self) -> bool:
        """Whether clients may load and unload models."""
        return self._settings.repository is not None

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """A model by name and version; by default the first model and its newest version.

        Raises:
            NotFound: the name or the version is unknown.
        """
        if not self._models:
            raise NotFound("no model is loaded")
        name = name or next(iter(self._models))
        versions = self._models.get(name)
        if versions is None:
            raise NotFound(f"unknown model {name!r}; choose from {', '.join(self._models)}")
        model = versions.get(version or max(versions, key=int))
        if model is None:
            raise NotFound(f"unknown version {version!r} of model {name}; choose from {', '.join(self.versions(name))}")
        return model

    def versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first."""
        return sorted(self._models[name], key=int)

    async def load_all(self) -> None:
        """Load the models of the settings.

        Raises:
            Error: a model can't be loaded, or two models have the same name and version.
        """
        for text in self._settings.models or ("",):
            given = NAMED.fullmatch(text)
            if given and not Path(text).is_file():
                name, version, path = given[1], given[2] or "1", Path(given[3])
            else:
                path = locate(text or None)
                name, version = EMBEDDED if path == EMBEDDED_FILE else path.stem, "1"
            if not NAME.fullmatch(name):
                raise Error(
                    f"{path}: invalid model name {name!r}; choose a name of letters and digits with --model NAME={path}"
                )
            if version in self._models.get(name, {}):
                raise Error(f"two models have the name {name}, version {version}; choose names with --model NAME=PATH")
            self._models.setdefault(name, {})[version] = await self._open(name, version, locate(path))

    async def load(self, name: str) -> None:
        """Load or reload a model from the repository's folder. A loaded model serves until the new one is ready.

        On a GPU, compiling the new one delays all models.

        Raises:
            Forbidden: the server has no repository.
            NotFound: the repository has no such model.
            ModelError: the model can't be read.
        """
        async with self._loading:
            if (found := self._loadable().get(name)) is None:
                raise NotFound(f"the repository has no model {name!r}")
            version, path = found
            started = time.perf_counter()
            try:
                model = await self._open(name, version, path)
            except ModelError as error:
                log.warning("the model could not be loaded", extra={"model": name, "error": str(error)})
                # Clients need not know where the server keeps its files.
                raise ModelError(str(error).replace(str(path), str(path.relative_to(self._folder())))) from None
            replaced = self._models.get(name, {})
            self._models[name] = {version: model}
            self._close_all(replaced)
            seconds = round(time.perf_counter() - started, 2)
            log.info("loaded a model", extra={"model": f"{name}:{version}", "seconds": seconds})

    async def unload(self, name: str) -> None:
        """Unload a model. Its accepted requests still finish.

        Raises:
            Forbidden: the server has no repository, or the model is not from it, so that it could not be loaded again.
            NotFound: the model is unknown.
        """
        async with self._loading:
            folder = self._folder()
            if name not in self._models:
                raise NotFound(f"unknown model {name!r}")
            if not all(one.source.resolve().is_relative_to(folder) for one in self._models[name].values()):
                raise Forbidden(f"model {name} is not from the repository's folder; it can't be unloaded")
            self._close_all(self._models.pop(name))

    def index(self) -> list[IndexEntry]:
        """The served models, and the models of the repository that are not loaded."""
        entries = [IndexEntry(name=model.name, version=model.version, state="READY", reason="") for model in self]
        if self._settings.repository is not None:
            idle = sorted(set(self._loadable()) - set(self._models))
            entries += [IndexEntry(name=name, version="", state="UNAVAILABLE", reason="not loaded") for name in idle]
        return entries

    async def close(self) -> None:
        """Finish the jobs of all queues."""
        for model in self:
            await model.batcher.close()

    def _close_all(self, models: dict[str, Model]) -> None:
        for model in models.values():
            task = asyncio.get_running_loop().create_task(model.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _folder(self) -> Path:
        if self._settings.repository is None:
            raise Forbidden("loading and unloading models is disabled; enable it with `vgg serve --repository DIR`")
        return self._settings.repository.resolve()

    def _loadable(self) -> dict[str, tuple[str, Path]]:
        """The version and file of each model in the folder: `NAME.onnx` or `NAME/VERSION/model.onnx`, the newest version."""
        folder = self._folder()
        places = [(path.stem, "1", path) for path in folder.iterdir()]
        for versions in folder.glob("*/*/"):
            if VERSION.fullmatch(versions.name):
                places += [(versions.parent.name, versions.name, path) for path in versions.iterdir()]
        # Links are resolved, so that no file outside the folder is read.
        return {
            name: (version, path)
            for name, version, path in sorted(places, key=lambda place: (int(place[1]), place[2]))
            if NAME.fullmatch(name) and path.suffix in SUFFIXES and path.resolve().is_relative_to(folder) and path.is_file()
        }

    async def _open(self, name: str, version: str, path: Path) -> Model:
        settings = self._settings
        classifier = await asyncio.to_thread(open_model, path, settings, name)
        statistics = Statistics(name, version, self._metrics)
        batcher = Batcher(
            classifier.engine, statistics, size=settings.batch_size, area=classifier.network.architecture.input_size**2,
            queue=settings.queue, max_wait=settings.deadline, name=name,
        )  # fmt: skip
        return Model(name, version, path, classifier, batcher, statistics)


def open_model(path: Path, settings: Settings, name: str) -> Classifier:
    """A classifier from a private copy of a model file, after first runs of the engine.

    Engines map model files into memory. Truncating a mapped file crashes the process, so the server maps a copy.

    Raises:
        ModelError: the file can't be copied or read, is not a VGG network, or its weights don't match its checksum.
        Error: the engine is not available.
    """
    with private_copy(path) as copy, warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always", Notice)
        try:
            classifier = _opened(copy, settings, name)
        except Error as error:
            raise type(error)(str(error).replace(str(copy), str(path))) from None
    for notice in notices:
        warnings.warn(type(notice.message)(str(notice.message).replace(str(copy), str(path))), stacklevel=2)
    return classifier


def _opened(path: Path, settings: Settings, name: str) -> Classifier:
    """A classifier from a model file, after first runs of the engine. Raises as `open_model`."""
    model = load(path)
    network = network_of(model)
    _check_weights(path, network)
    where = {"device": settings.device, "precision": settings.precision}
    classifier = Classifier(model, settings.engine, threads=settings.threads, name=name, **where)
    side, last, engine = network.preprocessing.crop, network.architecture.values[-1:], classifier.engine
    counts, dtype = {1, settings.batch_size}, np.uint8 if takes_pixels(engine) else np.float32
    if settings.device == "cuda":  # what torch's engine would otherwise do while clients wait: compile, capture each size
        engine.compile(last)  # type: ignore[attr-defined]
        counts |= {1 << place for place in range(settings.batch_size.bit_length())}
    for count in sorted(counts):  # the largest batch needs the most memory
        engine.run(np.zeros((count, 3, side, side), dtype), last)
    return classifier


@contextmanager
def private_copy(path: Path) -> Iterator[Path]:
    """A copy of a model file, and of those that it needs, in a private temporary folder.

    The folder is deleted when the block ends. Mappings of the files stay valid.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vgg-", ignore_cleanup_errors=True))
            copy = Path(shutil.copyfile(path, Path(folder, path.name)))
            for name, source in companions(path).items():
                Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, Path(folder, name))
        except OSError as error:
            raise ModelError(f"{path}: can't be copied to the temporary folder: {reason(error)}") from None
        yield copy


def _check_weights(path: Path, network: Network) -> None:
    """Raise ModelError if weights are not finite, or those of an ONNX file don't match the checksum in its metadata.

    A tool that changes a file of vgg's, to half precision for instance, keeps the metadata.
    """
    if detect(path) == "onnx":
        model = onnx_file.scan(path)
        expected = model.metadata.get(metadata.SHA256) if onnx_reader.is_streamed(model) else ""
        if expected and expected != network.sha256():
            raise ModelError(f"{path}: damaged: the weights don't match the checksum in the file")
    try:
        network.check_finite()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
