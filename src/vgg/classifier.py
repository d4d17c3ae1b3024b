"""`load` and `Classifier`: images in, predictions out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import numpy as np
from PIL import Image

from . import engines
from .arrays import Array
from .errors import ImageError, ModelError
from .formats import QuantizedGraph, network_of
from .formats import load as load_model
from .heads import Output
from .images import ImageLike
from .labels import Labels, mismatch
from .network import Network
from .parallel import ahead, cores
from .predictions import Prediction, Result, choose, network_scores
from .preprocessing import Preprocessing, preset
from .progress import Progress, silent
from .sources import find, is_single
from .zoo import EMBEDDED, EMBEDDED_FILE, locate

if TYPE_CHECKING:  # imported late, since classifying needs neither features nor explanations, and starts faster without them
    from .explanation import Explanation

BATCH_SIZE = 8
M = TypeVar("M", bound=Network | QuantizedGraph)


class Classifier:
    """A network on an engine, with its preprocessing and labels. Thread-safe.

    Attributes:
        network: the network.
        engine: the engine that computes it.
        name: the model's name in output.
    """

    def __init__(
        self,
        model: Network | QuantizedGraph,
        engine: str = "auto",
        *,
        threads: int | None = None,
        device: str = "cpu",
        precision: str = "auto",
        name: str = "",
    ) -> None:
        """Create a classifier; see `load` for the arguments. `name` is the model's name in output."""
        self.network = network_of(model)
        self.engine = engines.open(model, engine, threads=threads, device=device, precision=precision)
        self.name = name or self.network.provenance.published or self.network.architecture.name

    @overload
    def classify(
        self, images: bytes | Image.Image, top: int | None = None, threshold: float | None = None
    ) -> list[Prediction]: ...
    @overload
    def classify(self, images: str | Path | Array, top: int | None = None, threshold: float | None = None) -> list[Any]: ...
    @overload
    def classify(
        self, images: Sequence[ImageLike], top: int | None = None, threshold: float | None = None
    ) -> list[list[Prediction]]: ...
    def classify(self, images: Any, top: int | None = None, threshold: float | None = None) -> list[Any]:
        """Classify an image, or several.

        Args:
            images: one image (a path, a file's bytes, an open file, a PIL image, or an array, uint8 [height, width, 3],
                0..255), or several: a list of these, a folder, which is walked, a glob, or an array [count, height, width, 3].
            top: maximum number of predictions per image; by default 5, or all if each class has a score of its own.
            threshold: predictions have a score above it, 0..1; by default 0.5 if each class has a score of its own, so that
                an image may have none.

        Returns:
            The predictions, best first; for several images, a list of such lists in the order of the images.

        Raises:
            ImageError: an image can't be read; `results` continues in this case.
            ModelError: the network has no head, or parameters that are not finite numbers.
        """
        found = [choose(self.network, row, top, threshold) for row in self.scores(images)]
        return found[0] if is_single(images) else found

    def scores(self, images: Any) -> Array:
        """The scores of the classes, float32 [images, classes]; `images` as in `classify`. See `vgg.predictions.scores`."""
        return network_scores(self.network, self.logits(images))

    def logits(self, images: Any) -> Array:
        """The network's logits, float32 [images, units]; `images` as in `classify`."""
        rows = []
        for batch in self._batches(find(images)):
            for _, error in batch:
                if isinstance(error, ImageError):
                    raise error
            rows.append(self.engine.logits(np.stack([value for _, value in batch])))
        return np.concatenate(rows)

    def results(
        self, images: Any, top: int | None = None, threshold: float | None = None, *, workers: int | None = None
    ) -> Iterator[Result]:
        """A `Result` for each image, in order, as they are computed; an unreadable image gives a result with an error.

        Args:
            images: as in `classify`.
            top: as in `classify`.
            threshold: as in `classify`.
            workers: number of threads that read and preprocess while the engine computes; the number of cores by default.
        """
        for batch in self._batches(find(images), workers):
            good = [value for _, value in batch if not isinstance(value, ImageError)]
            rows = iter(network_scores(self.network, self.engine.logits(np.stack(good))) if good else ())
            for name, value in batch:
                if isinstance(value, ImageError):
                    yield Result(name, [], str(value))
                else:
                    yield Result(name, choose(self.network, next(rows), top, threshold))

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
        """Feature vectors: layer outputs, averaged over positions, views and sizes.

        As in the paper's Appendix B: `features(images, protocol="dense", sizes=(256, 384, 512), flip=True, normalize=True)`.
        All vectors are in memory at the end; `vgg.features.extract` yields one image at a time, and continues after
        unreadable ones.

        Args:
            images: as in `classify`.
            layers: names in `Architecture.values`, such as `fc7` or `conv5_3` (after the ReLU). By default the last but one:
                `fc7`, or `pool6` with global average pooling.
            protocol: views of each image, see `vgg.views.Views`: `center`, `dense` for the whole image, …
            sizes: short sides of the resized image in pixels, instead of the preprocessing's.
            flip: add the mirrored copy of each view.
            stack: concatenate the sizes' vectors instead of averaging them.
            normalize: scale each vector to length 1 (L2).
            maps: keep feature maps, float32 [images, channels, rows, columns]; requires a single crop.

        Returns:
            float32 [images, length] by layer.

        Raises:
            ImageError: an image can't be read.
            ModelError: unknown layer.
            Error: the options contradict each other, or the network or engine does not support them.
        """
        from .features import Descriptor, extract, gather
        from .views import Views

        names = (layers,) if isinstance(layers, str) else tuple(layers)
        descriptor = Descriptor(names, Views(protocol, tuple(sizes), flip), stack, normalize, maps)
        return gather(extract(self, find(images), descriptor))

    def explain(
        self,
        image: ImageLike,
        classes: int | str | Sequence[int | str] = (),
        *,
        method: str = "grad-cam",
        layer: str | None = None,
        window: int | None = None,
        samples: int | None = None,
        size: int | None = None,
        progress: Progress = silent,
    ) -> "Explanation":
        """The evidence for classes in an image: `explain("cat.jpg").overlay().save("heat.png")`.

        Args:
            image: a path, a file's bytes, a PIL image, or an array, as in `classify`.
            classes: one or several, by index, WordNet id or name; the predicted class by default.
            method: of the crop that is classified: `grad-cam`, `grad-cam++`, `layer-cam` and `score-cam` for the positions of
                a layer output, `occlusion`, `saliency`, `smoothgrad` and `integrated-gradients` for its pixels; or `class-map`,
                the class's probability at each position of the whole image, which requires the engine native or torch, unless
                the network pools globally.
            layer: the layer output for the four methods with `cam` in their names, `conv1_1` … `pool5`; by default that of the
                last convolution.
            window: side in pixels of the square that `occlusion` moves over the crop; by default a seventh of the crop's side.
            samples: number of gradients that `smoothgrad` and `integrated-gradients` average; 50 by default.
            size: short side of the image in pixels for a class map, 512 by default; larger sizes give more positions.
            progress: called as a method that takes long advances.

        Returns:
            The heat maps, with boxes and an overlay; see `vgg.explanation.Explanation`.

        Raises:
            ImageError: the image can't be read.
            Error: unknown class or method, an option that is out of range or not of this method, or an engine that does not
                support the method.
        """
        from .explanation import explain

        chosen = (classes,) if isinstance(classes, int | str) else classes
        return explain(
            self, image, chosen, method=method, layer=layer, window=window, samples=samples, size=size, progress=progress
        )

    def preprocess(self, image: ImageLike, name: str | None = None) -> Array:
        """One image as the network's input, float32 [3, crop, crop]. Raises ImageError if it can't be read."""
        return self.network.preprocessing(image, name)

    def _batches(self, images: Iterable[tuple[str, ImageLike]], workers: int | None = None) -> Iterator[list[tuple[str, Any]]]:
        """Batches of names with inputs or errors; the next two batches are prepared meanwhile."""

        def prepare(named: tuple[str, ImageLike]) -> tuple[str, Array | ImageError]:
            name, image = named
            try:
                return name, self.network.preprocessing(image, name, pixels=engines.takes_pixels(self.engine))
            except ImageError as error:
                return name, error

        prepared = ahead(prepare, images, workers or min(cores(), BATCH_SIZE), 2 * BATCH_SIZE)
        while batch := list(islice(prepared, BATCH_SIZE)):
            yield batch


def load(
    model: str | Path | Network | QuantizedGraph | None = None,
    engine: str = "auto",
    *,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "auto",
    preprocessing: Preprocessing | str | None = None,
    labels: Labels | str | Path | None = None,
    head: str | None = None,
    output: Output | None = None,
    input_size: int | None = None,
) -> Classifier:
    """Load a classifier from a model file or a published name.

    Args:
        model: a file that `Network.read` reads; a published name, such as `torchvision/vgg16`, whose file is downloaded on
            first use, see `vgg.zoo`; or a Network or `vgg.formats.QuantizedGraph`. By default the small network in the
            package, `vgg16-gap`.
        engine: see `vgg.engines.open`.
        threads: maximum number of engine threads; the number of cores by default.
        device: `cpu`, or `cuda` for a GPU, which requires torch.
        precision: `auto`, `float32` or `bf16`; see `vgg.engines.open`.
        preprocessing: a `Preprocessing`, or the name of a preset, which is used for the network's crop, instead of its own.
        labels: `Labels` or a file for `Labels.read`, instead of the network's.
        head: another reading of the same parameters, such as `"average, 256 gelu, classes"`; see `vgg.heads`.
        output: the meaning of the logits: `softmax`, `sigmoid` or `binary`, instead of the network's.
        input_size: side of the input in pixels, instead of the network's; crop and size of its preprocessing follow.

    Raises:
        ModelError: the file can't be read or does not hold a VGG network, or its parameters don't fit the head.
        Error: the download failed; or the labels, preset, engine, device or precision is invalid or not available.
    """
    opened, name = read(model, preprocessing=preprocessing, labels=labels, head=head, output=output, input_size=input_size)
    return Classifier(opened, engine, threads=threads, device=device, precision=precision, name=name)


def read(model: str | Path | Network | QuantizedGraph | None, **replaced: Any) -> tuple[Network | QuantizedGraph, str]:
    """A model and its name in output, "" of a Network; `replaced` are the arguments of `described`, which need no notice."""
    if isinstance(model, Network | QuantizedGraph):
        return described(model, **replaced), ""
    path = locate(model)
    opened = load_model(path, [name for name, value in replaced.items() if value is not None])
    return described(opened, **replaced), EMBEDDED if path == EMBEDDED_FILE else path.name


def described(
    model: M,
    preprocessing: Preprocessing | str | None = None,
    labels: Labels | str | Path | None = None,
    head: str | None = None,
    output: Output | None = None,
    input_size: int | None = None,
) -> M:
    """A model with other preprocessing, labels or reading of its head, as in `load`; its provenance records the first two."""
    network = network_of(model)
    if head or output or input_size:
        if isinstance(model, QuantizedGraph):
            raise ModelError("a file with quantized activations runs as it is; its head and input size can't be changed")
        network = network.read_as(head or "", output, input_size or 0)
    if preprocessing is not None:
        crop = network.preprocessing.crop
        chosen = preset(preprocessing).for_crop(crop) if isinstance(preprocessing, str) else preprocessing
        network = replace(network, preprocessing=chosen, provenance=replace(network.provenance, preprocessing="given"))
    if labels is not None:
        origin = replace(network.provenance, labels="given")
        named = labels if isinstance(labels, Labels) else Labels.read(labels)
        if len(named) != network.architecture.classes and not isinstance(labels, Labels):
            raise ModelError(f"{labels}: {mismatch(named, network.architecture.classes)}")
        network = replace(network, labels=named, provenance=origin)
    return cast("M", replace(model, network=network) if isinstance(model, QuantizedGraph) else network)
