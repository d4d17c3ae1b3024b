import contextlib
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from vgg import Architecture, Labels, ModelError, Network, engines
from vgg.preprocessing import PRESETS

# A process in the background doesn't hear an interrupt, and neither do those that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are found anew on every other machine; in CI they are the same every time. A busy machine exceeds any deadline.
settings.register_profile("vgg", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("vgg")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
EXAMPLES = ROOT / "examples"
FIXTURES = ROOT / "tests/fixtures"


def random_network(name: str = "vgg11", seed: int = 0, labels: Labels | None = None, **options) -> Network:
    """A narrow network with random parameters."""
    architecture = Architecture(name, **{"classes": 7, "width": 1 / 16, "input_size": 32, **options})
    rng = np.random.default_rng(seed)
    parameters = {}
    for key, shape in architecture.parameters.items():
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
        value = rng.normal(0, scale, shape)
        parameters[key] = (np.abs(value) + 0.5 if key.endswith((".variance", ".scale")) else value).astype(np.float32)
    return Network(architecture, parameters, PRESETS["torchvision"], labels)


# Where the extension couldn't be built, its tests are skipped; but not in CI, which must have it.
needs_native = pytest.mark.skipif(
    engines.native_library() is None and "CI" not in os.environ, reason="this installation of vgg has no native engine"
)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.exists():
        pytest.skip("needs ../shared with real weights and images, which is not there")
    return SHARED


@pytest.fixture(scope="session")
def real_models(shared: Path) -> dict[str, Path]:
    """The real VGG-19 (Keras layout) and VGG-16 (torchvision layout), made once into a cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vgg-models"
    subprocess.run([sys.executable, shared / "models" / "make_models.py", folder], check=True, stdout=subprocess.PIPE)
    return {
        "vgg19": folder / "vgg19_weights_tf_dim_ordering_tf_kernels.h5",
        "vgg16": folder / "vgg16-imagenet.safetensors",
    }


@pytest.fixture(scope="session")
def real_onnx(real_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The real models as our own ONNX files."""
    folder = tmp_path_factory.mktemp("real")
    for name, path in real_models.items():
        Network.read(path).write(folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in real_models}


@pytest.fixture
def store(monkeypatch):
    """A bucket on a real S3 server, `s3://bucket`."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    system.rm("bucket", recursive=True)  # the server's buckets outlive it
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def change_version(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package, such as vgg or onnxruntime, appear in another version, for tests of what is resumed."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0" if name == package else version(name))
    monkeypatch.setattr(f"{package}.__version__", "0")


def read_terminal(ours: int) -> bytes:
    """All that a process says on a pseudo-terminal, until it ends; one that nobody reads from would have it wait."""
    said = b""
    with contextlib.suppress(OSError):  # the way a terminal ends whose other side is gone
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    return said


def read_damaged(data, whole: Path, reach: int) -> None:
    """Read a model file with up to 8 changed bytes among the first `reach`, truncated: an error is one line with its name.

    `data` is hypothesis's `st.data()`.
    """
    content = bytearray(whole.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(reach, len(content)) - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    broken = whole.with_name(f"broken{whole.suffix}")
    broken.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        Network.read(broken)
    except ModelError as error:
        assert broken.name in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
