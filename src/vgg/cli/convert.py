"""vgg convert"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import common


def convert(
    source: Annotated[
        Path, typer.Argument(help="Model file (ONNX, torch, safetensors, Keras, MXNet, Caffe, Caffe2) or published name.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="OUT", help="Output file, .onnx, .safetensors or .pth; or folder, see --layout."
        ),
    ],
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="ONNX opset, 3 or newer.  [default: 17]", show_default=False)
    ] = None,
    extra_outputs: Annotated[
        list[str] | None,
        typer.Option("--extra-outputs", metavar="NAME", help="Further output of the model, such as fc7; may be repeated."),
    ] = None,
    softmax: Annotated[bool, typer.Option("--softmax", help="Probabilities instead of logits.")] = False,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", help="Fixed number of images in a batch.  [default: any]", show_default=False),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Images of any size and a map of scores: linear layers become convolutions.")
    ] = False,
    bits: Annotated[Literal["16", "32"], typer.Option("--bits", help="Bits of the floats in the file.")] = "32",
    names: Annotated[
        Literal["paper", "zoo"], typer.Option("--names", help="Names of the tensors: the paper's or the zoo's.")
    ] = "paper",
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing", help="Preprocessing in the graph: input uint8 [batch, height, width, 3]; requires opset 18."
        ),
    ] = False,
    fold_batch_norm: Annotated[
        bool, typer.Option("--fold-batch-norm", help="Batch normalisation folded into the convolutions.")
    ] = False,
    layout: Annotated[
        Literal["file", "triton"],
        typer.Option("--layout", help="One file, or a model repository for Triton and OpenVINO Model Server."),
    ] = "file",
    keys: Annotated[
        Literal["torchvision", "timm", "paper"] | None,
        typer.Option(
            "--keys",
            help="Keys of the tensors in a .pth or .safetensors file.  [default: torchvision in .pth, paper in .safetensors]",
            show_default=False,
        ),
    ] = None,
    preset: common.PresetOption = None,
    labels: common.LabelsOption = None,
    head: common.HeadOption = None,
    output_activation: common.OutputActivationOption = None,
    input_size: common.InputSizeOption = None,
) -> None:
    """Convert a model file to ONNX, safetensors or a state dictionary of torch.

    Example: `vgg convert vgg19_weights_tf_dim_ordering_tf_kernels.h5 -o vgg19.onnx`

    The output contains preprocessing, labels and origin, so no other file is needed to classify correctly. Old ONNX files
    can be updated: `vgg convert vgg19-caffe2-9.onnx -o vgg19.onnx --softmax`

    Networks of torchvision and timm load a .pth or .safetensors file with their keys strictly:
    `vgg convert pets.onnx -o pets.pth --keys timm`
    """
    import warnings

    from ..errors import Notice
    from ..formats import write

    network = common.read_network(source, common.reading(head, output_activation, input_size, preset, labels))
    if faults := list(network.faults()):
        (parameter, fault), more = faults[0], f", and {len(faults) - 1} more" * (len(faults) > 1)
        text = f"{source}: parameter {parameter} has {fault}{more}; the numbers are kept, but predictions with them are refused"
        warnings.warn(Notice(text), stacklevel=1)
    if fold_batch_norm:
        network = network.fold_batch_norm()
    write(
        network, output, opset=opset, outputs=extra_outputs or (), softmax=softmax, batch=batch, dense=dense,
        bits=int(bits), names=names, preprocessing=with_preprocessing, layout=layout, keys=keys,
    )  # fmt: skip
    file = output / "1" / "model.onnx" if layout == "triton" else output
    typer.echo(f"{file}: {network.architecture.name}, {file.stat().st_size / 1e6:,.1f} MB", err=True)
