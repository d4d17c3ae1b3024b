"""Sample data: inputs and expected outputs with a model, in the layout of the ONNX Model Zoo.

A tarball holds one folder with the model and, for each set, `test_data_set_N/input_0.pb` and `output_0.pb`, which are ONNX
`TensorProto` messages. The oldest files of the zoo have `test_data_N.npz` instead, with the arrays `inputs` and `outputs`.
"""

import gzip
import io
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import engines
from ..arrays import Array
from ..errors import Error, ModelError, one_line
from ..extras import require
from ..files import replacing
from ..formats import companions, detect, load, network_of, onnx_whole, write
from ..formats.onnx_messages import tensor
from ..heads import Output
from ..network import Network
from ..predictions import scores
from ..sources import find
from ..zoo import locate
from .reading import Set, opened

RTOL, ATOL = 1e-3, 1e-7  # of the zoo's own tests
# A sum of thousands of float32 products that cancels to nearly zero is no more exact than its terms, in any engine. So this
# share of the largest value of a set is allowed in addition.
ROUNDING = 2e-5


@dataclass(frozen=True)
class Checked:
    """The differences between a model's outputs and the expected outputs of one set."""

    set: str  # name of the set
    error: float  # largest difference
    share: float  # largest ratio of a difference to the allowed difference
    passed: bool  # whether share is at most 1


def make(model: str | Path, to: str | Path, images: Any = None, *, sets: int = 3, seed: int = 0) -> int:
    """Write a model with sample data as a tarball. The same call writes the same bytes.

    ONNX Runtime computes the outputs. An ONNX model is stored as it is, external data inside it; another one is converted to
    ONNX.

    Args:
        model: a file or name that `vgg.load` accepts.
        to: the output file, `.tar.gz` or `.tgz`; an existing file is replaced.
        images: images that `Classifier.classify` accepts, one for each set. By default, random pixels.
        sets: number of sets of random pixels.
        seed: random seed.

    Returns:
        The number of sets.

    Raises:
        ImageError: an image can't be read.
        ModelError: the model can't be read or run.
        Error: the tarball can't be written, or ONNX Runtime is missing.
    """
    require("sample data", "onnxruntime", "onnxruntime")
    to = Path(to)
    if not to.name.endswith((".tar.gz", ".tgz")):
        raise Error(f"{to}: unsupported suffix; sample data is written as .tar.gz")
    path = locate(model)
    network = network_of(load(path))
    network.check_finite()
    preprocessing = network.preprocessing
    if images is None:
        random = np.random.RandomState(seed)  # NumPy guarantees that its numbers never change
        shape = (preprocessing.crop, preprocessing.crop, 3)
        inputs = [preprocessing.normalise(random.randint(0, 256, shape, np.uint8)) for _ in range(sets)]
    else:
        inputs = [preprocessing(image, name) for name, image in find(images)]
    with tempfile.TemporaryDirectory() as folder, replacing(to) as file:
        if detect(path) != "onnx":
            path = Path(folder) / f"{path.stem}.onnx"
            write(network, path)
        elif companions(path):
            path = onnx_whole.write(path, Path(folder) / path.name)
        run = _open_graph(path)
        # Level 1 is the fastest; weights hardly compress at any level.
        with (
            gzip.GzipFile("", "wb", 1, file, mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
        ):
            for index, values in enumerate(inputs):
                for name, content in run(values[None]).items():
                    _add(tar, f"{path.stem}/test_data_set_{index}/{name}.pb", len(content), io.BytesIO(content))
            with open(path, "rb") as source:
                _add(tar, f"{path.stem}/{path.name}", path.stat().st_size, source)
    return len(inputs)


def check(
    place: str | Path, model: str | Path | None = None, engine: str = "auto", *, threads: int | None = None, device: str = "cpu"
) -> list[Checked]:
    """Run a model on sample data and compare its outputs with the expected ones.

    An output is compared with the layer output of the same name (`fc7`), otherwise with the logits, or with the scores if it
    holds such. The allowed difference is 1e-7 + 1e-3 of the value + 2e-5 of the largest value of the set.

    Args:
        place: a tarball, a folder with the same layout, or an `.npz` file in the folder of its model.
        model: a file or name that `vgg.load` accepts. By default, the model in the sample data.
        engine: see `vgg.engines.open`.
        threads: see `vgg.engines.open`.
        device: see `vgg.engines.open`.

    Raises:
        Error: there is no valid sample data, or it does not fit the model.
    """
    place = Path(place)
    with opened(place, with_model=model is None) as (sets, path):
        if not sets:
            raise Error(f"{place}: no sample data found, neither test_data_set_0/input_0.pb nor test_data_0.npz")
        if model is not None:
            loaded = load(locate(model))
        elif path:
            try:
                loaded = load(path)
            except ModelError as error:
                raise ModelError(str(error).replace(str(path), f"{place}: {path.name}")) from None
        else:
            raise Error(f"{place}: no .onnx file in the sample data; name a model to check")
        running = engines.open(loaded, engine, threads=threads, device=device)
        return [_compare(network_of(loaded), running, one, f"{place}: {one.name}") for one in sets]


def _compare(network: Network, engine: engines.Engine, one: Set, name: str) -> Checked:
    if list(one.inputs) != [0] or not one.outputs:
        raise Error(f"{name}: {len(one.inputs)} inputs and {len(one.outputs)} outputs; expected 1 input and at least 1 output")
    known, output = network.architecture.values, network.architecture.output
    layers = [layer if layer in known else known[-1] for layer, _ in one.outputs.values()]
    try:
        values = engine.run(one.inputs[0], layers)
    except ModelError as error:
        raise ModelError(f"{name} doesn't fit the model: {error}") from None
    errors, shares = [], []
    for layer, (title, expected) in zip(layers, one.outputs.values(), strict=True):
        value = values[layer]
        if layer == "logits" and _are_scores(expected, title, output):
            value = scores(value, output)
            # A file with a sigmoid of one logit gives the score of the second of two classes.
            value = value[..., 1:] if value.size == 2 * expected.size else value
        if value.size != expected.size or not value.size:
            raise Error(f"{name} doesn't fit the model: expected output {list(expected.shape)}, got {list(value.shape)}")
        with np.errstate(all="ignore"):
            size = np.abs(expected)
            difference = np.abs(value.reshape(expected.shape).astype(np.float64) - expected)
            errors.append(difference.max())
            shares.append((difference / (ATOL + RTOL * size + ROUNDING * size.max())).max())
    share = float(np.max(shares))
    return Checked(one.name, float(np.max(errors)), share, share <= 1)  # False for NaN


def _are_scores(values: Array, title: str, output: Output | None) -> bool:
    """Whether the values of an output are scores. Logits may be 0..1 as well, so those of sigmoids have another name."""
    if output == "softmax":
        return bool((values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-3))
    return bool(title != "logits" and (values >= 0).all() and (values <= 1).all())


def _open_graph(path: Path) -> Callable[[Array], dict[str, bytes]]:
    """A function that runs an ONNX file on a batch and returns input and outputs as TensorProto messages by file name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        hint = "`vgg convert` updates old files"
        raise ModelError(f"{path}: ONNX Runtime can't run it ({one_line(error)}); {hint}") from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [port.type for port in inputs] != ["tensor(float)"]:
        raise ModelError(f"{path}: unsupported inputs; sample data requires a model with one float32 input")

    def run(batch: Array) -> dict[str, bytes]:
        try:
            values = session.run(None, {inputs[0].name: batch})
        except Exception as error:
            raise ModelError(f"{path}: ONNX Runtime can't run it ({one_line(error)})") from None
        tensors = {"input_0": tensor(inputs[0].name, batch)}
        for index, (port, value) in enumerate(zip(outputs, values, strict=True)):
            tensors[f"output_{index}"] = tensor(port.name, value)
        return tensors

    return run


def _add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> None:
    member = tarfile.TarInfo(name)  # owner, time and mode keep their constant defaults
    member.size = size
    tar.addfile(member, content)
