"""Sample data: inputs and the outputs that they must give, beside a model, in the layout of the ONNX Model Zoo.

A tarball holds one folder with the model and, for each set, `test_data_set_N/input_0.pb` and `output_0.pb`, each a
TensorProto of ONNX. The zoo's oldest have `test_data_N.npz` instead, with the arrays `inputs` and `outputs`.
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
from ..files import replacing
from ..formats import recognise
from ..network import Network
from ..predictions import softmax
from ..sources import find
from ..zoo import locate
from .reading import Set, opened

RTOL, ATOL = 1e-3, 1e-7  # the zoo's own tests
# A sum of thousands of float32 products that cancels to nearly nothing is no more exact than its parts, in any engine: so
# this share of a set's largest value is allowed besides.
ROUNDING = 2e-5


@dataclass(frozen=True)
class Checked:
    """How near a model came to the outputs of one set."""

    set: str  # its name
    error: float  # the largest difference
    share: float  # the largest of difference / allowed difference
    passed: bool


def make(model: str | Path, to: str | Path, images: Any = None, *, sets: int = 3, seed: int = 0) -> int:
    """Write a model with sample data as the zoo's tarball; the same call writes the same bytes.

    ONNX Runtime gives the outputs. An ONNX file goes in as it is, another is written as ONNX first.

    Args:
        model: a file or a name, as `vgg.load` takes it.
        to: where to, `.tar.gz`; a file that is there is replaced.
        images: pictures as `Classifier.classify` takes them; each becomes a set. Random pixels when not given.
        sets: how many sets of random pixels.
        seed: of the random pixels.

    Returns:
        The number of sets.

    Raises:
        ImageError: a picture can't be read; ModelError: the model can't; Error: the tarball can't be written.
    """
    to = Path(to)
    if not to.name.endswith((".tar.gz", ".tgz")):
        raise Error(f"{to}: sample data is written as .tar.gz")
    path = locate(model)
    network = Network.read(path)
    recipe = network.preprocessing
    if images is None:
        random = np.random.RandomState(seed)  # whose numbers will never change, as NumPy promises of no other
        pictures = [random.randint(0, 256, (recipe.crop, recipe.crop, 3), np.uint8) for _ in range(sets)]
        batches = [recipe.normalise(pixels)[None] for pixels in pictures]
    else:
        batches = [recipe(picture, name)[None] for name, picture in find(images)]
    with tempfile.TemporaryDirectory() as folder, replacing(to) as file:
        if recognise(path) != "onnx":
            path = Path(folder) / f"{path.stem}.onnx"
            network.write(path)
        run = _graph(path)
        # Weights hardly shrink, however hard one tries: hence the fastest level.
        with (
            gzip.GzipFile("", "wb", 1, file, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w|", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
        ):
            for index, batch in enumerate(batches):
                for name, content in run(batch).items():
                    _add(tar, f"{path.stem}/test_data_set_{index}/{name}.pb", len(content), io.BytesIO(content))
            with open(path, "rb") as source:
                _add(tar, f"{path.stem}/{path.name}", path.stat().st_size, source)
    return len(batches)


def check(
    place: str | Path, model: str | Path | None = None, engine: str = "auto", *, threads: int | None = None, device: str = "cpu"
) -> list[Checked]:
    """Run a model on its sample data.

    An output is compared with the value of that name (`fc7`), else with the logits, or with their softmax where it holds
    probabilities. A difference of up to 1e-7 + 1e-3 of the value + 2e-5 of the largest value is allowed.

    Args:
        place: a tarball, a folder of the same layout, or an `.npz` file beside its model.
        model: a file or a name, as `vgg.load` takes it, instead of the one that comes with the data.
        engine: see `vgg.engines.open`, and so for threads and device.

    Raises:
        Error: the place is not sample data, holds what it shouldn't, or doesn't fit the model.
    """
    place = Path(place)
    with opened(place, wanted=model is None) as (sets, found):
        if not sets:
            raise Error(f"{place}: has no sample data, neither test_data_set_0/input_0.pb nor test_data_0.npz")
        if model is not None:
            network = Network.read(locate(model))
        elif found:
            network = _network(found, place)
        else:
            raise Error(f"{place}: has no .onnx file with the sample data; name a model to check")
        running = engines.open(network, engine, threads=threads, device=device)
        return [_checked(network, running, one, place) for one in sets]


def _network(path: Path, place: Path) -> Network:
    try:
        return Network.read(path)
    except ModelError as error:
        raise ModelError(str(error).replace(str(path), f"{place}: {path.name}")) from None


def _checked(network: Network, engine: engines.Engine, one: Set, place: Path) -> Checked:
    if list(one.inputs) != [0] or not one.outputs:
        raise Error(f"{place}: {one.name} has {len(one.inputs)} inputs and {len(one.outputs)} outputs; a VGG needs 1 and 1")
    names = [name if name in network.architecture.values else "logits" for name, _ in one.outputs.values()]
    try:
        values = engine.run(one.inputs[0], names)
    except ModelError as error:
        raise ModelError(f"{place}: {one.name} doesn't fit the model: {error}") from None
    errors, shares = [], []
    for name, (_, expected) in zip(names, one.outputs.values(), strict=True):
        value = softmax(values[name]) if name == "logits" and _probabilities(expected) else values[name]
        if value.size != expected.size or not value.size:
            shapes = f"{list(expected.shape)}, and the model gives {list(value.shape)}"
            raise Error(f"{place}: {one.name} doesn't fit the model: an output is {shapes}")
        with np.errstate(all="ignore"):
            size = np.abs(expected)
            difference = np.abs(value.reshape(expected.shape).astype(np.float64) - expected)
            errors.append(difference.max())
            shares.append((difference / (ATOL + RTOL * size + ROUNDING * size.max())).max())
    share = float(np.max(shares))
    return Checked(one.name, float(np.max(errors)), share, share <= 1)  # which not-a-number is not


def _probabilities(values: Array) -> bool:
    return bool((values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-3))


def _graph(path: Path) -> Callable[[Array], dict[str, bytes]]:
    """What runs an ONNX file on a batch, and gives its input and outputs as TensorProtos by the names of their files."""
    import onnxruntime
    from onnx import numpy_helper

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        raise ModelError(
            f"{path}: ONNX Runtime can't run it; `vgg convert` makes an old file current ({one_line(error)})"
        ) from None
    given, outputs = session.get_inputs(), session.get_outputs()
    if [port.type for port in given] != ["tensor(float)"]:
        raise ModelError(f"{path}: sample data is made for a model with one input, of float32")

    def run(batch: Array) -> dict[str, bytes]:
        try:
            values = session.run(None, {given[0].name: batch})
        except Exception as error:
            raise ModelError(f"{path}: ONNX Runtime can't run it ({one_line(error)})") from None
        tensors = {"input_0": numpy_helper.from_array(batch, given[0].name)}
        for index, (port, value) in enumerate(zip(outputs, values, strict=True)):
            tensors[f"output_{index}"] = numpy_helper.from_array(value, port.name)
        return {name: tensor.SerializeToString(deterministic=True) for name, tensor in tensors.items()}

    return run


def _add(tar: tarfile.TarFile, name: str, size: int, content: BinaryIO) -> None:
    member = tarfile.TarInfo(name)  # owner, time and mode are the same for everybody
    member.size = size
    tar.addfile(member, content)
