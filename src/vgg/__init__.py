"""VGG networks: classify images, convert, evaluate, quantize, explain, serve and train.

    import vgg
    classifier = vgg.load("vgg19.onnx")
    for p in classifier.classify("cat.jpg", top=5):
        print(p.label, p.score, p.wnid, p.index)

Names are loaded when they are first used, so that `import vgg` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import architectures, engines, evaluation, explanation, features, formats, images, labels, perceptual  # isort: skip
    from . import predictions, preprocessing, quantization, runs, samples, sources, training, views, zoo  # isort: skip
    from .architectures import Architecture
    from .classifier import Classifier, load
    from .errors import Error, ImageError, ModelError, Notice
    from .labels import Labels
    from .network import Network, Provenance
    from .parameters import LowRank, Quantized
    from .perceptual import perceptual_distance
    from .predictions import Prediction, Result, postprocess
    from .preprocessing import Preprocessing, preprocess

# Each public name by the module that defines it; a module that is public itself has its name in _MODULES.
_HOMES = {
    name: module
    for module, names in {
        "architectures": ("Architecture",),
        "classifier": ("Classifier", "load"),
        "errors": ("Error", "ImageError", "ModelError", "Notice"),
        "formats": ("Network",),  # which attaches `Network.read` and `Network.write`
        "labels": ("Labels",),
        "network": ("Provenance",),
        "parameters": ("LowRank", "Quantized"),
        "perceptual": ("perceptual_distance",),
        "predictions": ("Prediction", "Result", "postprocess"),
        "preprocessing": ("Preprocessing", "preprocess"),
    }.items()
    for name in names
}
_MODULES = (
    "architectures", "engines", "evaluation", "explanation", "features", "formats", "images", "labels", "perceptual",
    "predictions", "preprocessing", "quantization", "runs", "samples", "sources", "training", "views", "zoo",
)  # fmt: skip

__all__ = [
    "Architecture", "Classifier", "Error", "ImageError", "Labels", "LowRank", "ModelError", "Network", "Notice", "Prediction",
    "Preprocessing", "Provenance", "Quantized", "Result", "__version__", "architectures", "engines", "evaluation",
    "explanation", "features", "formats", "images", "labels", "load", "perceptual", "perceptual_distance", "postprocess",
    "predictions", "preprocess", "preprocessing", "quantization", "runs", "samples", "sources", "training", "views", "zoo",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vgg")
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in (*_MODULES, "torch"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
