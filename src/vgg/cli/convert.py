"""vgg convert"""

from pathlib import Path
from typing import Annotated

import typer

from .common import LabelsOption, PresetOption


def convert(
    source: Annotated[Path, typer.Argument(help="A model file: ONNX by vgg, torch, safetensors, Keras; or vgg16-gap.")],
    to: Annotated[Path, typer.Option("-o", "--to", metavar="OUT", help="The file to write: .onnx or .safetensors.")],
    opset: Annotated[
        int | None, typer.Option("--opset", metavar="N", help="ONNX opset, 7 or newer.  [default: 17]", show_default=False)
    ] = None,
    output: Annotated[
        list[str] | None, typer.Option("--output", metavar="NAME", help="A further output, such as fc7; may be repeated.")
    ] = None,
    fold_batch_norm: Annotated[
        bool, typer.Option("--fold-batch-norm", help="Fold batch normalisation into the convolutions.")
    ] = False,
    preset: PresetOption = None,
    labels: LabelsOption = None,
) -> None:
    """Write a model file as ONNX that says how to use it.

    Example: `vgg convert vgg19_weights_tf_dim_ordering_tf_kernels.h5 -o vgg19.onnx`

    The new file carries the preprocessing, the labels and the origin, so that it alone is enough to classify rightly.
    """
    import warnings

    from ..classifier import described
    from ..network import Network
    from ..zoo import locate

    with warnings.catch_warnings(record=preset is not None and labels is not None):  # then nothing was left to a guess
        network = Network.read(locate(source))
    network = described(network, preset, labels)
    if fold_batch_norm:
        network = network.fold_batch_norm()
    network.write(to, opset=opset, outputs=output or ())
    typer.echo(f"{to}: {network.architecture.name}, {to.stat().st_size / 1e6:,.1f} MB", err=True)
