"""What the pages of docs/ need to run: the files that they name, on a small scale, and a comparison of outputs."""

import re
import shutil
import subprocess
import sys

import numpy as np
import torch
from PIL import Image

from conftest import EXAMPLES, ROOT, random_network
from fine_tuned import fine_tune, save_keras, save_torch
from vgg.labels import Labels, imagenet

# Files that pages name, and the narrow networks in them. A file in the current folder has priority over a published name.
NETWORKS = {
    "keras/vgg19": "vgg19", "model.onnx": "vgg16", "torchvision/vgg16": "vgg16", "vgg16-397923af.pth": "vgg16",
    "vgg16.onnx": "vgg16", "vgg16_bn-6c64b313.pth": "vgg16-bn", "vgg19.onnx": "vgg19",
}  # fmt: skip
CONDITIONS = ("normal", "pneumonia")
BOXES = """<annotation><size><width>451</width><height>300</height></size><object><name>n02123045</name><bndbox>
<xmin>94</xmin><ymin>19</ymin><xmax>357</xmax><ymax>281</ymax></bndbox></object></annotation>"""


def make_images(place):
    """Photos, class folders, images of two classes, one validation image of ImageNet with its box, and a table of labels."""
    shutil.copytree(EXAMPLES, place / "examples")
    (place / "photos").mkdir()
    for photo in EXAMPLES.glob("*.*g"):
        shutil.copy(photo, place / "photos")
    for name in ("cat.jpg", "dog.jpg", "photo.jpg", "a.png", "b.png"):
        Image.open(EXAMPLES / "chelsea.png").convert("RGB").save(place / name)
    (place / "photos.csv").write_text("image,labels\ncat.jpg,cat|grass\ndog.jpg,\n")
    (place / "imagenet/val/n02123045").mkdir(parents=True)
    shutil.copy(place / "cat.jpg", place / "imagenet/val/n02123045/ILSVRC2012_val_00000001.JPEG")
    (place / "bbox/val").mkdir(parents=True)
    (place / "bbox/val/ILSVRC2012_val_00000001.xml").write_text(BOXES)
    make_class_folders(place / "caltech")
    for part in ("val", "test"):
        for name in CONDITIONS:
            (place / "xrays" / part / name).mkdir(parents=True)
            shutil.copy(place / "cat.jpg", place / "xrays" / part / name)
    (place / "docs").mkdir()
    shutil.copy(ROOT / "docs/starry-night.jpg", place / "docs")


def make_class_folders(folder):
    """Twenty crops of each photo."""
    rng = np.random.default_rng(0)
    for photo in EXAMPLES.glob("*.*g"):
        (folder / photo.stem).mkdir(parents=True)
        image = Image.open(photo).convert("RGB")
        for number in range(20):
            left, top = rng.integers(0, image.width - 240), rng.integers(0, image.height - 240)
            image.crop((left, top, left + 240, top + 240)).save(folder / photo.stem / f"{number:02}.jpg")


def make_networks(place):
    for name, architecture in NETWORKS.items():
        network = random_network(architecture, labels=imagenet(), classes=1000, input_size=224, width=1 / 32)
        (place / name).parent.mkdir(exist_ok=True)
        network.write(place / "any.onnx")
        (place / "any.onnx").rename(place / name)
    tags = random_network(head="average, classes sigmoid", classes=3, labels=Labels(("cat", "dog", "grass")))
    tags.write(place / "tags.onnx")
    (place / "run").mkdir()
    random_network(classes=2, labels=Labels(CONDITIONS)).write(place / "run/model.onnx")


def make_crops(place):
    """Photos in folders, of which many are like each other."""
    shutil.rmtree(place / "photos")
    (place / "caltech").rename(place / "photos")


def make_own_networks(place):
    """Fine-tuned networks as people save them, for docs/your-own-network.md."""
    make_crops(place)
    module, names = fine_tune(place / "photos")
    save_torch(module, names, place / "pets.pth")
    save_keras(module, place / "pets.keras")
    torch.save(module.features.state_dict(), place / "backbone.pth")
    (place / "names.txt").write_text("cat\nespresso\nrocket\n")


def make_exchanged(place):
    """A network with the paper's head and one with quantized activations, for docs/files.md."""
    random_network("vgg16", classes=37, input_size=224, width=1 / 32).write(place / "pets.onnx")
    arguments = ["quantize", "vgg16.onnx", "-o", "vgg16-12-int8.onnx", "--method", "qoperator", "--calibrate", "photos"]
    subprocess.run([sys.executable, "-m", "vgg", *arguments], cwd=place, check=True, capture_output=True)


def same(output, expected):
    """Whether a text is the expected one, up to the last digit of a number, white space, and any text for `…`."""
    number = r"\d+(?:\.\d+)?"
    kinds = {"…": ".*", " ": r"\s+", "0": f"({number})"}
    parts = re.findall(rf"{number}|…|\s+|[^\d…\s]+", expected.strip())
    pattern = "".join(kinds.get(re.sub(r"\d.*", "0", re.sub(r"\s+", " ", part)), re.escape(part)) for part in parts)
    found = re.fullmatch(pattern, output.strip())
    return bool(found) and all(
        abs(float(one) - float(other)) <= (0.011 if "." in other else 1)
        for one, other in zip(found.groups(), re.findall(number, expected), strict=True)
    )
