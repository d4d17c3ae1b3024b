"""Model files whose publishers say what is in them, how to tell one by its hash, and the one that ships in the package."""

from dataclasses import dataclass
from pathlib import Path

from .architectures import Architecture
from .files import digest

EMBEDDED = "vgg16-gap"  # the network inside the package; see docs/embedded-model.md
EMBEDDED_FILE = Path(__file__).parent / "embedded.onnx"


@dataclass(frozen=True)
class Published:
    """A published file: where it is, how it is known, and what its publisher says of it."""

    name: str
    architecture: Architecture
    preset: str
    algorithm: str  # of the digest
    digest: str  # hexadecimal, the whole or the head of it, as its publisher gives it
    address: str
    top1: float  # accuracy on ImageNet's 50,000 validation images, percent, centre crop, by its publisher
    top5: float


def _torchvision(file: str, top1: float, top5: float) -> Published:
    architecture, head = file.replace("_", "-").rsplit("-", 1)
    address = f"https://download.pytorch.org/models/{file}.pth"
    return Published(
        f"torchvision/{architecture}", Architecture(architecture), "torchvision", "sha256", head, address, top1, top5
    )


def _keras(name: str, digest: str, top1: float, top5: float) -> Published:
    file = f"{name}_weights_tf_dim_ordering_tf_kernels.h5"
    address = f"https://storage.googleapis.com/tensorflow/keras-applications/{name}/{file}"
    return Published(f"keras/{name}", Architecture(name), "caffe", "md5", digest, address, top1, top5)


PUBLISHED = (
    # torchvision 0.12 and later, torchvision/models/vgg.py, IMAGENET1K_V1; the digest's head is in the file's name.
    _torchvision("vgg11-8a719046", 69.020, 88.628),
    _torchvision("vgg13-19584684", 69.928, 89.246),
    _torchvision("vgg16-397923af", 71.592, 90.382),
    _torchvision("vgg19-dcbb9e9d", 72.376, 90.876),
    _torchvision("vgg11_bn-6002323d", 70.370, 89.810),
    _torchvision("vgg13_bn-abd245e5", 71.586, 90.374),
    _torchvision("vgg16_bn-6c64b313", 73.360, 91.516),
    _torchvision("vgg19_bn-c79401a0", 74.218, 91.842),
    # keras/src/applications/vgg16.py and vgg19.py; accuracies from keras.io/api/applications.
    _keras("vgg16", "64373286793e3c8b2b4e3219cbf3544b", 71.3, 90.1),
    _keras("vgg19", "cbe5617147190e668d6c5d5026f83318", 71.3, 90.0),
)


def locate(model: str | Path | None) -> Path:
    """The file that a model's name means: the embedded one without a name or by its own, else the name as a path."""
    return EMBEDDED_FILE if model is None or str(model) == EMBEDDED else Path(model)


def recognise(path: Path, sha256: str) -> Published | None:
    """The published file that this one is, byte for byte, by its hash; None when it is none of them."""
    md5 = digest(path, "md5") if path.suffix == ".h5" else ""
    found = {"sha256": sha256, "md5": md5}
    return next((known for known in PUBLISHED if found[known.algorithm].startswith(known.digest)), None)
