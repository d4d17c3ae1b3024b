"""A miniature of ILSVRC-2012: tar files with the real layout and names, and a few small images."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vgg.labels import imagenet
from vgg.sources.imagenet import validation_targets

WNIDS = imagenet().wnids
CLASSES = (WNIDS[0], WNIDS[65], WNIDS[999])


def jpeg(seed: int, width: int = 40, height: int = 30) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(file, "JPEG")
    return file.getvalue()


def pack(members: dict[str, bytes] | list[tuple[tarfile.TarInfo | str, bytes]]) -> bytes:
    """A tar file, as bytes; a member may be a whole TarInfo, hostile ones included."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def class_tar(wnid: str, count: int = 4) -> bytes:
    return pack({f"{wnid}_{number}.JPEG": jpeg(number) for number in range(1, count + 1)})


def train_tar(folder: Path, **replaced: bytes) -> Path:
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(pack({f"{wnid}.tar": class_tar(wnid) for wnid in CLASSES} | {f"{k}.tar": v for k, v in replaced.items()}))
    return path


def val_tar(folder: Path, count: int = 12, **replaced: bytes) -> Path:
    path = folder / "ILSVRC2012_img_val.tar"
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, count + 1)]
    path.write_bytes(pack({name: jpeg(number, 60, 50) for number, name in enumerate(names)} | replaced))
    return path


def val_class(number: int) -> str:
    return WNIDS[validation_targets()[number - 1]]
