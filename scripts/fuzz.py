"""Fuzz the readers of images and models, and the routes of the server, with atheris.

    scripts/fuzz [--seconds 300] [TARGET ...]

A target has seeds, which are made here, and a check that an input passes or fails. The readers are instrumented, the server is
a real one on loopback. An input that fails is written to build/fuzz; `scripts/fuzz --repeat FILE` checks it again.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
FINDS = ROOT / "build/fuzz"
MEMORY, SLOW = 1500, 20  # MiB of the process, and seconds of one input, above which libFuzzer reports it
SERVER_MEMORY = 1000  # MiB
REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "OUT_OF_RANGE")

# In a process of its own: torch and atheris can't share one.
SAVE = """
import pickle, sys, torch
state = {f"features.{index}.weight": torch.zeros(2, 3, 3, 3) for index in (0, 3, 6)}
torch.save(state, sys.argv[1])
torch.save(state, sys.argv[2], _use_new_zipfile_serialization=False)
with open(sys.argv[3], "wb") as file:
    pickle.dump({"state_dict": state, "ema": {key: value.numpy() for key, value in state.items()}}, file)
"""

Check = Callable[[bytes], None]


class Find(AssertionError):
    """An input that is mishandled."""


def images() -> tuple[list[bytes], Check]:
    """Images of each format; a broken one raises ImageError."""
    from PIL import Image

    from vgg import ImageError
    from vgg.image_formats import FORMATS, prepare_pillow
    from vgg.images import decoding_bytes, open_image

    prepare_pillow()
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker"})
    small = Image.radial_gradient("L").resize((23, 17)).convert("RGB")
    seeds = []
    for format in FORMATS:
        for mode in ("RGB", "RGBA", "L", "P", "CMYK", "I;16", "1"):
            file = io.BytesIO()
            try:
                frames = {"save_all": True, "append_images": [small]} if format == "MPO" else {}
                small.convert(mode if mode != "I;16" else "I").convert(mode).save(file, format, exif=exif, **frames)
            except (OSError, ValueError, KeyError):  # the format has no such mode
                continue
            seeds.append(file.getvalue())

    def check(data: bytes) -> None:
        for read in (decoding_bytes, open_image):
            try:
                read(data)
            except ImageError as error:
                _one_line(error)

    return seeds, check


def models() -> tuple[list[bytes], Check]:
    """Files of each model format; a broken one raises ModelError."""
    import warnings

    from caffe_files import caffe2_nets, caffe_model
    from conftest import FIXTURES, random_network
    from vgg import Labels, ModelError, Network, formats
    from vgg.quantization import quantize_weights

    network = random_network(labels=Labels(tuple("abcdefg")), width=1 / 64)
    folder = Path(tempfile.mkdtemp(prefix="vgg-fuzz-"))
    network.write(folder / "a.onnx")
    quantize_weights(network).write(folder / "b.onnx")
    network.write(folder / "c.safetensors")
    network.write(folder / "i.pth")
    subprocess.run([sys.executable, "-c", SAVE, "d.pth", "e.pth", "i.pkl"], cwd=folder, check=True)
    (folder / "f.caffemodel").write_bytes(caffe_model(network).SerializeToString())
    (folder / "g.pb").write_bytes(caffe2_nets(network)[0].SerializeToString())
    (folder / "h.keras").write_bytes(_keras(network))
    seeds = [path.read_bytes() for path in sorted(folder.iterdir())]
    seeds += [(FIXTURES / name).read_bytes() for name in ("mxnet-0.9.5-2-vgg11.params", "torch-legacy.onnx")]

    def check(data: bytes) -> None:
        path = folder / "fuzzed"
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                formats.load(path)
        except ModelError as error:
            _one_line(error)

    assert Network.read(folder / "a.onnx").architecture == network.architecture
    return seeds, check


def http() -> tuple[list[bytes], Check]:
    """Requests to every route: a line of method and path, lines of headers, an empty line, the body. None may get 500."""
    import httpx

    server, image = _server()
    tensor = b'{"inputs":[{"name":"data","datatype":"FP32","shape":[1,3,32,32],"data":[' + b"0," * 3071 + b"0]}]}"
    bodies = {"image/jpeg": image, "application/json": b'{"image":"aGk=","top":3}', "application/octet-stream": image}
    tensors = [
        tensor,
        b'{"inputs":[{"name":"data","datatype":"BYTES","shape":[1],"data":["aGk="]}]}',
        b'{"id":"1","inputs":[]}',
    ]
    seeds = []
    for path, methods in httpx.get(f"{server.address}/openapi.json").json()["paths"].items():
        place = path.replace("{model}", "gap").replace("{version}", "1").replace("{MODEL_NAME}", "gap")
        for method in methods:
            for kind, body in bodies.items() if method == "post" else [("", b"")]:
                seeds.append(f"{method.upper()} {place}\ncontent-type: {kind}\n\n".encode() + body)
            seeds += [f"POST {place}\n\n".encode() + one for one in tensors if place.endswith("infer")]
    client = httpx.Client(base_url=server.address, timeout=30)

    def check(data: bytes) -> None:
        head, _, body = data.partition(b"\n\n")
        first, *lines = head.split(b"\n")
        method, _, path = first.partition(b" ")
        headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        try:
            request = client.build_request(method.decode("latin-1"), path.decode("latin-1"), headers=headers, content=body)
            response = client.send(request)
        except (httpx.InvalidURL, httpx.LocalProtocolError, httpx.UnsupportedProtocol, ValueError, TypeError):
            return  # the client can't send it
        except httpx.RemoteProtocolError:
            response = None  # closed by the server, as for HTTP that is invalid
        if response is not None and response.status_code >= 500 and response.status_code not in (501, 503):
            raise Find(f"{response.status_code}: {response.text[:200]}")
        _alive(server, client)

    return seeds, check


def grpc() -> tuple[list[bytes], Check]:
    """Messages of ModelInfer; each gets an answer or a status of a refusal."""
    import grpc
    import httpx
    from tritonclient.grpc import service_pb2 as messages

    server, image = _server("--grpc-port", 0)
    text = messages.ModelInferRequest(model_name="gap")
    text.inputs.add(name="data", datatype="FP32", shape=[1, 3, 32, 32])
    raw, encoded = messages.ModelInferRequest(), messages.ModelInferRequest()
    raw.CopyFrom(text)
    raw.raw_input_contents.append(bytes(4 * 3 * 32 * 32))
    text.inputs[0].contents.fp32_contents.extend([0.0] * (3 * 32 * 32))
    encoded.model_name = "gap"
    encoded.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(image)
    channel = grpc.insecure_channel(f"127.0.0.1:{server.log[0]['grpc'].rpartition(':')[2]}")
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    client = httpx.Client(base_url=server.address, timeout=30)

    def check(data: bytes) -> None:
        try:
            call(data, timeout=30)
        except grpc.RpcError as error:
            # A message that is no protobuf is answered by the gRPC library itself.
            parsed = "DecodeError" not in str(error.details())
            if parsed and error.code().name not in REFUSALS:
                raise Find(f"{error.code().name}: {str(error.details())[:200]}") from None
        _alive(server, client)

    return [one.SerializeToString() for one in (text, raw, encoded)], check


TARGETS: Mapping[str, Callable[[], tuple[list[bytes], Check]]] = {
    "images": images, "models": models, "http": http, "grpc": grpc,
}  # fmt: skip


def _one_line(error: Exception) -> None:
    if "\n" in str(error) or len(str(error)) > 1000:
        raise Find(f"the message is not one short line: {str(error)[:200]!r}")


def _keras(network: object) -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content.create_group("layers/conv2d/vars")["0"] = [[1.0, 2.0]]
        content.attrs["layer_names"] = [b"conv2d"]
    return file.getvalue()


def _server(*options: object):
    """A server with a narrow network, and an image."""
    from conftest import random_network
    from miniature import jpeg
    from serving_helpers import Server

    path = Path(tempfile.mkdtemp(prefix="vgg-fuzz-")) / "gap.onnx"
    random_network(width=1 / 64, head="gap").write(path)
    return Server("-m", f"gap={path}", "--max-body-mib", 8, *options), jpeg(0)


def _alive(server, client) -> None:
    """Raise Find if the server has ended, is slow, or uses too much memory."""
    if server.process.poll() is not None:
        raise Find(f"the server ended with {server.process.returncode}: {server.other[-5:]}")
    started = time.monotonic()
    client.get("/healthz").raise_for_status()
    if time.monotonic() - started > 1:
        raise Find(f"/healthz took {time.monotonic() - started:.1f} s")
    status = Path(f"/proc/{server.process.pid}/status")
    size = int(status.read_text().partition("VmRSS:")[2].split()[0]) // 1024 if status.exists() else 0
    if size > SERVER_MEMORY:
        raise Find(f"the server uses {size} MiB")


def run(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends here."""
    import atheris

    with atheris.instrument_imports(include=["vgg"]):
        for module in pkgutil.iter_modules([str(ROOT / "src/vgg/formats")]):
            importlib.import_module(f"vgg.formats.{module.name}")
    warnings.simplefilter("ignore")
    seeds, check = TARGETS[name]()
    corpus = Path(tempfile.mkdtemp(prefix=f"vgg-fuzz-{name}-"))
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    known: set[str] = set()

    def test(data: bytes) -> None:
        try:
            check(data)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}"
            if kind not in known:  # one input of each kind
                known.add(kind)
                found = FINDS / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
                found.write_bytes(data)
                print(f"FOUND {found}: {kind}: {str(error)[:300]}", flush=True)

    longest = max(map(len, seeds)) + 1000
    options = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY}", f"-timeout={SLOW}", f"-max_len={longest}"]
    options += [f"-artifact_prefix={FINDS}/{name}-", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], test)
    atheris.Fuzz()


def main() -> None:
    """Fuzz the targets one after the other; the exit code is 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=int, default=300, metavar="N", help="of all targets together; 300 by default")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="check this input, whose name begins with its target")
    parser.add_argument("--run", choices=TARGETS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    FINDS.mkdir(parents=True, exist_ok=True)
    if given.repeat:
        TARGETS[given.repeat.name.partition("-")[0]]()[1](given.repeat.read_bytes())
        return
    if given.run:
        run(given.run, given.seconds)
    before, targets = set(FINDS.iterdir()), given.targets or list(TARGETS)
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"unknown target {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    for name in targets:
        print(f"{name}:", flush=True)
        command = [sys.executable, __file__, "--run", name, "--seconds", str(max(1, given.seconds // len(targets)))]
        with subprocess.Popen(command, start_new_session=True) as process:
            process.wait()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # its server
    found = sorted(set(FINDS.iterdir()) - before)
    print(f"{len(found)} finds" + "".join(f"\n  {path}" for path in found))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
