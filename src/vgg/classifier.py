"""The object that users hold: pictures in, predictions out."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from . import engines
from .errors import Error, ImageError
from .images import Picture, find, is_one
from .labels import Labels, imagenet
from .network import Network
from .parallel import ahead
from .preprocessing import Preprocessing, preset
from .zoo import EMBEDDED, EMBEDDED_FILE, locate

if TYPE_CHECKING:
    from .explanation import Explanation

Array = np.ndarray[Any, np.dtype[Any]]

BATCH_SIZE = 8


@dataclass(frozen=True)
class Prediction:
    """One class that a picture may show."""

    label: str  # `class 17` where the network's classes have no names
    score: float  # probability, 0..1
    index: int  # of the class, from 0
    wnid: str | None  # WordNet id, such as n02123045


@dataclass(frozen=True)
class Result:
    """What came of one picture: predictions, best first, or else why there are none."""

    image: str
    predictions: list[Prediction]
    error: str | None = None


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
        found = [ranked(row, top, self.network.labels) for row in scores]
        return found[0] if is_one(images) else found

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
                    yield Result(name, ranked(next(rows), top, self.network.labels))

    def features(
        self,
        images: Any,
        layers: str | Sequence[str] = (),
        *,
        protocol: str = "center",
        scales: Sequence[int] = (),
        flip: bool = False,
        stack: bool = False,
        normalize: bool = False,
        maps: bool = False,
    ) -> dict[str, Array]:
        """Pictures as vectors: the values of layers, averaged over all places, views and scales.

        As in the paper's Appendix B: `features(images, protocol="dense", scales=(256, 384, 512), flip=True, normalize=True)`.
        All of it is in memory at the end; `vgg.features.extract` gives a picture at a time, and goes on at broken ones.

        Args:
            images: one picture or many, as `classify` takes them.
            layers: names as in `Architecture.values`, such as `fc7` or `conv5_3`, after the ReLU; the last layer but one when
                not given, which is `fc7`, or `pool6` with global average pooling.
            protocol: the views of a picture, see `vgg.evaluation.Protocol`: `center`, or `dense` for the whole picture, …
            scales: short sides in pixels, instead of the preprocessing's.
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
        from .evaluation import Protocol
        from .features import Descriptor, extract, gather  # which stands above this file, and is here for convenience

        names = (layers,) if isinstance(layers, str) else tuple(layers)
        descriptor = Descriptor(names, Protocol(protocol, tuple(scales), flip), stack, normalize, maps)
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


def softmax(logits: Array) -> Array:
    """Probabilities, float32, along the last axis; computed in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)


def ranked(scores: Array, top: int, labels: Labels | None) -> list[Prediction]:
    """The `top` classes of one picture's scores [classes], best first; among equals, the lower index."""
    if top < 1:
        raise Error(f"top must be 1 or more, not {top}")
    return named(scores, np.argsort(-scores, kind="stable")[:top].tolist(), labels)


def named(scores: Array, classes: Iterable[int], labels: Labels | None) -> list[Prediction]:
    """These classes of one picture's scores [classes], as predictions."""
    found = []
    for index in classes:
        label = labels.names[index] if labels else f"class {index}"
        wnid = labels.wnids[index] if labels and labels.wnids else None
        found.append(Prediction(label, float(scores[index]), index, wnid))
    return found


def postprocess(logits: Array, top: int = 5, labels: Labels | None = None) -> list[list[Prediction]]:
    """Predictions from a network's raw output.

    Args:
        logits: float [batch, classes], or [classes] for one picture.
        top: how many predictions a picture.
        labels: what the classes are called; ImageNet's when not given, and then there must be 1000 classes.

    Returns:
        For each picture of the batch, the best `top` classes, best first, with probabilities.

    Raises:
        Error: the labels are not as many as the classes.
    """
    labels = labels or imagenet()
    logits = np.atleast_2d(logits)
    if logits.shape[-1] != len(labels):
        raise Error(f"{len(labels)} labels for logits of {logits.shape[-1]} classes")
    return [ranked(row, top, labels) for row in softmax(logits)]
