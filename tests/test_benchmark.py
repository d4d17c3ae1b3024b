import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from conftest import needs_native, random_network
from vgg import Architecture, Error, Network, Quantized, engines
from vgg.benchmark import WARM_UP, Comparison, Timing, compare, side_by_side
from vgg.engines import processor
from vgg.limits import Machine, Work, work
from vgg.preprocessing import PRESETS

ENGINES = ("native", "onnxruntime") if engines.native_library() else ("onnxruntime",)


# By hand: multiply-adds an image with a quarter of those of every 3x3 convolution but the first, bytes of linear weights in
# float32, and of convolution weights at 36 float32 for nine weights, but for the first one's 1,728 plain ones.
FIRST, HEAD = 224 * 224 * 27 * 64, 25088 * 4096 + 4096 * 4096 + 4096 * 1000
BY_HAND = {
    "vgg16": (FIRST + HEAD + (15_470_264_320 - FIRST - HEAD) // 4, 4 * HEAD, 4 * 1728 + 16 * (14_710_464 - 1728)),
    "vgg19": (FIRST + HEAD + (19_632_062_464 - FIRST - HEAD) // 4, 4 * HEAD, 4 * 1728 + 16 * (20_018_880 - 1728)),
}


def full_size(name: str, **options) -> Network:
    """A network of the paper's width that takes no memory."""
    architecture = Architecture(name, **options)
    parameters = {key: np.broadcast_to(np.float32(0), shape) for key, shape in architecture.parameters.items()}
    return Network(architecture, parameters, PRESETS["torchvision"])


def total(found: dict[str, Work]) -> Work:
    return sum(found.values(), Work(0, 0))


class Sleeper:
    """A runner that takes a given time and records its calls."""

    def __init__(self, name: str, seconds: float, diary: list[tuple[str, float]]) -> None:
        self.name, self.seconds, self.diary = name, seconds, diary

    def logits(self, batch: np.ndarray) -> np.ndarray:
        self.diary.append((self.name, time.perf_counter()))
        time.sleep(self.seconds)
        return batch


@pytest.mark.parametrize("name", BY_HAND)
def test_work_is_what_was_counted_by_hand(name):
    multiply_adds, linear, convolutions = BY_HAND[name]
    found = work(full_size(name))
    assert total(found).multiply_adds == multiply_adds
    assert sum(one.weight_bytes for value, one in found.items() if not value.startswith("conv")) == linear
    assert sum(one.weight_bytes for value, one in found.items() if value.startswith("conv")) == convolutions
    assert list(found)[:2] + list(found)[-3:] == ["conv1_1", "conv1_2", "fc6", "fc7", "logits"]
    assert work(full_size(f"{name}-bn")) == found


def test_a_1x1_convolution_is_counted_directly():
    assert work(full_size("vgg16-c"))["conv3_3"] == Work(256 * 256 * 56 * 56, 4 * 256 * 256)
    assert work(full_size("vgg16"))["conv3_3"] == Work(256 * 256 * 9 * 56 * 56 / 4, 16 * 256 * 256 * 9)


def test_linear_weights_count_as_they_are_stored():
    plain = random_network()
    weight = plain.parameters["fc7.weight"]
    rows, columns = weight.shape
    scale = np.ones(rows, np.float32)
    for stored, size in (
        (weight.astype(np.float16), 2 * rows * columns),
        (Quantized(np.ones(weight.shape, np.int8), scale), rows * columns + 4 * rows),
        (Quantized(np.ones(weight.shape, ml_dtypes.int4), np.ones((rows, columns // 32), np.float32), group=32),
         rows * columns / 2 + 4 * rows * columns / 32),
    ):  # fmt: skip
        network = Network(plain.architecture, {**plain.parameters, "fc7.weight": stored}, plain.preprocessing)
        assert work(network)["fc7"] == Work(rows * columns, size)


@pytest.mark.parametrize(
    ("name", "batch", "expected"), [("vgg16", 1, 0.117000), ("vgg16", 8, 0.680545), ("vgg19", 1, 0.142056)]
)
def test_the_limit_is_arithmetic_and_reading(name, batch, expected):
    # 8.050639 GFLOP and 729.881344 MB for VGG-16, 10.131538 GFLOP and 814.816 MB for VGG-19, at 100 GFLOP/s and 20 GB/s.
    comparison = Comparison(batch, 1, (), work(full_size(name)), Machine(100e9, 20e9))
    assert comparison.limit == pytest.approx(expected, abs=1e-6)


def test_figures_of_known_times():
    ours, theirs = Timing("native", (1.0, 4.0, 9.0), {"conv1_1": 0.5, "pool1": 0.0}), Timing("onnxruntime", (2.0, 2.0, 10.0))
    comparison = Comparison(2, 4, (ours, theirs), {"conv1_1": Work(5e8, 1e9)}, Machine(1e10, 1e10))
    assert comparison.ratio(ours) == 0.9  # of 0.5, 2 and 0.9; the medians' ratio would be 2
    assert comparison.ratio(theirs) == 1
    assert comparison.ratio(ours, "torch") is None
    assert comparison.limit == pytest.approx(0.3)
    assert comparison.record(ours) == {
        "engine": "native", "batch": 2, "threads": 4, "rounds": 3, "ms": 2000, "ms_min": 500, "ms_q1": 1250, "ms_q3": 3250,
        "ms_max": 4500, "vs_onnxruntime": 0.9, "ms_limit": 150, "of_limit": 0.075, "gflops": 10, "gb_per_s": 10,
    }  # fmt: skip
    assert comparison.layers(ours) == {"conv1_1": (250, 0.6)}
    wider = replace(comparison, others={"native": {"conv1_1": Work(1e9, 2e9)}})  # twice the work
    assert wider.record(ours)["ms_limit"] == 300
    assert wider.layers(ours) == {"conv1_1": (250, 1.2)}
    named = replace(comparison, timings=(ours, replace(theirs, engine="onnxruntime, float32")))
    assert named.ratio(ours) == 0.9


def test_rounds_have_everyone_once_after_a_pause_and_begin_with_another_one():
    diary: list[tuple[str, float]] = []
    runners = {name: Sleeper(name, seconds, diary) for name, seconds in (("short", 0.01), ("long", 0.03))}
    ticks: list[tuple] = []
    found = side_by_side(runners, np.zeros((3, 3, 32, 32), np.float32), {}, 1, 3, lambda *done: ticks.append(done))
    names = [name for name, _ in diary]
    assert names[: 2 * WARM_UP] == ["short"] * WARM_UP + ["long"] * WARM_UP
    rounds = [tuple(names[start : start + 2]) for start in range(2 * WARM_UP, len(names), 2)]
    assert set(rounds) == {("short", "long"), ("long", "short")}
    assert ticks == [("Measuring", done, 6) for done in range(1, 7)]
    starts = [start for _, start in diary[2 * WARM_UP :]]
    assert np.diff(starts).min() > 0.05
    short, long = found.timings
    assert (found.batch, found.threads, short.engine, len(short.seconds), len(long.seconds)) == (3, 1, "short", 3, 3)
    assert 0.01 <= short.quantile(0.5) < long.quantile(0.5)
    assert min(long.seconds) >= 0.03


def test_engines_are_compared_for_each_batch_size_and_number_of_threads():
    ticks: list[tuple] = []
    options = {"batch_sizes": (1, 3), "threads": (1, 2), "rounds": 1, "beside": {"wide": random_network(width=1 / 8)}}
    found = list(compare(random_network(), ENGINES, **options, progress=lambda *done: ticks.append(done)))
    assert ticks == [("Measuring", done, 8 * len(ENGINES)) for done in range(1, 8 * len(ENGINES) + 1)]
    assert [(one.threads, one.batch) for one in found] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for one in found:
        assert [timing.engine for timing in one.timings] == [*ENGINES, *(f"{name}, wide" for name in ENGINES)]
        assert all(timing.seconds[0] > 0 for timing in one.timings)


@needs_native
def test_the_native_engine_tells_its_layers_and_the_machine_is_measured():
    (one,) = compare(random_network(), ENGINES, threads=(1,), rounds=2)
    ours, theirs = one.timings
    assert {"conv1_1", "conv3_2", "fc6", "logits"} <= set(one.layers(ours)) <= set(random_network().architecture.values)
    assert "pool5" not in one.layers(ours)  # the convolution before it does it on the way
    assert not theirs.layers
    assert 1e8 < one.machine.flops < 1e13
    assert 1e8 < one.machine.bandwidth < 1e12
    assert 0 < one.limit < ours.quantile(0.5)


@needs_native
@pytest.mark.parametrize(
    "head", ["average 2 batch-norm, 40 gelu, 30, classes sigmoid", "classes binary", "5, classes tanh", "none"]
)
def test_any_head_and_a_backbone_are_measured(head):
    network = random_network("vgg11-bn", head=head, input_size=64, classes={"none": 0, "classes binary": 2}.get(head, 7))
    [found] = compare(network, ("native", "onnxruntime", "torch"), rounds=2, beside={"other": network})
    assert len(found.timings) == 6
    assert all(min(timing.seconds) > 0 for timing in found.timings)
    measured = found.timings[0].layers
    assert set(found.work) == set(measured) - {name for name in measured if name.startswith("pool")}
    assert list(measured)[-1] == network.architecture.values[-1]


def test_without_the_native_engine_there_is_no_limit(monkeypatch):
    monkeypatch.setattr(engines, "installed", lambda: ("onnxruntime",))
    (one,) = compare(random_network(), ("onnxruntime",), threads=(1,), rounds=1)
    assert one.machine is one.limit is None
    record = one.record(one.timings[0])
    assert [record[name] for name in ("ms_limit", "of_limit", "gflops", "gb_per_s")] == [None] * 4
    assert record["vs_onnxruntime"] == 1


@pytest.mark.parametrize(
    ("names", "options", "line"),
    [
        (("onnxruntime", "abacus"), {}, "unknown engine 'abacus'"),
        (("onnxruntime",), {"threads": (0,)}, "threads must be 1 or more"),
        (("onnxruntime",), {"batch_sizes": (1, 0)}, "batch sizes and rounds must be 1 or more"),
        (("onnxruntime",), {"rounds": 0}, "batch sizes and rounds must be 1 or more"),
    ],
)
def test_what_can_not_be_measured_is_said(names, options, line):
    with pytest.raises(Error, match=line):
        list(compare(random_network(), names, **options))


def test_the_processor_has_a_name():
    assert processor().strip()
