"""Names of tensors in the ONNX Model Zoo's files, by our names."""

from ..architectures import Architecture

PROBABILITIES = "probabilities"
# MXNet's exporter named the value of fc7 after a layer counter.
_FEATURES = {"vgg16": "flatten_70", "vgg16-bn": "flatten_135", "vgg19": "flatten_82", "vgg19-bn": "flatten_162"}
_GLUON = {"scale": "gamma", "bias": "beta", "mean": "running_mean", "variance": "running_var"}


def zoo_names(architecture: Architecture, softmax: bool) -> dict[str, str]:
    """The zoo's names of parameters and values: those of its Caffe2 files with a softmax, else those of its MXNet files."""
    convolutions = [layer for layer in architecture.layers if layer.operation == "convolution"]
    linear = [layer for layer in architecture.layers if layer.operation == "linear"]
    names: dict[str, str] = {}
    if softmax:
        for layer in (*convolutions, *linear):
            names |= {f"{layer.name}.weight": f"{layer.name}_w_0", f"{layer.name}.bias": f"{layer.name}_b_0"}
        return {**names, "data": "data_0", PROBABILITIES: "prob_1"}
    for kind, layers in (("conv", convolutions), ("dense", linear)):
        for index, layer in enumerate(layers):
            name = f"vgg0_{kind}{index}"
            relu = f"vgg0_relu{index}_fwd" if kind == "conv" else f"{name}_relu_fwd"
            names |= {f"{layer.name}.weight": f"{name}_weight", f"{layer.name}.bias": f"{name}_bias"}
            names |= {layer.value: f"{name}_fwd", layer.name: relu}
            norm = layer.name.replace("conv", "bn")
            names |= {f"{norm}.{ours}": f"vgg0_batchnorm{index}_{theirs}" for ours, theirs in _GLUON.items() if kind == "conv"}
            names[norm] = names.get(norm, f"vgg0_batchnorm{index}_fwd")
    names |= {f"pool{index}": f"vgg0_pool{index - 1}_fwd" for index in range(1, 6)}
    if architecture.name in _FEATURES:
        names["fc7"] = _FEATURES[architecture.name]
    return names
