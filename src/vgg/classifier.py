"""The object that users hold: pictures in, predictions out."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from . import engines
from .arrays import Array
from .errors import ImageError
from .images import Picture
from .labels import Labels
from .network import Network
from .parallel import ahead
from .predictions import Prediction, Result, rank, softmax
from .preprocessing import Preprocessing, preset
from .sources import find, is_single
from .zoo import EMBEDDED, EMBEDDED_FILE, locate

if TYPE_CHECKING:
    from .explanation import Explanation

BATCH_SIZE = 8


class Classifier:
    """A network on an engine, with its preprocessing and labels. Safe to use from several threads at once."""

    def __init__(
        self, network: Network, engine: str = "auto", *, threads: int | None = None, device: str = "cpu", name: str = ""
    ) -> None:
        """Args: see `load`; `name` is what the model is called in output."""
        self.network = network
        self.engine = engines.open(network, engine, threads=threads, device=device)
        self.name = name or network.provenance.published or network.architecture.name

    @overload
    def classify(self, images: bytes | Image.Image, top: int = 5) -> list[Prediction]: ...
    @overload
    def classify(self, images: str | Path | Array, top: int = 5) -> list[Any]: ...
    @overload
    def classify(self, images: Sequence[Picture], top: int = 5) -> list[list[Prediction]]: ...
    def classify(self, images: Any, top: int = 5) -> list[Any]:
        """What is in a picture, or in each of many.

        Args:
            images: one picture (a path, a file's bytes, a PIL image, or an array, uint8 [height, width, 3], 0..255), or
                many: a list of them, a folder, which is walked, a glob, or an array [count, height, width, 3].
            top: how many predictions a picture.

        Returns:
            The predictions, best first; for many pictures, a list of such lists in the pictures' order.

        Raises:
            ImageError: a picture can't be read. `results` goes on instead.
        """
        scores = self.scores(images)
        found = [rank(row, top, self.network.labels) for row in scores]
        return found[0] if is_single(images) else found

    def scores(self, images: Any) -> Array:
        """The probability of each class: float32 [batch, classes] for one picture or many, as `classify` takes them."""
        return softmax(self.logits(images))

    def logits(self, images: Any) -> Array:
        """The network's raw output: float32 [batch, classes] for one picture or many, as `classify` takes them."""
        rows = []
        for batch in self._batches(find(images)):
            for _, error in batch:
                if isinstance(error, ImageError):
                    raise error
            rows.append(self.engine.logits(np.stack([value for _, value in batch])))
        return np.concatenate(rows)

    def results(self, images: Any, top: int = 5, *, workers: int | None = None) -> Iterator[Result]:
        """A `Result` for each picture, in order, as they come; a picture that can't be read gives one with an error.

        Pictures are read and prepared by other threads while the engine works: `workers`, or as many as there are cores.
        """
        for batch in self._batches(find(images), workers):
            good = [value for _, value in batch if not isinstance(value, ImageError)]
            rows = iter(softmax(self.engine.logits(np.stack(good))) if good else ())
            for name, value in batch:
                if isinstance(value, ImageError):
                    yield Result(name, [], str(value))
                else:
                    yield Result(name, rank(next(rows), top, self.network.labels))

    def features(
        self,
        images: Any,
        layers: str | Sequence[str] = (),
        *,
        protocol: str = "center",
        sizes: Sequence[int] = (),
        flip: bool = False,
        stack: bool = False,
        normalize: bool = False,
        maps: bool = False,
    ) -> dict[str, Array]:
        """Pictures as vectors: the values of layers, averaged over all places, views and scales.

        As in the paper's Appendix B: `features(images, protocol="dense", sizes=(256, 384, 512), flip=True, normalize=True)`.
        All of it is in memory at the end; `vgg.features.extract` gives a picture at a time, and goes on at broken ones.

        Args:
            images: one picture or many, as `classify` takes them.
            layers: names as in `Architecture.values`, such as `fc7` or `conv5_3`, after the ReLU; the last layer but one when
                not given, which is `fc7`, or `pool6` with global average pooling.
            protocol: the views of a picture, see `vgg.views.Views`: `center`, or `dense` for the whole picture, …
            sizes: short sides in pixels, instead of the preprocessing's.
            flip: each view also mirrored.
            stack: the scales side by side instead of their mean.
            normalize: each vector to length 1 (L2).
            maps: a convolution's values as they are, float32 [pictures, channels, rows, columns]; of a single crop only.

        Returns:
            By layer, float32 [pictures, length].

        Raises:
            ImageError: a picture can't be read.
            ModelError: there is no such layer; Error: the options contradict each other, the network or the engine.
        """
        from .features import Descriptor, extract, gather  # which stands above this file, and is here for convenience
        from .views import Views

        names = (layers,) if isinstance(layers, str) else tuple(layers)
        descriptor = Descriptor(names, Views(protocol, tuple(sizes), flip), stack, normalize, maps)
        return gather(extract(self, find(images), descriptor))

    def explain(
        self,
        image: Picture,
        classes: int | str | Sequence[int | str] = (),
        *,
        method: str = "grad-cam",
        scale: int = 512,
    ) -> "Explanation":
        """Where the network looked in a picture: `explain("cat.jpg").overlay().save("heat.png")`.

        Args:
            image: a path, a file's bytes, a PIL image, or an array, as `classify` takes them.
            classes: one or several, by index, WordNet id or name; the best class when not given.
            method: `grad-cam`, of the crop that is classified; or `class-map`, the class's probability at each place of the
                whole picture, for which the engine must be native or torch, unless the network pools globally.
            scale: pixels of the short side for a class map; the larger, the more places.

        Returns:
            The maps, with boxes and the overlay made from them; see `vgg.explanation.Explanation`.

        Raises:
            ImageError: the picture can't be read. Error: there is no such class, method or scale, or the engine doesn't fit.
        """
        from .explanation import explain  # which stands above this file, and is here for convenience

        chosen = (classes,) if isinstance(classes, int | str) else classes
        return explain(self, image, chosen, method=method, scale=scale)

    def preprocess(self, image: Picture, name: str | None = None) -> Array:
        """One picture as the network's input, float32 [3, crop, crop]. Raises ImageError when it can't be read."""
        return self.network.preprocessing(image, name)

    def _batches(self, pictures: Iterable[tuple[str, Picture]], workers: int | None = None) -> Iterator[list[tuple[str, Any]]]:
        """Names with inputs, or with errors, in batches; the next two batches are prepared meanwhile."""

        def prepare(named: tuple[str, Picture]) -> tuple[str, Array | ImageError]:
            name, picture = named
            try:
                return name, self.preprocess(picture, name)
            except ImageError as error:
                return name, error

        prepared = ahead(prepare, pictures, workers or min(os.cpu_count() or 1, BATCH_SIZE), 2 * BATCH_SIZE)
        while batch := list(islice(prepared, BATCH_SIZE)):
            yield batch


def load(
    model: str | Path | Network | None = None,
    engine: str = "auto",
    *,
    threads: int | None = None,
    device: str = "cpu",
    preprocessing: Preprocessing | str | None = None,
    labels: Labels | str | Path | None = None,
) -> Classifier:
    """A classifier from a model's file or name.

    Args:
        model: a file of any kind that `Network.read` reads; a published name, such as `torchvision/vgg16`, whose file is
            downloaded on first use, see `vgg.zoo`; or a Network. When not given, the small network that ships inside the
            package, `vgg16-gap`.
        engine: see `vgg.engines.open`.
        threads: how many the engine uses at most.
        device: `cpu`, or `cuda` for a GPU, which needs torch.
        preprocessing: instead of the network's own; a `Preprocessing` or a preset's name.
        labels: instead of the network's own; `Labels`, or a file for `Labels.read`.

    Raises:
        ModelError: the file can't be read or holds no VGG network.
        Error: the model can't be downloaded; or the labels, the preset, the engine or the device can't be used.
    """
    network, name = (model, "") if isinstance(model, Network) else read(model)
    network = described(network, preprocessing, labels)
    return Classifier(network, engine, threads=threads, device=device, name=name)


def read(model: str | Path | None) -> tuple[Network, str]:
    """The network in a file or of a published name, as `load` takes it, and what it is called in output."""
    path = locate(model)
    return Network.read(path), EMBEDDED if path == EMBEDDED_FILE else path.name


def described(
    network: Network, preprocessing: Preprocessing | str | None = None, labels: Labels | str | Path | None = None
) -> Network:
    """A network with another preprocessing or other labels, which its provenance then calls given."""
    origin = network.provenance
    if preprocessing is not None:
        recipe = preset(preprocessing) if isinstance(preprocessing, str) else preprocessing
        origin = replace(origin, preprocessing="given")
        network = replace(network, preprocessing=recipe, provenance=origin)
    if labels is not None:
        origin = replace(origin, labels="given")
        network = replace(network, labels=labels if isinstance(labels, Labels) else Labels.read(labels), provenance=origin)
    return network
