"""vgg pull"""

from typing import Annotated

import typer

from . import common


def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Published models (`vgg models`) or hf:// addresses.")],
) -> None:
    """Download and verify published models, and print their paths.

    Example: `vgg pull vgg16 torchvision/vgg11`

    An interrupted download resumes. The environment variable `VGG_HOME` is the folder in which models are kept, `VGG_MIRROR` a
    folder or an address to download from.
    """
    from .. import zoo

    with common.progress() as show:
        for name in names:
            typer.echo(zoo.pull(name, show))
