"""Time vgg's engines in float32, int8 and bfloat16 beside ncnn and MNN, if they are installed, in one run.

    python benchmarks/peers.py vgg16.onnx vgg19.onnx

benchmarks/README.md describes the installation and the columns of the result.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from measurements import Measurements, parser

from vgg import Error, Network, engines
from vgg.arrays import Array
from vgg.benchmark import REFERENCE, Runner, side_by_side
from vgg.formats import load
from vgg.limits import work

BATCH_SIZES = (1, 8)
TOLERANCE = 1e-3  # of the largest logit
TOLERANCES = {"int8": 0.2, "bf16": 0.1}  # of other arithmetic
VALUES = ("rounds", "ms", "ms_q1", "ms_q3", f"vs_{REFERENCE}", "ms_limit", "of_limit")


class Ncnn:
    """ncnn in float32. It accepts one image at a time, so a batch is a loop."""

    def __init__(self, stem: Path, threads: int) -> None:
        import ncnn

        self._mat, self._net = ncnn.Mat, ncnn.Net()
        self._net.opt.num_threads = threads
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(self._net.opt, f"use_{option}", False)
        if self._net.load_param(f"{stem}.ncnn.param") or self._net.load_model(f"{stem}.ncnn.bin"):
            raise Error(f"{stem}.ncnn.param: ncnn can't read it")

    def logits(self, batch: Array) -> Array:
        return np.stack([self._one(image) for image in batch])

    def _one(self, image: Array) -> Array:
        extractor = self._net.create_extractor()
        extractor.input("in0", self._mat(image))
        return np.array(extractor.extract("out0")[1])


def convert_to_ncnn(network: Network, folder: Path) -> Callable[..., Runner]:
    """Convert the network for ncnn by torch and pnnx; the result opens it with a number of `threads`."""
    import pnnx
    import torch

    from vgg.module import Module

    size, stem, module = network.architecture.input_size, folder / "peer", Module(network.architecture)
    module.load(network)
    torch.jit.trace(module.eval(), torch.zeros(1, 3, size, size)).save(f"{stem}.pt")  # type: ignore[no-untyped-call]
    subprocess.run([pnnx.EXEC_PATH, f"{stem}.pt", "fp16=0"], capture_output=True, check=False)
    if not Path(f"{stem}.ncnn.bin").exists():
        raise Error("pnnx failed")
    return partial(Ncnn, stem)


class Mnn:
    """MNN in float32."""

    def __init__(self, path: Path, threads: int) -> None:
        import MNN.expr
        import MNN.nn

        settings = ({"backend": "CPU", "precision": "high", "numThread": threads},)
        self._expr, runtime = MNN.expr, MNN.nn.create_runtime_manager(settings)
        self._net = MNN.nn.load_module_from_file(str(path), ["data"], ["logits"], runtime_manager=runtime)

    def logits(self, batch: Array) -> Array:
        given = self._expr.const(batch, list(batch.shape), self._expr.NCHW, self._expr.float)
        return np.array(self._net.forward(given).read())


def convert_to_mnn(network: Network, folder: Path) -> Callable[..., Runner]:
    """Convert the network for MNN by its ONNX converter; the result opens it with a number of `threads`."""
    source, path = folder / "peer.onnx", folder / "peer.mnn"
    network.write(source)
    converter = [sys.executable, "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)"]
    arguments = ["-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(path), "--bizCode", "vgg"]
    subprocess.run([*converter, *arguments], capture_output=True, check=False)
    if not path.exists():
        raise Error("MNN's converter failed")
    return partial(Mnn, path)


class _Random:
    """Images of noise, as in the timed batches, for ONNX Runtime's calibration."""

    def __init__(self, size: int) -> None:
        rng = np.random.default_rng(0)
        self._batches = iter([rng.standard_normal((1, 3, size, size), np.float32) for _ in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(({"data": batch} for batch in self._batches), None)


def in_int8(network: Network, folder: Path) -> dict[str, Callable[..., Runner]]:
    """The engines that compute with integers, with one QDQ file by ONNX Runtime's quantization: a scale for each channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    source, path = folder / "peer-float.onnx", folder / "peer-int8.onnx"
    network.write(source)
    calibration: Any = _Random(network.architecture.input_size)
    quantize_static(
        source, path, calibration, quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    source.unlink()
    graph = load(path)
    found = [name for name in engines.installed() if name != "torch"]
    return {f"{name}-int8": partial(engines.open, graph, engine=name) for name in found}


def in_bf16(network: Network) -> dict[str, Callable[..., Runner]]:
    """The engines with products of bfloat16."""
    found = [name for name in engines.installed() if name in engines.IN_BF16]
    return {f"{name}-bf16": partial(engines.open, network, engine=name, precision="bf16") for name in found}


# The converter of each peer, and the packages that it requires.
PEERS = {
    "ncnn": (convert_to_ncnn, ("ncnn", "pnnx", "torch")),
    "mnn": (convert_to_mnn, ("MNN", "_tools")),
}


def converted(network: Network, folder: Path) -> dict[str, Callable[..., Runner]]:
    """The peers that are installed and support the network."""
    found = {}
    for name, (convert, packages) in PEERS.items():
        missing = [package for package in packages if find_spec(package) is None]
        try:
            if missing:
                raise Error(f"{' and '.join(missing)} not installed")
            found[name] = convert(network, folder)
        except Error as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return found


def check_logits(runners: dict[str, Runner], batch: Array) -> None:
    """Raise Error unless all runners' logits agree with the first one's."""
    reference, *others = runners
    expected = runners[reference].logits(batch)
    for name in others:
        off = float(np.abs(runners[name].logits(batch) - expected).max() / np.abs(expected).max())
        if not off <= TOLERANCES.get(name.rpartition("-")[2], TOLERANCE):
            raise Error(f"{name} differs from {reference} by {off:.1e} of the largest logit")
        print(f"{name}: logits within {off:.0e} of {reference}'s", file=sys.stderr)


def measure(file: Path, counts: list[int], rounds: int, results: Measurements) -> None:
    """Measure a model file with each number of threads, batch size and engine."""
    network = Network.read(file).fold_batch_norm()
    size, rng = network.architecture.input_size, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        peers = converted(network.expanded(), Path(folder)) | in_int8(network.expanded(), Path(folder)) | in_bf16(network)
        for threads in counts:
            runners: dict[str, Runner] = {name: engines.open(network, name, threads=threads) for name in engines.installed()}
            runners |= {name: opened(threads=threads) for name, opened in peers.items()}
            check_logits(runners, rng.standard_normal((2, 3, size, size), np.float32))
            for batch_size in BATCH_SIZES:
                batch = rng.standard_normal((batch_size, 3, size, size), np.float32)
                one = side_by_side(runners, batch, work(network), threads, rounds)
                for timing in one.timings:
                    engine, _, precision = timing.engine.partition("-")
                    what = {"model": file.stem, "batch": batch_size, "threads": threads}
                    what |= {"engine": engine, "precision": precision or "float32"}
                    record = one.record(timing)
                    results.add(what, **{name: record[name] for name in VALUES}, vs_native=one.ratio(timing, "native"))
            del runners


def main() -> None:
    options = parser(__doc__)
    options.add_argument("models", nargs="+", type=Path, help="model files that vgg reads")
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    results = Measurements("peers", given.output)
    try:
        for model in given.models:
            measure(model, sorted({1, os.cpu_count() or 1}), given.rounds, results)
    except Error as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
