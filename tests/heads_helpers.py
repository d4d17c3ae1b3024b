"""Heads and files for tests of any head."""

from pathlib import Path

import onnx
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from vgg.heads import ACTIVATIONS, Head, Step

ACTIVATION = st.sampled_from([Step(name, number) for name, number in ACTIVATIONS.items()] + [Step("leaky_relu", 0.25)])
NORM = st.just(Step("batch_norm"))


@st.composite
def heads(draw: st.DrawFn) -> Head:
    """Any head of one to four linear layers."""
    pooling = draw(st.sampled_from(["flatten", "average", "max"]))
    side = draw(st.sampled_from([1, 2, 3])) if pooling == "average" else 1
    steps = draw(st.lists(NORM, max_size=1))
    count = draw(st.integers(1, 4))
    for number in range(count):
        last = number == count - 1
        steps.append(Step("linear", 0 if last else draw(st.integers(1, 40))))
        norm = draw(st.lists(NORM, max_size=1))
        activation = draw(st.lists(ACTIVATION, max_size=1))
        before = last or draw(st.booleans())  # the output is not that of a normalisation
        steps += norm + activation if before or not activation else activation + norm
        steps += [] if last else draw(st.lists(st.just(Step("dropout", 0.3)), max_size=1))
    return Head(tuple(steps), pooling, side, draw(st.sampled_from(["softmax", "sigmoid", "binary"])))


CHANNELS = st.one_of(st.just(()), st.lists(st.integers(4, 40), min_size=8, max_size=8).map(tuple))


def run_onnx(path, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def without_gemm(path: Path) -> None:
    """Rewrite each Gemm as MatMul and Add, as the Intel Neural Compressor did before it quantized."""
    model = onnx.load(path)
    nodes = []
    weights = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Gemm":
            data, weight, bias = node.input
            turned = numpy_helper.from_array(numpy_helper.to_array(weights[weight]).T.copy(), weight)
            weights[weight].CopyFrom(turned)
            nodes.append(helper.make_node("MatMul", [data, weight], [f"{node.output[0]}.product"]))
            nodes.append(helper.make_node("Add", [f"{node.output[0]}.product", bias], list(node.output)))
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.metadata_props[:]
    onnx.save(model, path)
