"""Caffe's and Caffe2's messages, built from their protobuf descriptions, and files of them.

Caffe itself is not to be installed any more. The messages' fields are those of caffe.proto and caffe2.proto; protobuf's own
library encodes them, and for Caffe, OpenCV, which has the whole description, says whether the file is a genuine one.
"""

from functools import cache

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from vgg import Network

_OPTIONAL, _REPEATED = 1, 3
_KINDS = {"float": 2, "int64": 3, "int32": 5, "string": 9, "bytes": 12, "bool": 8, "double": 1}

# Each field: its number, its type, and whether it is repeated (*) or repeated and packed (+).
CAFFE = {
    "BlobShape": {"dim": (1, "int64+")},
    "BlobProto": {
        "num": (1, "int32"), "channels": (2, "int32"), "height": (3, "int32"), "width": (4, "int32"), "data": (5, "float+"),
        "shape": (7, "BlobShape"), "double_data": (8, "double+"),
    },
    "ConvolutionParameter": {
        "num_output": (1, "int32"), "pad": (3, "int32*"), "kernel_size": (4, "int32*"), "dilation": (18, "int32*"),
    },
    "InnerProductParameter": {"num_output": (1, "int32")},
    "PoolingParameter": {
        "pool": (1, "int32"), "kernel_size": (2, "int32"), "stride": (3, "int32"), "pad": (4, "int32"),
        "global_pooling": (12, "bool"),
    },
    "DropoutParameter": {"dropout_ratio": (1, "float")},
    "ReLUParameter": {"negative_slope": (1, "float")},
    "ELUParameter": {"alpha": (1, "float")},
    "InputParameter": {"shape": (1, "BlobShape*")},
    "LRNParameter": {"local_size": (1, "int32"), "alpha": (2, "float"), "beta": (3, "float"), "k": (5, "float")},
    "BatchNormParameter": {"use_global_stats": (1, "bool"), "eps": (3, "float")},
    "ScaleParameter": {"bias_term": (4, "bool")},
    "V1LayerParameter": {
        "bottom": (2, "string*"), "top": (3, "string*"), "name": (4, "string"), "type": (5, "int32"),
        "blobs": (6, "BlobProto*"),
        "convolution_param": (10, "ConvolutionParameter"), "inner_product_param": (17, "InnerProductParameter"),
        "lrn_param": (18, "LRNParameter"), "pooling_param": (19, "PoolingParameter"), "relu_param": (30, "ReLUParameter"),
        "dropout_param": (12, "DropoutParameter"),
    },
    "LayerParameter": {
        "name": (1, "string"), "type": (2, "string"), "bottom": (3, "string*"), "top": (4, "string*"),
        "blobs": (7, "BlobProto*"), "convolution_param": (106, "ConvolutionParameter"), "lrn_param": (118, "LRNParameter"),
        "inner_product_param": (117, "InnerProductParameter"), "pooling_param": (121, "PoolingParameter"),
        "batch_norm_param": (139, "BatchNormParameter"), "scale_param": (142, "ScaleParameter"),
        "dropout_param": (108, "DropoutParameter"), "relu_param": (123, "ReLUParameter"), "elu_param": (140, "ELUParameter"),
        "input_param": (143, "InputParameter"),
    },
    "NetParameter": {
        "name": (1, "string"), "layers": (2, "V1LayerParameter*"), "input": (3, "string*"), "input_dim": (4, "int32*"),
        "layer": (100, "LayerParameter*"),
    },
}  # fmt: skip
CAFFE2 = {
    "Argument": {
        "name": (1, "string"), "f": (2, "float"), "i": (3, "int64"), "s": (4, "bytes"), "floats": (5, "float*"),
        "ints": (6, "int64*"),
    },
    "OperatorDef": {"input": (1, "string*"), "output": (2, "string*"), "type": (4, "string"), "arg": (5, "Argument*")},
    "NetDef": {
        "name": (1, "string"), "op": (2, "OperatorDef*"), "external_input": (7, "string*"), "external_output": (8, "string*"),
    },
}  # fmt: skip
V1_TYPES = {
    "Concat": 3, "Convolution": 4, "Dropout": 6, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18, "Sigmoid": 19,
    "Softmax": 20, "Split": 22, "TanH": 23, "SigmoidCrossEntropyLoss": 27,
}  # fmt: skip
PARAMETERS = {
    "Convolution": "convolution_param", "InnerProduct": "inner_product_param", "Pooling": "pooling_param", "ReLU": "relu_param",
    "Dropout": "dropout_param", "ELU": "elu_param", "BatchNorm": "batch_norm_param", "Scale": "scale_param",
}  # fmt: skip


@cache
def messages(package: str) -> dict[str, type]:
    """The classes of a package's messages."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    described = CAFFE if package == "caffe" else CAFFE2
    for name, fields in described.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            made = message.field.add(name=field, number=number, label=_REPEATED if kind[-1] in "*+" else _OPTIONAL)
            bare = kind.rstrip("*+")
            if bare in _KINDS:
                made.type = _KINDS[bare]
                made.options.packed = kind.endswith("+")
            else:
                made.type, made.type_name = 11, f".{package}.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in described}


def caffe_model(network: Network, old: bool = False, legacy: bool = False, inputs: bool = False):
    """A network as a NetParameter, V1 (`old`) or V2, with blobs of four dimensions (`legacy`) or their own.

    With `inputs`, its input is declared and it has no blobs: what a prototxt says.
    """
    net = messages("caffe")["NetParameter"](name="VGG")
    architecture = network.architecture
    if inputs:
        net.input.append("data")
        net.input_dim.extend((1, 3, architecture.input_size, architecture.input_size))

    def blob(layer, value):
        value = np.asarray(value, np.float32)
        if inputs:
            return
        made = layer.blobs.add(data=value.ravel().tolist())
        if legacy:
            made.num, made.channels, made.height, made.width = (1,) * (4 - value.ndim) + value.shape
        else:
            made.shape.dim.extend(value.shape)

    def add(kind, name, bottom, top, **options):
        layers = net.layers if old else net.layer
        made = layers.add(name=name, type=V1_TYPES[kind] if old else kind, bottom=[bottom], top=[top])
        for key, message in options.items():
            for field, value in message.items():
                if isinstance(value, list):
                    getattr(getattr(made, key), field).extend(value)
                else:
                    setattr(getattr(made, key), field, value)
        return made

    def parameter(name):
        return network.parameters[name]

    value = "data"
    for layer in architecture.layers:
        if layer.operation == "convolution":
            out, _, kernel, _ = layer.parameters["weight"]
            said = {"num_output": out, "pad": [kernel // 2], "kernel_size": [kernel]}
            made = add("Convolution", layer.name, value, layer.name, convolution_param=said)
            blob(made, parameter(f"{layer.name}.weight"))
            blob(made, parameter(f"{layer.name}.bias"))
            value = layer.name
        elif layer.operation == "batch_norm":
            made = add(
                "BatchNorm", layer.name, value, value, batch_norm_param={"eps": architecture.epsilon, "use_global_stats": True}
            )
            count = 4.0  # Caffe keeps sums and how many they are of
            blob(made, parameter(f"{layer.name}.mean") * count)
            blob(made, parameter(f"{layer.name}.variance") * count)
            blob(made, [count])
            made = add("Scale", f"{layer.name}_scale", value, value, scale_param={"bias_term": True})
            blob(made, parameter(f"{layer.name}.scale"))
            blob(made, parameter(f"{layer.name}.bias"))
        elif layer.operation == "relu":
            add("ReLU", f"relu_{layer.name}", value, value)
        elif layer.operation == "lrn":
            add("LRN", "norm1", value, "norm1", lrn_param={"local_size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0})
            value = "norm1"
        elif layer.operation == "max_pool":
            add("Pooling", layer.name, value, layer.name, pooling_param={"pool": 0, "kernel_size": 2, "stride": 2})
            value = layer.name
        elif layer.operation == "linear":
            weight = np.asarray(parameter(f"{layer.name}.weight"))
            made = add("InnerProduct", layer.name, value, layer.name, inner_product_param={"num_output": weight.shape[0]})
            blob(made, weight.reshape(len(weight), -1))
            blob(made, parameter(f"{layer.name}.bias"))
            value = layer.name
            if layer.name != "fc8":
                add("Dropout", f"drop_{layer.name}", value, value)
    if architecture.classifier:
        add("Softmax", "prob", value, "prob")
    return net


def append(net, kind: str, name: str, bottom: str, top: str = "", blobs=(), **options):
    """Append a layer to a NetParameter, V1 if its others are; `options` are its parameters."""
    old = len(net.layers) > 0
    made = (net.layers if old else net.layer).add(
        name=name, type=V1_TYPES[kind] if old else kind, bottom=[bottom], top=[top or name]
    )
    for value in blobs:
        made.blobs.add(data=np.ravel(value).tolist()).shape.dim.extend(np.shape(value))
    for field, value in options.items():
        content = getattr(made, PARAMETERS[kind])
        getattr(content, field).extend(value) if isinstance(value, list) else setattr(content, field, value)


def caffe2_nets(network: Network):
    """A network as the NetDefs of init_net.pb and predict_net.pb."""
    kinds = messages("caffe2")
    init, predict = kinds["NetDef"](name="init"), kinds["NetDef"](name="VGG", external_input=["data"])
    for name, value in network.parameters.items():
        value = np.asarray(value).reshape(len(value), -1) if name == "fc6.weight" else np.asarray(value)
        fill = init.op.add(type="GivenTensorFill", output=[name])
        fill.arg.add(name="shape", ints=value.shape)
        fill.arg.add(name="values", floats=value.ravel().tolist())
        predict.external_input.append(name)
    value = "data"

    def add(kind, inputs, output, **arguments):
        made = predict.op.add(type=kind, input=inputs, output=[output])
        for name, content in arguments.items():
            made.arg.add(name=name, **{"i" if isinstance(content, int) else "f": content})

    for layer in network.architecture.layers:
        names = [f"{layer.name}.{role}" for role in layer.parameters]
        if layer.operation == "convolution":
            kernel = layer.parameters["weight"][2]
            add("Conv", [value, *names], layer.name, kernel=kernel, pad=kernel // 2, stride=1)
        elif layer.operation == "batch_norm":
            add("SpatialBN", [value, *names], value, epsilon=network.architecture.epsilon, is_test=1)
            continue
        elif layer.operation == "relu":
            add("Relu", [value], value)
            continue
        elif layer.operation == "lrn":
            add("LRN", [value], "norm1", size=5, alpha=5e-4, beta=0.75, bias=2.0)
            value = "norm1"
            continue
        elif layer.operation == "max_pool":
            add("MaxPool", [value], layer.name, kernel=2, stride=2, pad=0)
        elif layer.operation == "linear":
            add("FC", [value, *names], layer.name)
        if layer.operation not in ("flatten", "dropout"):
            value = layer.name
        if layer.operation == "dropout":
            add("Dropout", [value], value, ratio=0.5, is_test=1)
    if network.architecture.classifier:
        add("Softmax", [value], "prob")
    predict.external_output.append("prob" if network.architecture.classifier else value)
    return init, predict
