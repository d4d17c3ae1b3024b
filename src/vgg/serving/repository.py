"""The models that are served: by name and version, loaded from private copies, swapped without a pause."""

import asyncio
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..classifier import Classifier
from ..errors import Error, ModelError, Notice
from ..files import reason
from ..formats import load, network_of
from ..network import Network
from ..zoo import EMBEDDED, EMBEDDED_FILE, locate
from . import Settings
from .batcher import Batcher
from .metrics import Metrics, Statistics, TritonCounters
from .refusals import Forbidden, NotFound

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
NAMED = re.compile(rf"({NAME.pattern})(?::([1-9][0-9]{{0,8}}))?=(.+)", re.DOTALL)
SUFFIXES = (".onnx", ".safetensors", ".pth", ".pt", ".h5")


@dataclass
class Model:
    """A model that is served: a classifier, its queue, and what became of its requests."""

    name: str
    version: str
    source: Path
    classifier: Classifier
    batcher: Batcher
    statistics: Statistics
    users: int = 0  # requests that hold it
    retired: asyncio.Event = field(default_factory=asyncio.Event)  # it was taken out, and nobody holds it any more

    @contextmanager
    def held(self) -> Iterator["Model"]:
        """While a request is at work, the model stays, even when another takes its place meanwhile."""
        self.users += 1
        try:
            yield self
        finally:
            self.users -= 1
            if not self.users:
                self.retired.set()

    async def retire(self) -> None:
        """Wait until nobody holds it, then let its thread and its memory go."""
        while self.users:
            self.retired.clear()
            await self.retired.wait()
        await self.batcher.close()


class Repository:
    """Models by name and version. Belongs to one event loop; loading happens in threads."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._models: dict[str, dict[str, Model]] = {}
        self._loading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        metrics.registry.register(TritonCounters(lambda: ((one.statistics, one.batcher.waiting) for one in self)))

    def __iter__(self) -> Iterator[Model]:
        """Every model, the default one first, its newest version first."""
        for versions in self._models.values():
            yield from (versions[version] for version in sorted(versions, key=int, reverse=True))

    @property
    def changeable(self) -> bool:
        """Whether models may be loaded and unloaded over the network."""
        return self._settings.repository is not None

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """A model: the first that was named when no name is given, the newest version when none is given.

        Raises NotFound.
        """
        if not self._models:
            raise NotFound("no model is loaded")
        name = name or next(iter(self._models))
        versions = self._models.get(name)
        if versions is None:
            raise NotFound(f"no model is called {name!r}; there are {', '.join(self._models)}")
        found = versions.get(version or max(versions, key=int))
        if found is None:
            raise NotFound(f"{name} has no version {version!r}; there are {', '.join(versions)}")
        return found

    def versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first."""
        return sorted(self._models[name], key=int)

    async def load_all(self) -> None:
        """The models of the settings. Raises Error when one can't be loaded, or two are called the same."""
        for text in self._settings.models or ("",):
            given = NAMED.fullmatch(text)
            if given and not Path(text).is_file():
                name, version, path = given[1], given[2] or "1", Path(given[3])
            else:
                path = locate(text or None)
                name, version = EMBEDDED if path == EMBEDDED_FILE else path.stem, "1"
            if not NAME.fullmatch(name):
                raise Error(f"{path}: the model needs a name of letters and digits, as in --model NAME={path}")
            if version in self._models.get(name, {}):
                raise Error(f"two models are called {name}, version {version}; name them with --model NAME=PATH")
            self._models.setdefault(name, {})[version] = await self._opened(name, version, locate(path))

    async def load(self, name: str) -> None:
        """Load a model of the repository's folder, or load it anew; until that has gone well, the old one serves.

        Raises:
            Forbidden: there is no such folder. NotFound: it has no such model. ModelError: the model can't be read.
        """
        async with self._loading:
            version, path = self._find(name)
            model = await self._opened(name, version, path)
            old = self._models.get(name, {})
            self._models[name] = {version: model}
            self._let_go(old)

    async def unload(self, name: str) -> None:
        """Take a model out; requests that it has accepted are still answered.

        Raises:
            Forbidden: there is no such folder, or the model is from elsewhere, so that nobody could load it again.
            NotFound: there is no such model.
        """
        async with self._loading:
            folder = self._folder()
            if name not in self._models:
                raise NotFound(f"no model is called {name!r}")
            if not all(one.source.resolve().is_relative_to(folder) for one in self._models[name].values()):
                raise Forbidden(f"{name} is not from the repository's folder; it stays")
            self._let_go(self._models.pop(name))

    def index(self) -> list[dict[str, str]]:
        """Each model that is served, and each that could be loaded."""
        found = [{"name": one.name, "version": one.version, "state": "READY", "reason": ""} for one in self]
        if self._settings.repository is not None:
            names = {path.stem if path.is_file() else path.name for path in self._folder().iterdir() if _may_be(path)}
            idle = sorted(names - set(self._models))
            found += [{"name": name, "version": "", "state": "UNAVAILABLE", "reason": "not loaded"} for name in idle]
        return found

    async def close(self) -> None:
        """Finish what waits in every queue."""
        for one in self:
            await one.batcher.close()

    def _let_go(self, models: dict[str, Model]) -> None:
        for model in models.values():
            task = asyncio.get_running_loop().create_task(model.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _folder(self) -> Path:
        if self._settings.repository is None:
            raise Forbidden("loading and unloading is off; `vgg serve --repository DIR` allows it for the models in a folder")
        return self._settings.repository.resolve()

    def _find(self, name: str) -> tuple[str, Path]:
        """Version and file of a model in the folder: `NAME.onnx` or `NAME/VERSION/model.onnx`, the newest version."""
        folder = self._folder()
        places = [("1", path) for path in folder.glob("*") if path.stem == name and path.suffix in SUFFIXES]
        if NAME.fullmatch(name) and (folder / name).is_dir():
            versions = sorted((p for p in (folder / name).iterdir() if re.fullmatch("[1-9][0-9]{0,8}", p.name)), key=_number)
            places += [(p.name, file) for p in versions for file in sorted(p.glob("*")) if file.suffix in SUFFIXES]
        # What a link leads to counts, so that nothing outside the folder is ever read.
        places = [(version, path) for version, path in places if path.resolve().is_relative_to(folder) and path.is_file()]
        if not places:
            raise NotFound(f"the repository has no model called {name!r}")
        return places[-1]

    async def _opened(self, name: str, version: str, path: Path) -> Model:
        settings = self._settings
        classifier = await asyncio.to_thread(open_model, path, settings, name)
        statistics = Statistics(name, version, self._metrics)
        batcher = Batcher(
            classifier.engine, statistics, size=settings.batch_size, area=classifier.network.architecture.input_size**2,
            queue=settings.queue, patience=settings.deadline, name=name,
        )  # fmt: skip
        return Model(name, version, path, classifier, batcher, statistics)


def _may_be(path: Path) -> bool:
    return NAME.fullmatch(path.stem if path.is_file() else path.name) is not None and (path.is_dir() or path.suffix in SUFFIXES)


def _number(path: Path) -> int:
    return int(path.name)


def open_model(path: Path, settings: Settings, name: str) -> Classifier:
    """A classifier on a private copy of a model file, warm.

    Engines read weights where they lie in a mapped file. Were that the user's file, whoever cuts it short would take the
    process down; nobody can reach the copy.

    Raises:
        ModelError: the file can't be read, holds no VGG network, or not the numbers that it says it holds.
        Error: there is no room for the copy, or the engine can't be used.
    """
    with private_copy(path) as copy, warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", Notice)
        try:
            model = load(copy)
            network = network_of(model)
            _check_numbers(copy, network)
        except ModelError as error:
            raise ModelError(str(error).replace(str(copy), str(path))) from None
        classifier = Classifier(model, settings.engine, threads=settings.threads, device=settings.device, name=name)
        side = network.preprocessing.crop
        classifier.engine.logits(np.zeros((1, 3, side, side), np.float32))
    for note in notes:
        warnings.warn(type(note.message)(str(note.message).replace(str(copy), str(path))), stacklevel=2)
    return classifier


@contextmanager
def private_copy(path: Path) -> Iterator[Path]:
    """A copy of a file under its own name, where only this process looks; it is gone when the block ends.

    What was mapped meanwhile stays, without a name.
    """
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vgg-", ignore_cleanup_errors=True))
            copy = Path(shutil.copyfile(path, Path(folder, path.name)))
        except OSError as error:
            raise ModelError(f"{path}: can't be copied before it is read: {reason(error)}") from None
        yield copy


def _check_numbers(path: Path, network: Network) -> None:
    """Raises ModelError when an ONNX file's numbers are not those that it says it holds: it was changed after it was made."""
    from ..formats import detect, metadata
    from ..formats.onnx_file import scan

    if detect(path) == "onnx":
        claimed = scan(path).metadata.get(metadata.SHA256)
        if claimed and claimed != network.sha256():
            raise ModelError(f"{path}: is damaged: its numbers are not those that were written")
