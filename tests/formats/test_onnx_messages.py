"""What is written without the onnx package is what that package would write."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from conftest import random_network
from vgg.formats import onnx_builder, onnx_file
from vgg.formats.nodes import Node
from vgg.formats.onnx_builder import OnnxOptions
from vgg.formats.onnx_messages import DATA_TYPES, Graph, external_tensor, tensor
from vgg.quantization import quantize_weights

NETWORKS = {
    "plain": random_network(),
    "normed": random_network("vgg11-bn", head="average, 8 gelu-tanh, 8 elu, 8 leaky-relu 0.2, classes sigmoid"),
    "int4": quantize_weights(random_network("vgg11-lrn"), 4),
}
OPTIONS = [{}, {"opset": 7}, {"softmax": True, "batch": 2}, {"bits": 16}, {"preprocessing": True}, {"opset": 28}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_has_the_bytes_of_the_onnx_package(name, options):
    graph, _ = onnx_builder.build(NETWORKS[name], OnnxOptions(**options))
    parsed = onnx.GraphProto.FromString(graph.body())
    assert parsed.SerializeToString(deterministic=True) == graph.body()
    for node, one in zip(parsed.node, graph.nodes, strict=True):
        attributes = {key: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for key, v in one.attributes.items()}
        assert node == helper.make_node(one.operator, one.inputs, one.outputs, one.outputs[0], **attributes)
    for port, one in zip((*parsed.input, *parsed.output), (*graph.inputs, *graph.outputs), strict=True):
        expected = helper.make_tensor_value_info(one.name, one.data_type, one.shape)
        for dim in port.type.tensor_type.shape.dim:
            dim.ClearField("denotation")
        port.type.ClearField("denotation")
        assert port == expected


@pytest.mark.parametrize("opset", range(onnx_builder.OLDEST, onnx_file.NEWEST + 1))
def test_the_ir_version_is_that_of_the_opset(opset):
    port = onnx_file.Port("x", 1, [1])
    model = onnx.ModelProto.FromString(Graph("g", opset, [Node("Relu", ("x",), ("y",), {})], [port], [port], "", {}).model())
    assert model.opset_import == [helper.make_opsetid("", opset)]
    if opset < 7:
        assert model.ir_version == 3
    else:
        assert model.ir_version == max(4, helper.find_min_ir_version_for(list(model.opset_import)))


def test_the_newest_version_is_known_to_the_onnx_package():
    assert onnx.defs.onnx_opset_version() >= onnx_file.NEWEST
    assert onnx.IR_VERSION >= onnx_file.NEWEST_IR


@pytest.mark.parametrize("dtype", [one for one in DATA_TYPES if one.name not in ("int4", "uint4")], ids=str)
def test_a_tensor_is_that_of_the_onnx_package(dtype):
    values = np.arange(6).reshape(2, 3).astype(dtype)
    ours = onnx.TensorProto.FromString(tensor("values", values))
    assert ours.SerializeToString(deterministic=True) == tensor("values", values)
    np.testing.assert_array_equal(numpy_helper.to_array(ours).astype(np.float64), values.astype(np.float64))
    name, again = onnx_file.tensor(numpy_helper.from_array(values, "values").SerializeToString())
    assert name == "values"
    np.testing.assert_array_equal(again, values)


def test_numbers_elsewhere_are_refused_or_named():
    message = external_tensor("w", DATA_TYPES[np.dtype(ml_dtypes.bfloat16)], (2, 3), "memory")
    found = onnx.TensorProto.FromString(message)
    assert (found.name, list(found.dims), found.data_location) == ("w", [2, 3], onnx.TensorProto.EXTERNAL)
    assert [(entry.key, entry.value) for entry in found.external_data] == [("location", "memory")]
    with pytest.raises(ValueError, match="in another file"):
        onnx_file.tensor(message)
