import os
import subprocess
import sys
import warnings
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from conftest import random_network
from vgg import Classifier, Error, Network, engines
from vgg.architectures import CONFIGURATIONS
from vgg.engines import torch as home
from vgg.engines import torch_pipeline
from vgg.errors import Notice
from vgg.preprocessing import PRESETS
from vgg.views import Views

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


def images(count=2, height=32, width=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, height, width)).astype(np.float32)


def assert_close(found, expected, tolerance):
    """The same names and shapes, and values that differ by no more than a part of the largest."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, np.float32)
        largest = np.abs(value).max(initial=0)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * largest, err_msg=name)


def assert_as_onnxruntime(network, batch):
    """Every named value is that of ONNX Runtime."""
    names = network.architecture.values
    expected = engines.open(network, "onnxruntime").run(batch, names)
    assert_close(engines.open(network, "torch").run(batch, names), expected, 1e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("head", ["fc", "gap"])
@pytest.mark.parametrize("count", [1, 3])
def test_every_architecture_computes_what_onnxruntime_does(name, head, count):
    assert_as_onnxruntime(random_network(name, head=head), images(count))


def test_the_gap_head_takes_odd_sizes_and_batches_that_lie_otherwise():
    assert_as_onnxruntime(random_network(head="gap"), images(2, 33, 71))
    assert_as_onnxruntime(random_network(), images().transpose(0, 1, 3, 2))
    assert_as_onnxruntime(random_network(), images(0))


def test_larger_images_give_the_head_at_each_position_where_it_fits():
    network = random_network("vgg13", input_size=64)
    found = engines.open(network, "torch").run(images(2, 96, 160), ("pool5", "fc6", "logits"))
    assert [found[name].shape for name in ("fc6", "logits")] == [(2, 256, 2, 4), (2, 7, 2, 4)]
    weight, bias = (network.parameters[f"fc6.{role}"] for role in ("weight", "bias"))
    for row, column in np.ndindex(2, 4):
        seen = found["pool5"][:, :, row : row + 2, column : column + 2].reshape(2, -1)
        expected = np.maximum(seen @ weight.reshape(256, -1).T + bias, 0)
        np.testing.assert_allclose(found["fc6"][:, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_a_mapped_file_is_read_in_place(tmp_path):
    random_network().write(tmp_path / "tiny.safetensors")
    network = Network.read(tmp_path / "tiny.safetensors")
    assert not any(value.flags.writeable for value in network.parameters.values())
    assert_as_onnxruntime(network, images())  # torch would warn of an array that it can't write to


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["vgg11", "vgg11-lrn", "vgg16-bn"])
def test_the_numbers_of_a_gpu_are_near_enough(monkeypatch, name, dtype):
    monkeypatch.setattr(home, "_dtype", lambda *_: dtype)
    network, batch = random_network(name), 100 * images()  # the squares of whose values float16 can't hold
    expected = engines.open(network, "onnxruntime").run(batch, network.architecture.values)
    assert_close(engines.open(network, "torch").run(batch, network.architecture.values), expected, 0.03)


def test_threads_are_those_of_the_process():
    before = torch.get_num_threads()
    try:
        engines.open(random_network(), "torch", threads=1)
        assert torch.get_num_threads() == 1
        engines.open(random_network(), "torch")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def assert_threads_can_share(engine, tolerance):
    batches = [images(1 + seed % 3, seed=seed) for seed in range(16)]
    expected = [engine.run(batch, ("fc6", "logits")) for batch in batches]
    with ThreadPool(8) as pool:
        found = pool.map(lambda batch: engine.run(batch, ("fc6", "logits")), batches)
    for values, others in zip(found, expected, strict=True):
        assert_close(values, others, tolerance)


def test_several_threads_share_an_engine():
    assert_threads_can_share(engines.open(random_network(), "torch"), 1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(Error, match="finds no GPU; use the device cpu"):
        engines.open(random_network(), device="cuda")


@needs_gpu
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("head", ["fc", "gap"])
def test_a_gpu_computes_what_the_cpu_does(name, head):
    network = random_network(name, head=head)
    names = network.architecture.values
    cpu, gpu = engines.open(network, "torch"), engines.open(network, "torch", device="cuda")
    for seed, shape in enumerate([(0, 32, 32), (1, 32, 32), (3, 32, 32), (2, 64, 96), (1, 32, 32)]):  # the last by replay
        batch = images(*shape, seed=seed)
        assert_close(gpu.run(batch, names), cpu.run(batch, names), 0.03)
        assert_close(gpu.run(batch), cpu.run(batch), 0.03)


@needs_gpu
def test_a_gpu_computes_float32_without_tf32():
    network, batch = random_network("vgg16"), images(4)
    names = network.architecture.values
    found = engines.open(network, "torch", device="cuda", precision="float32").run(batch, names)
    assert_close(found, engines.open(network, "torch").run(batch, names), 1e-5)


def test_a_gpus_kernels_are_chosen_without_tf32_and_the_process_keeps_its_settings():
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    with torch_pipeline.choosing_kernels():
        assert cudnn.benchmark
        assert cudnn.conv.fp32_precision == "ieee"
    assert (cudnn.benchmark, cudnn.allow_tf32) == before


def full_gpu(*_):
    raise torch.cuda.OutOfMemoryError


@pytest.mark.parametrize("compute", [full_gpu, lambda *_: torch.empty(2**52)], ids=["GPU", "CPU"])
def test_too_little_memory_is_a_memory_error(compute, monkeypatch):
    engine = engines.open(random_network(), "torch")
    monkeypatch.setattr(engine, "_computation", compute)
    with pytest.raises(MemoryError, match="not enough memory for 2 images of 48x32"):
        engine.run(images(2, 32, 48))


@needs_gpu
def test_several_threads_share_a_gpu(monkeypatch):
    monkeypatch.setattr(torch_pipeline, "GRAPHS", 2)  # fewer than there are shapes, so that graphs come and go
    assert_threads_can_share(engines.open(random_network(), device="cuda"), 0)


def compiled(network, outputs):
    """An engine that has compiled these values. Parts of torch are deprecated by itself when they are first imported."""
    engine = engines.open(network, "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("error", Notice)
        engine.compile(outputs)
    return engine


def test_compiled_values_are_those_of_torchs_own_modules():
    """One compilation serves all batches of two images or more; a single image and other sizes run torch's own modules."""
    network = random_network("vgg11-bn")
    engine, own = compiled(network, ["pool2", "conv1_1"]), engines.open(network, "torch")
    graphs = counters["stats"]["unique_graphs"]
    for shape in [(2, 32, 32), (5, 32, 32), (7, 32, 32), (1, 32, 32), (2, 64, 96), (0, 32, 32)]:
        batch = images(*shape)
        assert_close(engine.run(batch, ("conv1_1", "pool2")), own.run(batch, ("conv1_1", "pool2")), 1e-6)
        pixels = noise(*shape)
        assert_close(engine.run(pixels, ("conv1_1", "pool2")), own.run(pixels, ("conv1_1", "pool2")), 1e-6)
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_more_sets_of_values_are_compiled_than_torch_keeps_of_a_function():
    limit, graphs = torch._dynamo.config.recompile_limit, counters["stats"]["unique_graphs"]
    for seed in range(limit + 2):
        compiled(random_network(seed=seed), ["conv1_1"]).run(images(), ["conv1_1"])
    assert counters["stats"]["unique_graphs"] == graphs + limit + 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:dynamo_pgo force disabled")
@torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True})
def test_without_a_compiler_a_note_says_so_and_torchs_own_modules_run():
    network = random_network(seed=99)
    engine = engines.open(network, "torch")
    with pytest.warns(Notice, match=r"slower, since it can't compile \(.*\); install triton and g\+\+"):
        engine.compile()
    engine.compile()  # no second note
    np.testing.assert_array_equal(engine.logits(images()), engines.open(network, "torch").logits(images()))


def noise(count=2, height=32, width=32, seed=0):
    """Random pixels as `np.stack` arranges views: interleaved in memory."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("name", PRESETS)
def test_pixels_give_what_normalised_images_give(name):
    network = replace(random_network(), preprocessing=PRESETS[name].for_crop(32))
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 71, 3), np.uint8))
    views = [[view for _, view in Views("ten-crop").of(photo, network.preprocessing, "", pixels=pixels)] for pixels in (0, 1)]
    floats, pixels = map(np.stack, views)
    assert pixels.dtype == (np.float32 if network.preprocessing.interpolation == "float" else np.uint8)
    engine = engines.open(network, "torch")
    assert_close(engine.run(pixels, ("conv1_1", "logits")), engine.run(floats, ("conv1_1", "logits")), 2e-6)
    assert_close(engine.run(np.ascontiguousarray(pixels[::-1]), ["logits"]), engine.run(floats[::-1], ["logits"]), 2e-6)
    one = network.preprocessing(photo, pixels=True)
    assert one.dtype == pixels.dtype
    np.testing.assert_array_equal(one, views[1][8])  # the centre


@pytest.mark.parametrize("kind", [images, noise])
@pytest.mark.parametrize("count", [1, 4, 7, 9])
def test_a_pipeline_runs_a_batch_in_parts(monkeypatch, kind, count):
    """The steps of a GPU, on the CPU: parts of four images, the last one filled up to one, two or four."""
    monkeypatch.setattr(torch_pipeline, "PIXELS", 6 * 32 * 32)
    engine, sizes = engines.open(random_network(), "torch"), []

    def compute(batch, outputs):
        sizes.append(len(batch))
        return engine._computation(batch, outputs)

    pipeline = torch_pipeline.Pipeline(compute, torch.float32, "cpu")
    batch = kind(count)
    assert_close(pipeline.run(home._tensor(batch), ("fc6", "logits")), engine.run(batch, ("fc6", "logits")), 1e-5)
    assert sizes == {1: [1], 4: [4], 7: [4, 4], 9: [4, 4, 1]}[count]


def test_a_part_is_copied_before_the_one_that_is_computed_is_waited_for(monkeypatch):
    monkeypatch.setattr(torch_pipeline, "PIXELS", 2 * 32 * 32)
    steps = []

    class Recorded(torch_pipeline.Pipeline):
        def stage(self, part):
            steps.append("copy")
            return super().stage(part)

    def compute(batch, outputs):
        steps.append("compute")
        return {"pool1": Awaited(batch, steps)}

    class Awaited:
        """A value that records when it is read."""

        def __init__(self, value, steps):
            self.value, self.shape = value, value.shape

        def __getitem__(self, rows):
            steps.append("wait")
            return self.value[rows]

    batch = images(6)
    found = Recorded(compute, torch.float32, "cpu").run(home._tensor(batch), ("pool1",))
    np.testing.assert_array_equal(found["pool1"], batch)
    assert steps == ["copy", "compute", "copy", "wait", "compute", "copy", "wait", "compute", "wait"]


def test_several_threads_share_a_pipeline():
    engine = engines.open(random_network(), "torch")
    pipeline = SimpleNamespace(run=lambda batch, outputs: engine._pipeline.run(home._tensor(batch), outputs))
    assert_threads_can_share(pipeline, 1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_can_not_use_a_gpu():
    """It is refused before the lock, which another thread may hold for ever in the child."""
    code = """
import os
import torch
from vgg import Error
from vgg.engines.torch_pipeline import Pipeline
pipeline = Pipeline(lambda batch, outputs: {}, torch.float32, "cpu")
with pipeline.changing():
    if not (child := os.fork()):
        try:
            pipeline.run(torch.zeros(1, 3, 32, 32), ("logits",))
        except Error as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200, check=True)
    assert run.stdout.startswith("a GPU can't be used in a forked process; use the start method `spawn`")


def test_classifier_and_features_give_pixels_to_the_engine(monkeypatch):
    photo = np.random.default_rng(2).integers(0, 256, (40, 50, 3), np.uint8)
    network, dtypes = replace(random_network(), preprocessing=PRESETS["caffe"].for_crop(32)), []
    model, expected = Classifier(network, "torch"), Classifier(network, "onnxruntime")
    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda batch, *rest: dtypes.append(batch.dtype) or run(batch, *rest))
    assert_close({"": model.scores([photo])}, {"": expected.scores([photo])}, 1e-5)
    [found], [wanted] = (list(one.results([photo])) for one in (model, expected))
    assert [one.index for one in found.predictions] == [one.index for one in wanted.predictions]
    options = {"layers": "fc7", "protocol": "multi-crop", "flip": True}
    assert_close(model.features([photo], **options), expected.features([photo], **options), 1e-5)
    assert {*dtypes} == {np.dtype(np.uint8)}


def test_a_gpu_compiles_what_it_has_computed_for_long(monkeypatch):
    """The decision of an engine on a GPU, on the CPU."""
    engine, batch = engines.open(random_network(seed=5), "torch"), images(3)
    expected = engine.run(batch, ["conv1_1"])
    monkeypatch.setattr(engine, "device", "cuda")
    engine.run(batch, ["conv1_1"])
    assert not engine._computation.compiled
    monkeypatch.setattr(home, "COMPILE_AFTER", 0.0)
    for other in (images(1), images(2, 64, 64)):  # which compiling would not help
        engine.run(other, ["conv1_1"])
    assert not engine._computation.compiled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        engine.run(batch, ["conv1_1"])
    assert [*engine._computation.compiled] == [("conv1_1",)]
    assert_close(engine.run(batch, ["conv1_1"]), expected, 1e-6)
