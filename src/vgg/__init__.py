"""VGG networks: classify pictures with them, convert them, check them, train them.

    import vgg
    classifier = vgg.load("vgg19.onnx")
    for p in classifier.classify("cat.jpg", top=5):
        print(p.label, p.score, p.wnid, p.index)

Names are loaded when they are first used, so that `import vgg` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import architectures, datasets, engines, evaluation, explanation, features, formats, images, labels  # isort: skip
    from . import perceptual, preprocessing, quantization, samples, scale, training, zoo  # isort: skip
    from .architectures import Architecture
    from .classifier import Classifier, Prediction, Result, load, postprocess
    from .errors import Error, ImageError, ModelError, Notice
    from .labels import Labels
    from .network import Network, Provenance
    from .parameters import LowRank, Quantized
    from .perceptual import perceptual_distance
    from .preprocessing import Preprocessing, preprocess

_HOMES = {
    "architectures": ("Architecture",),
    "classifier": ("Classifier", "Prediction", "Result", "load", "postprocess"),
    "errors": ("Error", "ImageError", "ModelError", "Notice"),
    "labels": ("Labels",),
    "network": ("Network", "Provenance"),
    "parameters": ("LowRank", "Quantized"),
    "perceptual": ("perceptual_distance",),
    "preprocessing": ("Preprocessing", "preprocess"),
}
_ROOMS = (
    "architectures", "datasets", "engines", "evaluation", "explanation", "features", "formats", "images", "labels",
    "perceptual", "preprocessing", "quantization", "samples", "scale", "torch", "training", "zoo",
)  # fmt: skip

__all__ = [
    "Architecture", "Classifier", "Error", "ImageError", "Labels", "LowRank", "ModelError", "Network", "Notice", "Prediction",
    "Preprocessing", "Provenance", "Quantized", "Result", "__version__", "architectures", "datasets", "engines", "evaluation",
    "explanation", "features", "formats", "images", "labels", "load", "perceptual", "perceptual_distance", "postprocess",
    "preprocess", "preprocessing", "quantization", "samples", "scale", "training", "zoo",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vgg")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
