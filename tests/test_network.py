from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_network
from vgg import Labels, LowRank, ModelError, Network, Quantized
from vgg.parameters import blocks, contiguous


def quantized(value: np.ndarray, zero_point: bool = False) -> Quantized:
    """Symmetric int8 per output channel, or asymmetric uint8 when it has a zero point."""
    flat = value.reshape(len(value), -1)
    dims = (-1, *[1] * (value.ndim - 1))
    if zero_point:
        scale = ((flat.max(1) - flat.min(1)) / 255).astype(np.float32)
        zero = np.rint(-flat.min(1) / scale).clip(0, 255).astype(np.uint8)
        values = (np.rint(value / scale.reshape(dims)) + zero.reshape(dims)).clip(0, 255).astype(np.uint8)
        return Quantized(values, scale, zero)
    scale = (np.abs(flat).max(1) / 127).astype(np.float32)
    return Quantized(np.rint(value / scale.reshape(dims)).astype(np.int8), scale)


def test_a_missing_an_extra_and_a_misshapen_parameter_are_named():
    network = random_network()
    parameters = dict(network.parameters)
    with pytest.raises(ModelError, match=r"vgg11 has no parameter conv9_9\.weight"):
        replace(network, parameters={**parameters, "conv9_9.weight": np.zeros(1)})
    with pytest.raises(ModelError, match=r"parameter fc8\.bias of vgg11 has the shape \[8\]; expected \[7\]"):
        replace(network, parameters={**parameters, "fc8.bias": np.zeros(8)})
    del parameters["conv3_2.weight"]
    with pytest.raises(ModelError, match=r"parameter conv3_2\.weight \[16, 16, 3, 3\] of vgg11 is missing"):
        replace(network, parameters=parameters)


def test_labels_must_be_as_many_as_the_classes():
    with pytest.raises(ModelError, match="2 labels for a network of 7 classes"):
        random_network(labels=Labels(("cat", "dog")))


@pytest.mark.parametrize("zero_point", [False, True])
def test_a_quantized_parameter_is_near_its_value(zero_point):
    value = np.random.default_rng(0).normal(size=(6, 5, 3, 3)).astype(np.float32)
    stored = quantized(value, zero_point)
    assert np.abs(stored.dequantize() - value).max() <= stored.scale.max() * 0.51
    assert np.array_equal(stored.take(slice(2, 5)), stored.dequantize()[2:5])


def test_groups_along_a_row_have_scales_of_their_own():
    values = np.arange(12, dtype=np.int8).reshape(2, 6)
    stored = Quantized(values, np.array([[1, 10], [100, 1000]], np.float32), group=4)
    expected = values * np.array([[1, 1, 1, 1, 10, 10], [100, 100, 100, 100, 1000, 1000]], np.float32)
    assert np.array_equal(stored.dequantize(), expected)
    assert np.array_equal(stored.take(slice(1, 2)), expected[1:])


def test_a_product_of_halves_is_computed_in_float32():
    left, right = (np.random.default_rng(0).normal(size=shape).astype(np.float16) for shape in ((4, 64), (64, 5)))
    found = LowRank(left, right).take(slice(1, 3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (left.astype(np.float64) @ right)[1:3], rtol=1e-4)


def test_scales_of_the_wrong_shape_are_refused():
    with pytest.raises(ModelError, match=r"needs scales of shape \[2\]"):
        Quantized(np.zeros((2, 6), np.int8), np.ones(6, np.float32))


@given(st.permutations(range(4)), st.sampled_from(["<f4", ">f4", "<f2"]))
def test_blocks_give_an_array_of_any_strides_piece_by_piece(axes, dtype):
    array = np.random.default_rng(0).normal(size=(3, 70, 50, 60)).astype(dtype).transpose(axes)
    pieces = list(blocks(array, np.float32))
    assert all(piece.flags.c_contiguous and piece.dtype == np.float32 for piece in pieces)
    assert np.array_equal(np.concatenate(pieces), array.astype(np.float32))
    assert np.array_equal(contiguous(array), array)


def test_the_hash_is_of_the_numbers_and_not_of_how_they_lie():
    network = random_network()
    turned = {
        name: np.ascontiguousarray(np.asarray(value).T).T if np.ndim(value) > 1 else value
        for name, value in network.parameters.items()
    }
    assert replace(network, parameters=turned).sha256() == network.sha256()
    changed = dict(network.parameters)
    changed["fc8.bias"] = np.nextafter(changed["fc8.bias"], np.inf)
    assert replace(network, parameters=changed).sha256() != network.sha256()


@pytest.mark.parametrize("name", ["vgg11-bn", "vgg19-bn"])
def test_folding_batch_normalisation_keeps_the_function(name):
    from vgg import engines

    network = random_network(name, epsilon=1e-3)
    folded = network.fold_batch_norm()
    assert folded.architecture.name == name.removesuffix("-bn")
    assert set(folded.parameters) == set(folded.architecture.parameters)
    images = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    before, after = (engines.open(one).logits(images) for one in (network, folded))
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    assert folded.fold_batch_norm().sha256() == folded.sha256()


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
@pytest.mark.parametrize("zero_point", [False, True])
def test_quantized_parameters_survive_a_file_exactly(tmp_path, suffix, zero_point):
    network = random_network()
    stored = {
        name: quantized(value, zero_point) if name.endswith("weight") else value for name, value in network.parameters.items()
    }
    network = replace(network, parameters=stored)
    network.write(tmp_path / f"n{suffix}")
    again = Network.read(tmp_path / f"n{suffix}")
    assert again.sha256() == network.sha256()
    assert isinstance(again.parameters["fc6.weight"], Quantized)
    assert np.array_equal(again.parameters["fc6.weight"].dequantize(), stored["fc6.weight"].dequantize())
