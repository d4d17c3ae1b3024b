"""Files that are named by mistake as a model or an image: each is recognised, with what to do."""

import gzip
import io
import pickle
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from conftest import ROOT, random_network
from vgg import ImageError, ModelError, Network
from vgg.images import open_image

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 553437328\n"
DENIED = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'


def varint(number):
    return bytes([number]) if number < 128 else bytes([number % 128 | 128]) + varint(number // 128)


def message(field, content):
    return bytes([field << 3 | 2]) + varint(len(content)) + content


# SavedModel: schema version, then meta_graphs; GraphDef: nodes with name and op; Core ML: specification version, description.
SAVED_MODEL = b"\x08\x01" + message(2, message(1, message(4, b"serve") * 40))
GRAPH = message(1, message(1, b"input") + message(2, b"Placeholder") + b"\x22\x00") * 3
CORE_ML = b"\x08\x04" + message(2, message(1, message(1, b"image")))


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


def tarred(*names, mode="w:gz", size=0):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = size
            archive.addfile(entry, io.BytesIO(bytes(size)))
    return file.getvalue()


def arrays():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


MODELS = {
    "pointer.onnx": (LFS, "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"),
    "pointer.pth": ("\ufeff" + LFS.replace("\n", "\r\n"), "is a Git LFS pointer"),
    "page.pth": ("<!doctype html><html>not found</html>", "is a web page, not the file itself; download the file again"),
    "drive.h5": ("\n<HTML><head><TITLE>Google Drive - Virus scan warning</TITLE>", r"is a web page \('Google Drive - Vir"),
    "hub.safetensors": ('{"message": "Not Found", "documentation_url": ""}', r"is a server's error \('Not Found'\), not"),
    "api.pt": ('{"error": {"code": 401, "message": "Unauthorized"}}', r"is a server's error \('Unauthorized'\)"),
    "s3.caffemodel": (DENIED, r"is a server's error \('AccessDenied'\), not the file itself; download the file again"),
    "empty.onnx": (b"", "is empty; download or write it again"),
    "zeros.pth": (bytes(10_000), "begins with zeros, as an interrupted download"),
    "vgg.pth.part": (b"PK\3\4", "is named as an incomplete download; complete it, or rename the file"),
    "vgg.onnx.crdownload": (b"\x08\x07", "is named as an incomplete download"),
    "a.zip": (zipped("vgg/readme.txt", "vgg/vgg16.pth"), "is a zip archive; extract the model: vgg/vgg16.pth$"),
    "b.zip": (zipped("readme.txt"), "is a zip archive without a model file"),
    "a.tar.gz": (tarred("vgg16/vgg16.onnx", "vgg16/test_data_set_0/input_0.pb"), "is a gzip archive; extract the model: vgg"),
    "a.tar": (tarred("n.h5", mode="w"), "is a tar archive; extract the model: n.h5"),
    "old.pth": (tarred("sys_info", "pickle", "tensors", "storages", mode="w"), "is a torch file of an old form; load and"),
    "a.tar.xz": (tarred("vgg/n.onnx", mode="w:xz"), "is an xz archive; extract the model: vgg/n.onnx"),
    "a.tar.bz2": (tarred("vgg/n.onnx", mode="w:bz2"), "is a bzip2 archive; extract the model: vgg/n.onnx"),
    "long.tar.gz": (tarred("n.pth", size=2**21), "is a gzip archive; extract the model: n.pth"),
    "n.onnx.gz": (gzip.compress(b"\x08\x07"), "is a gzip archive; extract the model"),
    "a.7z": (b"7z\xbc\xaf'\x1c\0\4", "is a 7z archive; extract the model"),
    "a.rar": (b"Rar!\x1a\7\1\0", "is a RAR archive; extract the model"),
    "a.npz": (arrays(), r"is a file of NumPy arrays \(.npz\); save them as safetensors"),
    "a.docx": (zipped("[Content_Types].xml", "word/document.xml"), "is an Office document"),
    "clf.pkl": (pickle.dumps(LogisticRegression()), "is a pickle of scikit-learn, not a VGG network"),
    "a.tflite": (b"\x1c\0\0\0TFL3\x14\0\x20\0", "is a TensorFlow Lite model; convert it to ONNX with its own framework"),
    "frozen.pb": (GRAPH, "is a TensorFlow graph; convert it to ONNX"),
    "saved_model.pb": (SAVED_MODEL, "is a TensorFlow SavedModel; convert it to ONNX"),
    "a.mlmodel": (CORE_ML, "is a Core ML model; convert it to ONNX"),
    "a.engine": (b"ftrt\0\0\0\0", "is a TensorRT engine, which has no weights to read"),
    "a.plan": (b"\xc8\0\0\0\x01\x02\xff\xfe", "is a TensorRT engine"),
    "ir.xml": ('<?xml version="1.0"?>\n<net name="vgg16" version="11">', "is an OpenVINO model; convert it to ONNX"),
    "ir.bin": (np.random.default_rng(0).bytes(5000), "is raw numbers, such as the weights of an OpenVINO model"),
    "model.ckpt-0.index": (b"\xf7\xfa\xfe", "is a part of a TensorFlow checkpoint"),
    "model.ckpt-0.data-00000-of-00001": (b"\xf7\xfa\xfe", "is a part of a TensorFlow checkpoint"),
    "a.mat": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "is a MATLAB file"),
    "notes.txt": ("VGG-16, trained in May\n", "is a text file; name a model file"),
    "deploy.prototxt": ('name: "VGG"\nlayer {\n  name: "conv1_1"', "is Caffe's description of a network, without weights"),
    "config.json": ('{"architectures": ["VGG"], "id2label": {"0": "a"}}', "is the configuration of a model, without weights"),
    "model.json": ('{"class_name": "Functional", "config": {}}', "is a Keras architecture, without weights"),
    "vgg-symbol.json": ('{\n  "nodes": [{"op": "null", "name": "data"}]', "is the symbol of an MXNet model, without weights"),
    "m.safetensors.index.json": ('{"metadata": {}, "weight_map": {}}', "is an index of weights in several files"),
    "a.lnk": (b"L\0\0\0\1\x14\2\0\0\0\0\0", "is a Windows shortcut; name the file that it points to"),
    "a.url": ("[InternetShortcut]\r\nURL=about:blank", "is an Internet shortcut"),
    "a.pdf": (b"%PDF-1.7\n\xe2\xe3", "is a PDF document; name a model file"),
    "a.mp4": (b"\0\0\0\x20ftypisom\0\0\2\0", "is a video"),
    "a.npy": (b"\x93NUMPY\1\0v\0", "is a NumPy array"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_file_that_is_no_model_is_named_with_what_to_do(tmp_path, name):
    content, expected = MODELS[name]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ModelError, match=expected) as error:
        Network.read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_an_image_named_as_a_model_is_one(tmp_path):
    for suffix in ("jpg", "png", "gif", "webp", "tiff"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}")
        with pytest.raises(ModelError, match=r"is a \w+ image; images are arguments, the model is set with --model"):
            Network.read(tmp_path / f"a.{suffix}")


def test_a_folder_named_as_a_model_shows_the_model_in_it(tmp_path):
    cases = (("saved_model.pb", "TensorFlow SavedModel"), ("1/model.onnx", "name the model file in it: 1/model.onnx$"),
             ("model.safetensors", "name the model file in it: model.s"), ("a.txt", "without a model file"))  # fmt: skip
    for name, expected in cases:
        file = tmp_path / "snapshot" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
        with pytest.raises(ModelError, match=f"snapshot: is a folder.*{expected}"):
            Network.read(tmp_path / "snapshot")
        shutil.rmtree(tmp_path / "snapshot")


IMAGES = {
    "a.jpg": (LFS, "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"),
    "b.jpg": ("<html><title>404 Not Found</title>", r"is a web page \('404 Not Found'\), not the file itself"),
    "c.png": (DENIED, r"is a server's error \('AccessDenied'\)"),
    "d.png": (b"%PDF-1.7\n", "is a PDF document; export its pages as JPEG or PNG"),
    "e.jpg": (b"\0\0\0\x20ftypisom\0\0\2\0", "is a video; extract frames as JPEG or PNG"),
    "g.svg": ('<svg xmlns="http://www.w3.org/2000/svg">', "is an SVG drawing; convert it to JPEG or PNG"),
    "h.jpg": (zipped("a.jpg"), "is a zip archive; extract the images"),
    "i.png": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes; models are set with --model"),
    "j.jpg": (b"\xff\xd8\xff garbage", "not an image, or an unsupported format"),
    "k.jpg": (bytes(100), "begins with zeros, as an interrupted download"),
    "l.jpg": ("no image", "not an image, or an unsupported format"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_file_that_is_no_image_is_named_with_what_to_do(tmp_path, name):
    content, expected = IMAGES[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        with pytest.raises(ImageError, match=expected):
            open_image(source, name)


def test_a_model_named_as_an_image_is_one(tmp_path):
    random_network().write(tmp_path / "n.onnx")
    torch.save({"a": torch.ones(3)}, tmp_path / "n.pth")
    for name, expected in (("n.onnx", "is a model; "), ("n.pth", "is a torch file; ")):
        with pytest.raises(ImageError, match=f"{name}: {expected}models are set with --model"):
            open_image(tmp_path / name)
    assert open_image(ROOT / "examples" / "chelsea.png").mode == "RGB"


@pytest.mark.parametrize("name", ["n.onnx", "n.safetensors", "n.h5", "n.params", "init_net.pb", "n.pth"])
def test_what_is_unknown_is_only_unsupported(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xfe" + np.random.default_rng(0).bytes(5000))
    with pytest.raises(ModelError, match=f"{name}: unsupported format; vgg reads ONNX"):
        Network.read(tmp_path / name)


def test_16_bits_that_overflow_are_refused(tmp_path):
    network = random_network()
    network.parameters["conv2_1.bias"][0] = 1e5
    with pytest.raises(ModelError, match=r"n.onnx: conv2_1.bias has numbers that are too large for float16; write 32 bits"):
        network.write(tmp_path / "n.onnx", bits=16)
    assert not list(tmp_path.iterdir())
