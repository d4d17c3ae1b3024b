import re
import warnings
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest

from conftest import needs_native, random_network
from vgg import LowRank, ModelError, Network, Notice, Quantized, engines
from vgg.formats import metadata, onnx_file
from vgg.quantization import integers, noise, quantize_weights

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 3, 64, 64)).astype(np.float32)


def network(**options) -> Network:
    return random_network("vgg11", width=1 / 8, input_size=64, **options)


def low_rank(plain: Network) -> Network:
    """With fc6 and fc7 as products."""
    parameters = dict(plain.parameters)
    for name in ("fc6.weight", "fc7.weight"):
        units, *inputs = parameters[name].shape
        left, right = RNG.normal(size=(units, 70)), RNG.normal(0, 0.01, size=(70, *inputs))
        parameters[name] = LowRank(left.astype(np.float32), right.astype(np.float32))
    return replace(plain, parameters=parameters)


@pytest.mark.parametrize(("limit", "group"), [(127, 0), (127, 64), (64, 0), (7, 0), (7, 128), (7, 50)])
def test_no_scale_does_better_than_the_one_that_is_found(limit, group):
    value = RNG.standard_t(3, size=(10, 30, 3, 3)).astype(np.float32)
    stored = integers(value, limit, group)
    assert stored.values.dtype == (np.int8 if limit > 7 else ml_dtypes.int4)
    assert stored.values.astype(int).max() <= limit
    assert stored.values.astype(int).min() >= (-8 if limit == 7 else -limit)
    rows = np.pad(value.reshape(10, -1), ((0, 0), (0, -270 % (group or 270)))).reshape(10, -1, group or 270)
    found = np.pad(stored.dequantize().reshape(10, -1), ((0, 0), (0, -270 % (group or 270)))).reshape(rows.shape)
    error = ((found - rows) ** 2).sum(2)
    for share in (0.5, 0.8, 0.9, 1):
        scale = np.abs(rows).max(2, keepdims=True) / limit * share
        other = ((np.rint(rows / scale).clip(-limit, limit) * scale - rows) ** 2).sum(2)
        assert error.sum() <= other.sum() * 1.1  # 0.4 dB more, for the balance


@pytest.mark.parametrize("limit", [127, 7])
def test_zero_points_reach_where_the_numbers_are(limit):
    value = RNG.normal(size=(10, 30, 3, 3)).astype(np.float32) - 2
    value[3:6] *= -1
    value[6] = np.abs(value[6])
    found, plain = integers(value, limit, zero_points=True), integers(value, limit)
    assert found.zero_point.dtype == found.values.dtype == plain.values.dtype
    assert plain.zero_point is None
    assert noise(value, found) > noise(value, plain) + 3


@pytest.mark.parametrize(("limit", "group", "zero_points"), [(127, 0, False), (7, 90, False), (127, 0, True), (7, 90, True)])
def test_errors_are_balanced(limit, group, zero_points):
    value = RNG.uniform(-1, 1, size=(40, 30, 3, 3)).astype(np.float32)
    stored = integers(value, limit, group, zero_points=zero_points)
    scale = stored.scale.reshape(40, -1, 1)
    zero = stored.zero_point.astype(np.float32).reshape(scale.shape) if zero_points else 0
    wanted = value.reshape(40, -1, group or 270) / scale + zero
    wanted = wanted.clip(-limit - (limit == 7), limit)  # clipping errors are not balanced
    errors, plain = stored.values.astype(np.float32).reshape(wanted.shape) - wanted, np.rint(wanted) - wanted
    assert np.abs(errors.sum(2)).max() < 0.51
    filters = [np.square(one.reshape(40, 30, 9).sum(2)).mean() for one in (errors, plain)]
    assert filters[0] < filters[1] * (0.4 if limit == 127 else 1)


def test_balanced_layers_are_nearer_on_what_they_get():
    plain, image = network(), np.maximum(RNG.normal(size=(2, 3, 64, 64)), 0).astype(np.float32)
    stored = quantize_weights(plain, layers=["conv2_1"]).parameters["conv2_1.weight"]
    value = plain.parameters["conv2_1.weight"]
    nearest = np.rint(value / stored.scale[:, None, None, None]).clip(-127, 127)
    rounded = replace(stored, values=nearest.astype(np.int8))
    losses = []
    for one in (stored, rounded):
        changed = replace(plain, parameters={**plain.parameters, "conv2_1.weight": one})
        found, expected = (engines.open(n, "onnxruntime").run(image, ("conv2_1",))["conv2_1"] for n in (changed, plain))
        losses.append(np.square(found - expected).mean())
    assert losses[0] < losses[1]


def test_rows_of_nothing_and_of_one_number_are_exact():
    value = np.zeros((3, 5), np.float32)
    value[1] = -0.37
    assert np.array_equal(integers(value).dequantize()[[0, 2]], value[[0, 2]])
    np.testing.assert_allclose(integers(value).dequantize(), value, rtol=1e-6)


def test_a_turned_array_is_read_as_it_lies():
    value = RNG.normal(size=(70, 600)).astype(np.float32)
    one, other = integers(value), integers(np.asfortranarray(value))
    assert np.array_equal(one.values, other.values)


def test_noise_in_decibels():
    value = RNG.uniform(-1, 1, (4, 100_000)).astype(np.float32)
    assert noise(value, integers(value)) == pytest.approx(20 * np.log10(2 * 127), abs=0.1)  # of uniform numbers
    assert noise(value, value) == np.inf


def kept_in(path) -> dict[str, str]:
    types = {onnx.TensorProto.INT8: "int8", onnx.TensorProto.INT4: "int4", onnx.TensorProto.FLOAT: "float32"}
    return {one.name: types[one.data_type] for one in onnx.load(path).graph.initializer if ".weight" in one.name}


HEADS = {
    "plain": "fc", "low rank": "fc", "gap": "gap", "backbone": "none",
    "head": "average 2 batch-norm, 41 gelu batch-norm, 30 silu, 29, classes sigmoid",
}  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("form", HEADS)
def test_every_engine_reads_the_written_file_alike(tmp_path, bits, form):
    plain = network(head=HEADS[form], classes=0 if form == "backbone" else 7)
    made = quantize_weights(low_rank(plain) if form == "low rank" else plain, bits)
    made.write(tmp_path / "n.onnx", opset=21)
    onnx.checker.check_model(tmp_path / "n.onnx", full_check=True)
    again = Network.read(tmp_path / "n.onnx")
    assert again.sha256() == made.sha256() == onnx_file.scan(tmp_path / "n.onnx").metadata[metadata.SHA256]
    kinds = kept_in(tmp_path / "n.onnx")
    assert {kind for name, kind in kinds.items() if name.startswith("conv") and not name.endswith(".scale")} == {"int8"}
    assert kinds.get("fc8.weight") == (None if form == "backbone" else f"int{bits}")
    last = made.architecture.values[-1]
    expected = onnxruntime.InferenceSession(tmp_path / "n.onnx").run(None, {"data": IMAGES})[0]
    for engine in engines.installed():
        found = engines.open(again, engine).run(IMAGES, (last,))[last]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=engine)


def test_a_convolution_gets_zero_points_where_one_scale_is_too_coarse(tmp_path):
    """As VGG-19's deep layers have it: a few numbers of a row far larger than all others, and of one sign."""
    plain = network()
    value = plain.parameters["conv3_2.weight"].copy()
    value.reshape(len(value), -1)[:, 7] = 14 * value.std()
    plain = replace(plain, parameters={**plain.parameters, "conv3_2.weight": value})
    made = quantize_weights(plain)
    assert [name for name, one in made.parameters.items() if isinstance(one, Quantized) and one.zero_point is not None] == [
        "conv3_2.weight"
    ]
    assert noise(value, integers(value)) < 35 < noise(value, made.parameters["conv3_2.weight"])
    made.write(tmp_path / "n.onnx", names="zoo")
    onnx.checker.check_model(tmp_path / "n.onnx", full_check=True)
    assert Network.read(tmp_path / "n.onnx").sha256() == made.sha256()
    expected = onnxruntime.InferenceSession(tmp_path / "n.onnx").run(None, {"data": IMAGES})[0]
    for engine in engines.installed():
        found = engines.open(Network.read(tmp_path / "n.onnx"), engine).logits(IMAGES)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=engine)


@pytest.mark.parametrize("options", [{"names": "zoo"}, {"dense": True}, {"outputs": ["fc6", "conv3_1"]}])
@pytest.mark.parametrize("group", [0, 30])
def test_forms_are_undone_by_reading(tmp_path, options, group):
    made = low_rank(quantize_weights(network(), 4)) if group else quantize_weights(low_rank(network()), 4)
    if group:
        made = quantize_weights(low_rank(network()), 8, group=group)
    made.write(tmp_path / "n.onnx", opset=21, **options)
    onnx.checker.check_model(tmp_path / "n.onnx", full_check=True)
    assert Network.read(tmp_path / "n.onnx").sha256() == made.sha256()


def test_what_changed_the_file_leaves_its_graph_to_be_read(tmp_path):
    made = quantize_weights(low_rank(network()), 4)
    made.write(tmp_path / "n.onnx", opset=21)
    model = onnx.load(tmp_path / "n.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.warns(Notice):
        again = Network.read(tmp_path / "n.onnx")
    assert again.sha256() == made.sha256()


@pytest.mark.parametrize(("opset", "kept"), [(7, ()), (12, ()), (13, ("int8",)), (20, ("int8",)), (21, ("int8", "int4"))])
def test_what_an_opset_has_no_words_for_is_expanded_with_one_line(tmp_path, opset, kept):
    made = quantize_weights(network(), 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.write(tmp_path / "n.onnx", opset=opset)
    assert len(caught) == ("int4" not in kept)
    assert all(re.search(r": expanded \d+ quantized weights to float32", str(one.message)) for one in caught)
    kinds = kept_in(tmp_path / "n.onnx")
    assert {kinds["conv1_1.weight"], kinds["fc6.weight"]} == {*kept, *(() if len(kept) == 2 else ("float32",))}
    found = onnxruntime.InferenceSession(tmp_path / "n.onnx").run(None, {"data": IMAGES})[0]
    expected = engines.open(made, "onnxruntime").logits(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@needs_native
def test_int4_stays_packed_in_the_native_engine():
    from vgg.engines.native_layers import INT4, _in_place

    weight = quantize_weights(network(), 4).parameters["fc6.weight"]
    values, kind, scale, group = _in_place(weight)
    assert (kind, group, values.nbytes) == (INT4, 128, np.prod(weight.shape) // 2)
    assert scale is not None


def test_fine_layers_have_8_bits_and_others_are_left_alone():
    made = quantize_weights(network(), 4, int8_layers=["fc8"], layers=["fc7", "fc8"])
    kinds = {name: one.values.dtype.name for name, one in made.parameters.items() if isinstance(one, Quantized)}
    assert kinds == {"fc7.weight": "int4", "fc8.weight": "int8"}


def test_a_network_that_is_quantized_already_is_refused():
    with pytest.raises(ModelError, match=r"conv1_1\.weight is already quantized"):
        quantize_weights(quantize_weights(network()))


def test_4_bits_are_not_for_safetensors(tmp_path):
    with pytest.raises(ModelError, match="safetensors has no 4-bit numbers"):
        quantize_weights(network(), 4).write(tmp_path / "n.safetensors")
    made = quantize_weights(low_rank(network()))
    made.write(tmp_path / "n.safetensors")
    assert Network.read(tmp_path / "n.safetensors").sha256() == made.sha256()
