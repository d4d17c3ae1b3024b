"""Kinds of files that people name by mistake as a model or an image, recognised by their content, with what to do.

The first bytes decide, and the name only where a kind has no mark of its own.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from .errors import one_line

Use = Literal["model", "image"]
HEAD = 4096  # bytes that are examined
MODELS = (".onnx", ".pth", ".pt", ".safetensors", ".h5", ".hdf5", ".keras", ".params", ".caffemodel")
PARTIAL = (".part", ".partial", ".crdownload", ".download", ".incomplete", ".opdownload", ".aria2", ".filepart", ".!qb")
MANY = 1000  # entries of an archive or folder that are examined
START = 2**20  # bytes of a tar archive that are examined, since hostile ones expand to any size
COMPRESSED = {"a gzip archive": "gzip", "a bzip2 archive": "bz2", "an xz archive": "lzma"}  # with Python's modules
LISTED = 3  # names in a message


class Mark(NamedTuple):
    """Bytes that show a kind of file."""

    place: int
    bytes: bytes
    title: str
    group: str  # a key of ADVICE


# What to do with a file of a group, named as a model and as an image.
ADVICE = {
    "model": ("convert it to ONNX with its own framework", "models are set with --model"),
    "weights": ("", "models are set with --model"),
    "image": ("images are arguments, the model is set with --model", ""),
    "drawing": ("images are arguments, the model is set with --model", "convert it to JPEG or PNG"),
    "video": ("name a model file", "extract frames as JPEG or PNG"),
    "document": ("name a model file", "export its pages as JPEG or PNG"),
    "archive": ("extract the model", "extract the images"),
    "data": ("name a model file", "name an image"),
    "shortcut": ("name the file that it points to", "name the file that it points to"),
    "answer": ("download the file again", "download the file again"),
}
MARKS = (
    Mark(0, b"\xff\xd8\xff", "a JPEG image", "image"),
    Mark(0, b"\x89PNG\r\n", "a PNG image", "image"),
    Mark(0, b"GIF8", "a GIF image", "image"),
    Mark(0, b"II*\0", "a TIFF image", "image"),
    Mark(0, b"MM\0*", "a TIFF image", "image"),
    Mark(8, b"WEBP", "a WebP image", "image"),
    Mark(4, b"ftyphei", "a HEIC image", "image"),
    Mark(4, b"ftypmif1", "a HEIC image", "image"),
    Mark(4, b"ftypavif", "an AVIF image", "image"),
    Mark(0, b"8BPS", "a Photoshop image", "drawing"),
    Mark(0, b"\0\0\0\x0cJXL ", "a JPEG XL image", "drawing"),
    Mark(0, b"\0\0\1\0", "an icon", "drawing"),
    Mark(4, b"ftyp", "a video", "video"),
    Mark(8, b"AVI ", "a video", "video"),
    Mark(0, b"\x1aE\xdf\xa3", "a video", "video"),
    Mark(0, b"%PDF", "a PDF document", "document"),
    Mark(0, b"\xd0\xcf\x11\xe0", "an Office document", "document"),
    Mark(0, b"\x1f\x8b", "a gzip archive", "archive"),
    Mark(0, b"BZh", "a bzip2 archive", "archive"),
    Mark(0, b"\xfd7zXZ", "an xz archive", "archive"),
    Mark(0, b"(\xb5/\xfd", "a Zstandard archive", "archive"),
    Mark(0, b"7z\xbc\xaf'\x1c", "a 7z archive", "archive"),
    Mark(0, b"Rar!", "a RAR archive", "archive"),
    Mark(257, b"ustar", "a tar archive", "archive"),
    Mark(0, b"PK\3\4", "a zip archive", "archive"),
    Mark(0, b"\x89HDF", "an HDF5 file, as Keras writes", "weights"),
    Mark(4, b"TFL3", "a TensorFlow Lite model", "model"),
    Mark(0, b"ptrt", "a TensorRT engine, which has no weights to read", "model"),
    Mark(0, b"ftrt", "a TensorRT engine, which has no weights to read", "model"),
    Mark(4, b"ET1", "an ExecuTorch program", "model"),
    Mark(0, b"GGUF", "a GGUF model", "model"),
    Mark(0, b"7767517", "an ncnn model", "model"),
    Mark(0, b"MATLAB 5.0", "a MATLAB file", "model"),
    Mark(0, b"\x93NUMPY", "a NumPy array", "data"),
    Mark(0, b"PAR1", "a Parquet file", "data"),
    Mark(0, b"SQLite format 3", "a SQLite database", "data"),
    Mark(0, b"\x7fELF", "a program", "data"),
    Mark(0, b"MZ", "a program", "data"),
    Mark(0, b"L\0\0\0\1\x14\2\0", "a Windows shortcut", "shortcut"),
    Mark(0, b"[InternetShortcut]", "an Internet shortcut", "shortcut"),
    Mark(0, b"book\0\0\0\0mark", "a macOS alias", "shortcut"),
    Mark(0, b"bplist", "a property list", "data"),
)
# Kinds without a mark, by a part of their name: the title and the group.
NAMES = (
    (re.compile(r"\.(engine|plan|trt)$"), "a TensorRT engine, which has no weights to read", "model"),
    (re.compile(r"\.(index|meta|data-\d+-of-\d+)$|^checkpoint$"), "a part of a TensorFlow checkpoint", "model"),
    (re.compile(r"\.bin$"), "raw numbers, such as the weights of an OpenVINO model", "model"),
    (re.compile(r"\.mlmodel$"), "a Core ML model", "model"),
    (re.compile(r"\.(onnx|safetensors|params|caffemodel)$"), "a model", "weights"),
)


def describe(path: str | Path, head: bytes, use: Use) -> str | None:
    """What a file is that can't be read as a model or image, and what to do: `is a PDF document; …`; None if it is unknown.

    Args:
        path: the file, whose entries are listed if it is an archive; it need not exist.
        head: its first bytes, HEAD of them or all.
        use: what it was named as.
    """
    path = Path(path)
    if what := stand_in(head):
        return what
    text = head.decode("utf-8-sig", "replace").lstrip()
    found = _markup(text) or _json(text, path) or _pickle(head) or _protobuf(head, path)
    found = found or next(
        ((one.title, one.group) for one in MARKS if head.startswith(one.bytes, one.place)),
        next(((title, group) for name, title, group in NAMES if name.search(path.name.lower())), None),
    )
    if not found and re.search(r"^[ \t]*(layers?|input|input_param)[ \t]*[:{]", text, re.MULTILINE):
        found = "Caffe's description of a network, without weights; name the .caffemodel", ""
    if not found and use == "model" and text and all(one.isprintable() or one.isspace() for one in text.rstrip("\ufffd")):
        found = "a text file", "data"
    if not found:
        return None
    title, group = found
    if use == group == "image" or (use == "model" and group == "weights"):  # a damaged one
        return None
    advice = ADVICE[group][use == "image"] if group else ""
    if group == "archive" and use == "model":
        title, advice = _archive(path, title)
    return f"is {title}{'; ' * bool(advice)}{advice}"


def stand_in(head: bytes) -> str | None:
    """What was saved in place of a file, which has these first bytes, and what to do; None if it is the file itself."""
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
    if head and not any(head):
        return "begins with zeros, as an interrupted download; download the file again"
    title, group = _markup(text) or ("", "")
    return f"is {title}; {ADVICE[group][0]}" if group == "answer" else None


def describe_folder(path: Path) -> str:
    """What a folder is that was named as a model, and what to do."""
    names = list(_files(path))
    if any(name.endswith(("saved_model.pb", "saved_model.pbtxt")) for name in names):
        return "is a folder with a TensorFlow SavedModel; convert it to ONNX with its own framework"
    if path.suffix == ".mlpackage":
        return "is a Core ML package; convert it to ONNX with its own framework"
    models = [name for name in names if name.lower().endswith((*MODELS, "model.bin"))]
    if models:
        return f"is a folder; name the model file in it: {_some(models)}"
    return "is a folder without a model file"


def _files(folder: Path) -> Iterator[str]:
    """Names of files in a folder and its folders, relative to it."""
    walked = ((place, name) for place, _, names in os.walk(folder) for name in sorted(names))
    return (os.path.relpath(os.path.join(*one), folder) for one in islice(walked, MANY))


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + ", …" * (len(names) > LISTED)


def _markup(text: str) -> tuple[str, str] | None:
    """HTML and XML: pages, errors of object stores, and models."""
    start = text[:HEAD].lower()
    if re.match(r"<(!doctype html|html|head|body|script)\b", start) or (start.startswith("<!--") and "<html" in start):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
        named = f" ({one_line(title[1])[:80]!r})" if title and title[1].strip() else ""
        return f"a web page{named}, not the file itself", "answer"
    if not start.startswith("<"):
        return None
    if code := re.search(r"<code>(.*?)</code>", text, re.DOTALL | re.IGNORECASE):
        return f"a server's error ({one_line(code[1])[:80]!r}), not the file itself", "answer"
    if re.search(r"<net\s", start):
        return "an OpenVINO model", "model"
    return ("an SVG drawing", "drawing") if "<svg" in start else ("an XML file", "data") if start.startswith("<?xml") else None


def _json(text: str, path: Path) -> tuple[str, str] | None:
    """JSON: errors of servers, and files beside a model."""
    if not re.match(r'\{|\[\s*["\[{\]\d-]', text):
        return None
    if re.match(r'\{\s*"(class_name|module|keras_version)"', text):
        return "a Keras architecture, without weights; name the .h5 or .keras file", ""
    if '"nodes"' in text and '"op"' in text:
        return "the symbol of an MXNet model, without weights; name the .params file", ""
    if '"weight_map"' in text:
        return "an index of weights in several files; save them as one file", ""
    if re.search(r'"(id2label|architectures|model_type|num_classes|architecture)"\s*:', text):
        return "the configuration of a model, without weights; name the file with the weights", ""
    if path.suffix != ".ipynb" and (error := _error(text)):
        return f"a server's error ({error!r}), not the file itself", "answer"
    return ("a notebook", "data") if path.suffix == ".ipynb" else ("a JSON file", "data")


def _error(text: str) -> str:
    """The message of a server's error; empty if there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    for key in ("message", "error", "detail", "error_description", "errors"):
        if isinstance(value, dict) and value.get(key):
            inner = value[key]
            inner = inner.get("message", inner) if isinstance(inner, dict) else inner
            return one_line(inner)[:80]
    return ""


def _pickle(head: bytes) -> tuple[str, str] | None:
    if head.startswith(b"PK\3\4") and b"/data.pkl" in head[:512]:
        return "a torch file", "weights"
    if head[:1] != b"\x80" or head[1:2] not in (b"\2", b"\3", b"\4", b"\5"):
        return None
    return ("a pickle of scikit-learn, not a VGG network", "data") if is_of_sklearn(head) else ("a pickle", "data")


def is_of_sklearn(head: bytes) -> bool:
    """Whether a pickle begins with an object of scikit-learn."""
    return b"sklearn" in head[:64]


def _protobuf(head: bytes, path: Path) -> tuple[str, str] | None:
    """Models of TensorFlow and Core ML that begin as ONNX does, except that their second field is a message, not a name."""
    if not is_message(head):
        graph = path.suffix == ".pb" and re.search(rb"\x12.(Placeholder|Const|VarHandleOp|VariableV2)", head, re.DOTALL)
        return ("a TensorFlow graph", "model") if graph else None
    return ("a TensorFlow SavedModel", "model") if path.suffix == ".pb" else ("a Core ML model", "model")


def is_message(head: bytes) -> bool:
    """Whether a file begins with a number and a message, as Core ML's and TensorFlow's models do; ONNX has text there."""
    found = re.match(rb"\x08[\x00-\x7f]\x12([\x80-\xff]*[\x00-\x7f])\n", head, re.DOTALL)
    return found is not None and found[1] != b"\0"


def is_torch(path: Path) -> bool:
    """Whether a zip file has torch's entries; a damaged one may have."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.search(r"(^|/)(data\.pkl|model\.json|constants\.pkl)$", name) for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return True


def _archive(path: Path, title: str) -> tuple[str, str]:
    """An archive by its entries, and what to extract."""
    import tarfile
    from lzma import LZMAError

    names: list[str] = []
    try:
        if title == "a zip archive":
            with zipfile.ZipFile(path) as zipped:
                names += zipped.namelist()[:MANY]
        else:
            start = io.BytesIO()
            with import_module(COMPRESSED.get(title, "io")).open(path, "rb") as file:
                start.write(file.read(START))
            start.seek(0)
            with tarfile.open(fileobj=start, mode="r:") as tar:
                names += (entry.name for entry in tar)
    except (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, LZMAError):
        pass  # damaged, another form, or longer than the part that is read
    if not names:
        return title, "extract the model"
    if names and all(name.endswith(".npy") for name in names):
        return "a file of NumPy arrays (.npz)", "save them as safetensors"
    if {"storages", "tensors", "pickle"} <= {name.rpartition("/")[2] for name in names}:
        return "a torch file of an old form", "load and save it again with torch"
    if any(name.startswith(("word/", "xl/", "ppt/")) for name in names):
        return "an Office document", "name a model file"
    models = [name for name in names if name.lower().endswith(MODELS)]
    if models:
        return title, f"extract the model: {_some(models)}"
    return f"{title} without a model file", "name a model file"
