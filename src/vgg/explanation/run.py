"""`explain`: from an image, classes and a method to an `Explanation`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..engines import Model, WholeGraphEngine
from ..errors import Error
from ..gradients import gradient, needed
from ..heads import Output
from ..images import ImageLike, open_image
from ..labels import find_class
from ..methods import DEFAULT, METHODS
from ..network import Network
from ..predictions import THRESHOLD as CERTAIN
from ..predictions import describe, network_scores
from ..progress import Progress, silent
from . import cam, pixels
from .boxes import cropped_area
from .dense import class_map
from .perturbation import occlusion, score_cam
from .result import Explanation

MOST = 5  # labels of an image that are explained by default
WINDOWS = 7  # occluded squares along the input's side without overlap: 32 pixels of 224
MOST_SAMPLES = 10_000
CAMS = {"grad-cam": cam.grad_cam, "grad-cam++": cam.grad_cam_plus, "layer-cam": cam.layer_cam}


def explain(
    model: Model,
    image: ImageLike,
    classes: Sequence[int | str] = (),
    *,
    method: str = DEFAULT,
    layer: str | None = None,
    window: int | None = None,
    samples: int | None = None,
    size: int | None = None,
    name: str | None = None,
    progress: Progress = silent,
) -> Explanation:
    """The evidence for classes in an image; see `Classifier.explain`.

    Args:
        model: a network on an engine, such as a `Classifier`.
        image: see `vgg.images.open_image`.
        classes: by index, WordNet id or name; by default the predicted class, or if an image has several labels, those with
            a score above 0.5, at most 5. None without a head.
        method: one of `vgg.methods.METHODS`; without a head, the map is the activation energy.
        layer: see `Classifier.explain`, as for the next three.
        window: side of the occluded square in pixels.
        samples: number of gradients.
        size: short side of the image in pixels.
        name: the image's name in an error.
        progress: called as a method that takes long advances.
    """
    if method not in METHODS:
        raise Error(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    network, preprocessing = model.network, model.network.preprocessing
    architecture = network.architecture
    if not architecture.classifier and (classes or method != DEFAULT):
        raise Error(f"this {architecture.name} has no head, so it has no classes to explain; only its activation is shown")
    options = _options(method, {"layer": layer, "window": window, "samples": samples, "size": size}, architecture.input_size)
    chosen = [find_class(one, architecture.classes, network.class_names) for one in classes]
    opened = open_image(image, name)
    batch = preprocessing(opened, name)[None]
    values = {key: value[0] for key, value in model.engine.run(batch, _outputs(network, method, layer)).items()}
    area = cropped_area(preprocessing, *opened.size)
    if not architecture.classifier:
        return Explanation(opened, [], cam.energy(network, values, layer), area)
    scores = network_scores(network, values["logits"])
    chosen = chosen or _predicted(scores, architecture.output)
    if method == "class-map":
        maps, area = class_map(model, opened, chosen, options["size"], name or "the image")
    else:
        maps = _maps(model, method, batch[0], values, chosen, progress, **options)
    return Explanation(opened, describe(scores, chosen, network.class_names), maps, area, method)


def can_explain(model: Model) -> bool:
    """Whether the engine returns the layer outputs for Grad-CAM. A graph that runs as it is returns only logits."""
    return not isinstance(model.engine, WholeGraphEngine)


def _options(method: str, given: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The options of a method with their values. Raises Error if it has no such option, or if one is out of range."""
    known = METHODS[method].options
    for name, value in given.items():
        if value is not None and name not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise Error(f"the method {method} has no option {name!r}; {has}")
    options = {name: default if given[name] is None else given[name] for name, default in known.items()}
    if "window" in options:
        options["window"] = side // WINDOWS if options["window"] is None else options["window"]
        if not 1 <= options["window"] <= side:
            raise Error(f"the window must be 1 to {side} pixels, the side of the input, not {options['window']}")
    if "samples" in options and not 1 <= options["samples"] <= MOST_SAMPLES:
        raise Error(f"the number of samples must be 1 to {MOST_SAMPLES:,}, not {options['samples']}")
    return options


def _predicted(scores: Array, output: Output | None) -> list[int]:
    """The classes that are explained by default: the best one, or all certain labels of an image, best first."""
    best = np.argsort(-scores, kind="stable")[:MOST].tolist()
    return [index for index in best if output == "sigmoid" and scores[index] > CERTAIN] or best[:1]


def _outputs(network: Network, method: str, layer: str | None) -> tuple[str, ...]:
    """The layer outputs for the image that a method needs, with the logits."""
    if method in CAMS or not network.architecture.classifier:
        return cam.outputs(network, layer)
    if method == "score-cam":
        return cam.chosen_layer(network.architecture, layer), "logits"
    return needed(network.architecture) if method == "saliency" else ("logits",)


def _maps(
    model: Model, method: str, image: Array, values: Mapping[str, Array], classes: Sequence[int], progress: Progress, /,
    layer: str | None = None, window: int = 0, samples: int = 0,
) -> Array:  # fmt: skip
    """The maps of a method for the crop, float32 [classes, rows, columns]."""
    signal = cam.signals(model.network, classes)
    match method:
        case "score-cam":
            return score_cam(model, image, values[cam.chosen_layer(model.network.architecture, layer)], signal, progress)
        case "occlusion":
            return occlusion(model, image, signal, window, progress)
        case "saliency":
            return pixels.saliency(gradient(model.network, values, signal))
        case "smoothgrad":
            return pixels.smoothgrad(model, image, signal, samples, progress)
        case "integrated-gradients":
            return pixels.integrated_gradients(model, image, signal, samples, progress)
        case _:
            return CAMS[method](model.network, values, classes, layer)
