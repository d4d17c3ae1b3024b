"""The native engine against ONNX Runtime, torch and float64, and its errors."""

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from conftest import needs_native, random_network
from vgg import Architecture, Error, ModelError, Quantized, engines
from vgg.architectures import CONFIGURATIONS
from vgg.engines import native_interface
from vgg.engines.native import NativeEngine
from vgg.engines.native_interface import available_instructions

pytestmark = needs_native
INSTRUCTIONS = available_instructions() if engines.native_library() else ["auto"]


def images(count=2, height=32, width=None, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, height, width or height)).astype(np.float32)


def assert_close(found, expected, tolerance=1e-4):
    """Within a share of the largest value: Winograd's transforms round by the size of their sums, not of each result."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_architecture_gives_what_onnx_runtime_gives(name, instructions, monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    for head, size in (("fc", 32), ("fc", 96), ("gap", 64)):
        network = random_network(name, head=head, input_size=size)
        batch = images(3, size)
        native, judge = (engines.open(network, engine, threads=2) for engine in ("native", "onnxruntime"))
        for value in network.architecture.values:  # one by one, so that pooling is fused where it can be
            assert_close(native.run(batch, [value])[value], judge.run(batch, [value])[value])
        together = native.run(batch, network.architecture.values)
        for value, expected in judge.run(batch, network.architecture.values).items():
            assert_close(together[value], expected)


@settings(max_examples=60)
@given(
    name=st.sampled_from(list(CONFIGURATIONS)),
    width=st.floats(0.02, 0.3),
    height=st.integers(32, 150),
    width_of_image=st.integers(32, 150),
    batch=st.integers(1, 18),
    classes=st.integers(10, 50),  # of fewer logits even the largest may be next to nothing
    threads=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_network_any_batch_any_size(name, width, height, width_of_image, batch, classes, threads, seed):
    network = random_network(name, seed, head="gap", width=width, classes=classes)
    inputs = images(batch, height, width_of_image, seed)
    found = engines.open(network, "native", threads=threads).run(inputs, ["pool3", "logits"])
    for value, expected in engines.open(network, "onnxruntime", threads=1).run(inputs, ["pool3", "logits"]).items():
        assert_close(found[value], expected)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (101, 200), (160, 190)])
def test_larger_images_give_a_map_of_scores(height, width):
    network = random_network("vgg13", input_size=64)
    found = engines.open(network, "native").run(images(3, height, width), ["pool5", "fc6", "logits"])
    value = torch.from_numpy(found["pool5"])
    for layer in ("fc6", "fc7", "fc8"):
        weight, bias = (torch.from_numpy(network.parameters[f"{layer}.{role}"]) for role in ("weight", "bias"))
        value = functional.conv2d(value, weight if weight.ndim == 4 else weight[:, :, None, None], bias)
        value = value if layer == "fc8" else value.relu()
        if layer == "fc6":
            assert_close(np.atleast_1d(found["fc6"].reshape(value.shape)), value.numpy())
    assert_close(found["logits"].reshape(value.shape), value.numpy())
    assert found["logits"].ndim == (2 if (height, width) == (64, 64) else 4)


def stored(value: np.ndarray, kind: str):
    """A parameter in another storage; its float32 form is the reference."""
    if kind in ("float16", "bfloat16"):
        return value.astype({"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[kind])
    flat = value.reshape(len(value), -1)
    limit, dtype = (7, ml_dtypes.int4) if kind == "int4" else (127, np.int8)
    if kind == "int4" and value.shape[2:] != (3, 3):  # a linear layer's
        group = 128 if flat.shape[1] % 128 == 0 else 16
        padded = np.pad(flat, ((0, 0), (0, -flat.shape[1] % group)))
        scale = (np.abs(padded).reshape(len(flat), -1, group).max(2) / limit + 1e-6).astype(np.float32)
        spread = np.repeat(scale, group, 1)[:, : flat.shape[1]]
        return Quantized(np.rint(flat / spread).astype(dtype).reshape(value.shape), scale, group=group)
    scale = (np.abs(flat).max(1) / 127).astype(np.float32)
    zero = (np.arange(len(flat)) % 3).astype(np.int8) if kind == "int8 with zero points" else None
    return Quantized(np.rint(flat / scale[:, None]).clip(-120, 120).astype(np.int8).reshape(value.shape), scale, zero)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8", "int8 with zero points", "int4"])
def test_parameters_may_be_stored_in_fewer_bits(kind, instructions, monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    # The last has linear layers of more inputs than are sorted at once.
    for width, size in ((1 / 16, 64), (0.07, 64), (1 / 4, 288)):
        network = random_network("vgg11", width=width, input_size=size)
        parameters = {name: stored(v, kind) if name.endswith("weight") else v for name, v in network.parameters.items()}
        network = replace(network, parameters=parameters)
        plain = {name: np.asarray(value, np.float32) for name, value in network.expanded().parameters.items()}
        for count in (1, 2, 5, 12):
            found = NativeEngine(network, 2).logits(images(count, size))
            expected = engines.open(replace(network, parameters=plain), "onnxruntime").logits(images(count, size))
            assert_close(found, expected)
        larger = images(2, 2 * size, 2 * size + 32)  # of many places, which take another way through the linear layers
        assert_close(
            NativeEngine(network, 2).logits(larger), NativeEngine(replace(network, parameters=plain), 2).logits(larger)
        )


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_half_precision_is_exact_for_every_number(instructions, monkeypatch):
    """Each finite float16 and bfloat16 as the only weight of a class: subnormals, and both zeros."""
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        numbers = np.arange(2**16, dtype=np.uint16).view(dtype)
        with np.errstate(invalid="ignore"):
            numbers = numbers[np.isfinite(numbers.astype(np.float32))]
        network = random_network(head="gap", classes=len(numbers))
        features = network.parameters["fc8.weight"].shape[1]
        weight = np.zeros((len(numbers), features), dtype)
        weight[:, -1] = numbers
        biases = {"fc8.bias": np.zeros(len(numbers), np.float32), "conv5_2.bias": np.full(features, 100, np.float32)}
        changed = replace(network, parameters={**network.parameters, **biases, "fc8.weight": weight})
        found = NativeEngine(changed).run(images(1), ["pool6", "logits"])
        feature = found["pool6"][0, -1, 0, 0]  # the others are multiplied by 0
        assert feature > 0
        with np.errstate(over="ignore"):
            expected = numbers.astype(np.float32) * feature
        np.testing.assert_array_equal(found["logits"][0], expected)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("value", [np.nan, -np.nan])
def test_nan_is_not_lost_in_relu_and_pooling(value, instructions, monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    for name in ("vgg11", "vgg16-c", "vgg11-lrn"):
        network = random_network(name, input_size=64)
        engine = NativeEngine(network, 2)
        for row, column in ((0, 0), (31, 17), (63, 63)):
            batch = images(2, 64)
            batch[0, 1, row, column] = value
            for outputs in (["logits"], [*network.architecture.values]):  # pooling is fused, or not
                found = engine.run(batch, outputs)
                assert np.isnan(found["logits"][0]).all()
                assert np.isfinite(found["logits"][1]).all()
                for output in found.values():
                    assert np.isnan(output[0]).any()


@pytest.mark.parametrize("place", [0, 255])
def test_nan_is_not_lost_in_pooling_the_whole_map(place):
    batch = images(1, 256)
    batch[0, 1, place, place] = np.nan
    found = NativeEngine(random_network(head="max, 24 relu, classes"), 1).run(batch, ["pool5", "pool6"])
    assert np.isnan(found["pool5"]).any()
    assert np.isfinite(found["pool5"]).any()
    assert np.isnan(found["pool6"]).all()


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "elu", "gelu", "gelu-tanh", "silu", "tanh", "sigmoid"])
def test_no_activation_of_a_linear_layer_hides_weights_that_are_no_numbers(activation, instructions, monkeypatch):
    """Most activations have finite values at an infinity: it would be lost."""
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    network = random_network(head=f"24 {activation}, classes")
    for dtype, value, count in ((np.float32, -np.inf, 1), (np.float32, np.inf, 20), (np.float16, -np.inf, 20)):
        weight = network.parameters["fc6.weight"].astype(dtype)
        weight[3] = value
        engine = NativeEngine(replace(network, parameters={**network.parameters, "fc6.weight": weight}), 1)
        assert engine.run(images(count), ["pool5"])["pool5"].shape[0] == count
        with pytest.raises(ModelError, match=r"parameter fc6.weight has values that are not finite numbers"):
            engine.run(images(count))


def test_a_hundred_thousand_classes():
    network = random_network(head="gap", classes=100_000)
    assert_close(engines.open(network, "native").logits(images()), engines.open(network, "onnxruntime").logits(images()))


def test_numbers_may_lie_anywhere():
    network = random_network("vgg11")

    def shifted(value):
        room = np.zeros(value.nbytes + 1, np.uint8)
        return np.frombuffer(room.data, np.float32, value.size, 1).reshape(value.shape), room

    parameters = {}
    for name, value in network.parameters.items():
        place, room = shifted(value)
        room[1:] = np.ascontiguousarray(value).view(np.uint8).reshape(-1)
        parameters[name] = place
    found = NativeEngine(replace(network, parameters=parameters)).logits(images())
    np.testing.assert_array_equal(found, NativeEngine(network).logits(images()))


def test_a_batch_may_have_any_strides_and_no_images():
    engine = engines.open(random_network(), "native")
    batch = images(4).transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(engine.logits(batch), engine.logits(np.ascontiguousarray(batch)))
    assert engine.logits(images(0)).shape == (0, 7)


def test_the_same_numbers_on_any_number_of_threads():
    network = random_network("vgg16", input_size=64)
    expected = NativeEngine(network, 1).logits(images(5, 64))
    for threads in (2, 3, 8):
        np.testing.assert_allclose(NativeEngine(network, threads).logits(images(5, 64)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system doesn't bind threads to cores")
def test_there_are_no_more_threads_than_cores_for_this_process():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert NativeEngine(random_network())._threads == 1
    finally:
        os.sched_setaffinity(0, before)


def test_several_engines_at_once():
    networks = [random_network(name) for name in ("vgg11", "vgg16", "vgg19-bn")]
    expected = [NativeEngine(network, 1).logits(images()) for network in networks]
    found: list[list[np.ndarray]] = [[] for _ in networks]

    def work(index):
        for _ in range(10):
            found[index].append(NativeEngine(networks[index], 3).logits(images()))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(networks))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for runs, logits in zip(found, expected, strict=True):
        assert len(runs) == 10
        for run in runs:
            np.testing.assert_allclose(run, logits, rtol=1e-5, atol=1e-6)


def test_times_are_of_each_layer():
    engine = NativeEngine(random_network())
    engine.logits(images())
    times = engine.times()
    assert list(times) == list(Architecture("vgg11").values)
    assert times["conv1_1"] > 0
    assert times["fc7"] > 0


def test_times_may_be_read_while_another_thread_runs():
    engine = NativeEngine(random_network("vgg16", input_size=64), 2)
    batch, stop = images(2, 64), threading.Event()

    def work():
        while not stop.is_set():
            engine.logits(batch)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(200):
            assert all(seconds >= 0 for seconds in engine.times().values())
    finally:
        stop.set()
        thread.join()


def test_an_unknown_instruction_set_is_an_error(monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", "mmx")
    expected = rf"VGG_INSTRUCTIONS=mmx: unknown instruction set 'mmx'; .* choose from {', '.join(INSTRUCTIONS)}$"
    with pytest.raises(Error, match=expected):
        engines.open(random_network(), "native")


def compiled(folder, source):
    """A shared library of C code; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None and "CI" not in os.environ:
        pytest.skip("needs a C compiler")
    (folder / "library.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libvgg.so", folder / "library.c"], check=True)
    return folder / "libvgg.so"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("int vgg_run(void) { return 0; }", "can't load the native engine .*vgg_interface.*; reinstall vgg"),
        (
            "void vgg_interface(int *a, int *b, int *c, int *d) { *a = 1, *b = 112, *c = 16, *d = 48; }",
            r"is of another version of vgg \(interface \[1, .*; reinstall vgg",
        ),
        (
            "void vgg_interface(int *a, int *b, int *c, int *d) { *a = 5, *b = 112, *c = 16, *d = 48; }",
            r"is of another version of vgg \(interface \[5, 112, 16, 48\], not \[5, \d+, 16, 48\]\); reinstall vgg",
        ),
        (None, "can't load the native engine .*; reinstall vgg"),
    ],
)
def test_a_library_of_another_version_is_refused(source, message, tmp_path, monkeypatch):
    path = tmp_path / "libvgg.so"
    if source is None:
        path.write_bytes(b"not a library")
    else:
        path = compiled(tmp_path, source)
    monkeypatch.setattr(native_interface, "native_library", lambda: path)
    native_interface.library.cache_clear()
    try:
        with pytest.raises(Error, match=message):
            native_interface.library()
    finally:
        native_interface.library.cache_clear()


FORK = """
import os, numpy as np
from conftest import needs_native, random_network
from vgg import engines
engine = engines.open(random_network(), "native", threads=3)
batch = np.ones((2, 3, 32, 32), np.float32)
expected = engine.logits(batch)
child = os.fork()
found = engine.logits(batch)
del engine
if child:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, np.array_equal(found, expected))
os._exit(0 if np.array_equal(found, expected) else 1) if not child else None
"""

FORK_WHILE_RUNNING = """
import os, threading, time, numpy as np
from conftest import random_network
from vgg import engines
engine = engines.open(random_network("vgg16", input_size=64), "native", threads=3)
batch = np.random.default_rng(0).normal(size=(16, 3, 64, 64)).astype(np.float32)
expected, stop = engine.logits(batch), threading.Event()

def work():
    while not stop.is_set():
        engine.logits(batch)

threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
codes = []
for number in range(20):
    time.sleep(0.002 * number)
    child = os.fork()
    if not child:
        same = [False, False]
        def compare(index):
            same[index] = np.array_equal(engine.logits(batch), expected)
        pair = [threading.Thread(target=compare, args=(index,)) for index in range(2)]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join()
        engine.times()
        os._exit(0 if all(same) else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
for thread in threads:
    thread.join()
print(sum(codes), np.array_equal(engine.logits(batch), expected))
"""

# In the child, no thread can be started: that is an error, once and again, and the process lives on.
NO_THREADS = """
import os, resource, numpy as np
from conftest import random_network
from vgg import Error, engines
engine = engines.open(random_network(), "native", threads=3)
batch = np.ones((1, 3, 32, 32), np.float32)
expected = engine.logits(batch)
child = os.fork()
if not child:
    os.setuid(65534)  # root has no limit
    resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
    errors = 0
    for _ in range(2):
        try:
            engine.logits(batch)
        except Error as error:
            errors += "can't start 3 threads (" in str(error)
    resource.setrlimit(resource.RLIMIT_NPROC, (resource.getrlimit(resource.RLIMIT_NPROC)[1],) * 2)
    os._exit(0 if errors == 2 and np.array_equal(engine.logits(batch), expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

MEMORY = """
import resource, numpy as np
from conftest import needs_native, random_network
from vgg import engines
engine = engines.open(random_network(head="gap"), "native", threads=1)
small, large = (np.zeros((1, 3, side, side), np.float32) for side in (32, 4096))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
try:
    engine.logits(large)
except MemoryError as error:
    print(error)
print(engine.logits(small).shape)
"""


def python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=60
    ).stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    assert python(FORK) == "0 True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_may_fork_while_other_threads_run():
    assert python(FORK_WHILE_RUNNING) == "0 True\n"


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="needs Linux and root, to limit the threads")
def test_a_failed_start_of_threads_is_an_error():
    assert python(NO_THREADS) == "0\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of address space")
def test_too_little_memory_is_an_exception_and_the_engine_lives_on():
    assert python(MEMORY) == "not enough memory for 1 image of 4096x4096\n(1, 7)\n"
