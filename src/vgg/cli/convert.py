"""vgg convert"""

from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .common import LabelsOption, PresetOption


class Bits(Enum):
    half = "16"
    single = "32"


class Names(StrEnum):
    paper = "paper"
    zoo = "zoo"


class Layout(StrEnum):
    file = "file"
    triton = "triton"


def convert(
    source: Annotated[
        Path, typer.Argument(help="A model file: ONNX, torch, safetensors, Keras, MXNet, Caffe, Caffe2; or vgg16-gap.")
    ],
    to: Annotated[Path, typer.Option("-o", "--to", metavar="OUT", help="The file to write: .onnx or .safetensors.")],
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="ONNX opset, 3 or newer.  [default: 17]", show_default=False)
    ] = None,
    output: Annotated[
        list[str] | None, typer.Option("--output", metavar="NAME", help="A further output, such as fc7; may be repeated.")
    ] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="Give probabilities instead of logits.")] = False,
    batch: Annotated[
        int | None, typer.Option("--batch", metavar="N", help="A fixed number of images; any number without it.")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Take pictures of any size, give a map of scores: linear layers as convolutions.")
    ] = False,
    bits: Annotated[Bits, typer.Option("--bits", help="Bits of the floats in the file.")] = Bits.single,
    names: Annotated[Names, typer.Option("--names", help="Names of the tensors: the paper's or the zoo's.")] = Names.paper,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Take pixels, uint8 [batch, height, width, 3]; needs opset 18.")
    ] = False,
    fold_batch_norm: Annotated[
        bool, typer.Option("--fold-batch-norm", help="Fold batch normalisation into the convolutions.")
    ] = False,
    layout: Annotated[
        Layout, typer.Option("--layout", help="One file, or a folder for Triton and OpenVINO Model Server.")
    ] = Layout.file,
    preset: PresetOption = None,
    labels: LabelsOption = None,
) -> None:
    """Write a model file as ONNX that says how to use it.

    Example: `vgg convert vgg19_weights_tf_dim_ordering_tf_kernels.h5 -o vgg19.onnx`

    The new file carries the preprocessing, the labels and the origin, so that it alone is enough to classify rightly. An
    old ONNX file becomes a current one: `vgg convert vgg19-caffe2-9.onnx -o vgg19.onnx --softmax`
    """
    import warnings

    from ..classifier import described
    from ..network import Network
    from ..zoo import locate

    with warnings.catch_warnings():
        if preset is not None and labels is not None:  # then nothing is left to a guess
            warnings.filterwarnings("ignore", ".*doesn't say how it was trained")
        network = described(Network.read(locate(source)), preset, labels)
    if fold_batch_norm:
        network = network.fold_batch_norm()
    form: dict[str, Any] = {
        "opset": opset, "outputs": tuple(output or ()), "softmax": softmax, "batch": batch, "dense": dense,
        "bits": int(bits.value), "names": names.value, "preprocessing": with_preprocessing,
    }  # fmt: skip
    if layout is Layout.triton:
        from ..formats import triton
        from ..formats.onnx_options import OnnxOptions

        triton.write(network, to, OnnxOptions(**form))
        to = to / "1" / "model.onnx"
    else:
        network.write(to, **form)
    typer.echo(f"{to}: {network.architecture.name}, {to.stat().st_size / 1e6:,.1f} MB", err=True)
